"""The cross-sampling engine against single policies and against a loop that shares no code."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import margin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.noise import gumbel, row_key, uniform
from tokenshift_utils.measures.nucleus import Nucleus, nucleus_js, truncate
from tokenshift_utils.models.decoding import Lanes
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling, stop_ids
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.mixer import Insertion, Mixer
from tokenshift_utils.pairs.rules import Rule


class NoTokenizer:
    eos_token_id = 1


CHECKOUT = Path(__file__).resolve().parents[1]
SAMPLING = Sampling(temperature=0.9, top_p=0.7, max_new_tokens=24)
N = 24


KEYS = [row_key(5, "bench", f"p{i}", 0) for i in range(N)]


TOKEN = Insertion()
NULL_KEYS = [row_key(5, "bench", f"p{i}", 0, stream=1) for i in range(N)]


def mix(pair, prompts, rule, sampling=SAMPLING, batch_size=10, **more):
    n = len(prompts)
    return cross_sample(
        *pair, prompts, KEYS[:n], rule, sampling, batch_size, null_keys=NULL_KEYS[:n], **more
    )


def plain_value(rule, p_full, q_full, p, q, token_p):
    """What a rule compares with its threshold, in numpy."""

    def kl(a, b):
        return float((a * np.log(a / b)).sum())

    def js(a, b):
        m = (a + b) / 2
        return sum(0.5 * (x[x > 0] * np.log(x[x > 0] / m[x > 0])).sum() for x in (a, b))

    return {
        "js": lambda: js(p, q),
        "js_full": lambda: js(p_full, q_full),
        "kl": lambda: kl(p_full, q_full),
        "kl_reverse": lambda: kl(q_full, p_full),
        "entropy": lambda: -float((p_full * np.log(p_full)).sum()),
        "signed_logp": lambda: float(np.log(p_full[token_p] / q_full[token_p])),
    }[rule.name]()


def plain_cross(pair, prompt, key, rule, sampling, insertion=TOKEN, own_key=0):
    """One mixed response, one forward over the whole prefix a token, in numpy: the definition."""

    def truncated(p):
        order = np.lexsort((np.arange(len(p)), -p))
        size = int(np.searchsorted(np.cumsum(p[order]), sampling.top_p)) + 1
        inside = np.zeros_like(p)
        inside[order[:size]] = p[order[:size]]
        return inside / inside.sum()

    def distribution(policy, ids):
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
        p = np.exp(logits / sampling.temperature - np.max(logits / sampling.temperature))
        return p / p.sum(), truncated(p / p.sum())

    def draw(p, key, t):
        noise = gumbel(torch.tensor([key]), torch.tensor([t]), torch.arange(len(p)))[0].numpy()
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.log(p) + noise))

    ids, switches = [], []
    for t in range(sampling.max_new_tokens):
        (p_full, p), (q_full, q) = (distribution(x, prompt + ids) for x in pair)
        token_p, inserted, inserted_key = draw(p, key, t), q, key
        if insertion.name == "own":
            inserted, inserted_key = p, own_key
        elif insertion.name == "extrapolated":
            beyond = q_full ** (1 + insertion.gain) / p_full**insertion.gain
            inserted = truncated(beyond / beyond.sum())
        if rule.name == "random":
            fired = float(uniform(torch.tensor([key]), torch.tensor([t]))) < rule.rate
        elif rule.name == "first":
            fired = t < rule.threshold
        else:
            fired = plain_value(rule, p_full, q_full, p, q, token_p) > rule.threshold
        fired = fired and (rule.budget is None or len(switches) < rule.budget)
        token = draw(inserted, inserted_key, t) if fired else token_p
        if fired:
            tv, differ = 0.5 * np.abs(p - q).sum(), 1 - (p * q).sum()
            js = plain_value(Rule("js", 0.0), p_full, q_full, p, q, token_p)
            switches.append((t, token_p, token, js, tv, differ))
        ids.append(token)
        if token in stop_ids(*pair):
            break
    return ids, switches


RULES = [
    Rule("js", 0.05),
    Rule("js", 0.2),
    Rule("js_full", 0.02),
    Rule("kl", 0.1),
    Rule("kl_reverse", 0.1),
    Rule("entropy", 2.0),
    Rule("signed_logp", 0.3),
    Rule("random", None, 0.3),
    Rule("first", 3),
    Rule("js", 0.05, budget=2),
    Rule("random", None, 0.3, budget=1),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_equals_the_definition(pair, prompts, rule):
    runs, switches = mix(pair, prompts, rule)
    assert_defined(pair, prompts, rule, runs, switches)


@pytest.mark.parametrize(
    "rule, insertion",
    [
        (Rule("js", 0.05), Insertion("own")),
        (Rule("random", None, 0.3), Insertion("own")),
        (Rule("js", 0.05), Insertion("extrapolated", 1.5)),
        (Rule("js", 0.05, budget=1), Insertion("extrapolated", -0.5)),
    ],
    ids=str,
)
def test_other_insertions_equal_the_definition(pair, prompts, rule, insertion):
    runs, switches = mix(pair, prompts, rule, insertion=insertion)
    assert_defined(pair, prompts, rule, runs, switches, insertion)
    assert sum(run.n_effective for run in runs) > 0


def assert_defined(pair, prompts, rule, runs, switches, insertion=TOKEN):
    some = 0
    for i in range(len(prompts)):
        ids, expected = plain_cross(
            pair, prompts[i], KEYS[i], rule, SAMPLING, insertion, NULL_KEYS[i]
        )
        assert runs[i].ids == ids
        mine = {name: column[switches["row"] == i] for name, column in switches.items()}
        assert mine["position"].tolist() == [s[0] for s in expected]
        assert mine["token_primary"].tolist() == [s[1] for s in expected]
        assert mine["token_intervention"].tolist() == [s[2] for s in expected]
        for column, name in ((3, "js"), (4, "tv"), (5, "independent")):
            assert mine[name].tolist() == pytest.approx([s[column] for s in expected], abs=1e-6)
        assert runs[i].n_switched == len(expected)
        assert runs[i].n_effective == sum(s[1] != s[2] for s in expected)
        assert runs[i].sum_tv == pytest.approx(sum(s[4] for s in expected), abs=1e-5)
        assert runs[i].sum_independent == pytest.approx(sum(s[5] for s in expected), abs=1e-5)
        some += len(expected)
    assert 0 < some < sum(len(run.ids) for run in runs)


@pytest.mark.parametrize(
    "rule, which",
    [
        (Rule("js", math.inf), 0),
        (Rule("js_full", math.inf), 0),
        (Rule("never"), 0),
        (Rule("random", None, 0.0), 0),
        (Rule("js", -1.0), 1),
        (Rule("js_full", -1e-9), 1),
        (Rule("always"), 1),
        (Rule("first", SAMPLING.max_new_tokens), 1),
        (Rule("js", -1.0, budget=0), 0),
        (Rule("kl", -1.0), 1),
        (Rule("kl_reverse", math.inf), 0),
        (Rule("entropy", math.inf), 0),
        (Rule("signed_logp", -math.inf), 1),
        (Rule("signed_logp", math.inf), 0),
        (Rule("random", None, 1.0), 1),
    ],
)
def test_limits_are_the_policies_own_rollouts_token_for_token(pair, prompts, rule, which):
    own = pair[which].sample(prompts, KEYS, SAMPLING, stop_ids=stop_ids(*pair), batch_size=7)
    runs, switches = mix(pair, prompts, rule)
    assert [run.ids for run in runs] == [c.ids for c in own]
    assert [run.finish_reason for run in runs] == [c.finish_reason for c in own]
    emitted = sum(len(run.ids) for run in runs)
    assert len(switches["row"]) == sum(run.n_switched for run in runs) == which * emitted
    if which:  # an always-switched run differs from the primary at some of its positions only
        assert 0 < sum(run.n_effective for run in runs) < emitted


def same(one, other):
    assert [run.ids for run in one[0]] == [run.ids for run in other[0]]
    assert [run.finish_reason for run in one[0]] == [run.finish_reason for run in other[0]]
    for name, column in other[1].items():
        torch.testing.assert_close(one[1][name], column, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_runs_depend_neither_on_batch_nor_on_block(pair, prompts, rule):
    some = prompts[:11]
    lockstep = mix(pair, some, rule, batch_size=11, block=1)
    for batch_size, block in ((1, 5), (5, 3), (11, 32), (4, "auto")):
        same(mix(pair, some, rule, batch_size=batch_size, block=block), lockstep)


@st.composite
def models(draw):
    """A random tiny architecture, and two models of it at a random distance."""
    heads = draw(st.sampled_from([1, 2, 4]))
    config = LlamaConfig(
        vocab_size=draw(st.integers(5, 60)),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([h for h in (1, 2, 4) if heads % h == 0])),
        head_dim=8,
        initializer_range=draw(st.floats(0.05, 1.0)),
        eos_token_id=1,
        attn_implementation="sdpa",
    )
    torch.manual_seed(draw(st.integers(0, 99)))
    base = LlamaForCausalLM(config).eval().double()
    tuned = copy.deepcopy(base)
    spread = draw(st.sampled_from([0.0, 0.02, 0.2]))
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += spread * torch.randn_like(weight)
    return base, tuned


@st.composite
def rules(draw):
    """A rule with a threshold within what it looks at."""
    name = draw(st.sampled_from(["js", "js_full", "kl", "signed_logp", "entropy", "random"]))
    # (rounding alone decides on the divergence of equal models from 0)
    threshold = draw(st.floats(1e-3, 0.7)) if name != "random" else None
    budget = draw(st.sampled_from([None, None, 0, 2]))
    return Rule(name, threshold, draw(st.floats(0, 1)) if name == "random" else None, budget)


@st.composite
def cases(draw):
    """A random tiny pair, a rule, ragged prompts, a batch and a block."""
    pair, rule = draw(models()), draw(rules())
    token = st.integers(0, pair[0].config.vocab_size - 1)
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=7))
    sampling = Sampling(draw(st.floats(0.3, 2.0)), draw(st.sampled_from([0.3, 0.7, 0.95, 1.0])), 17)
    return pair, rule, prompts, sampling, draw(st.integers(1, 8)), draw(st.integers(2, 20))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_block_verified_decoding_emits_what_lockstep_emits(case):
    models, rule, prompts, sampling, batch_size, block = case
    pair = [HFPolicy(model, NoTokenizer(), name) for model, name in zip(models, ("p", "q"))]
    lockstep = mix(pair, prompts, rule, sampling, batch_size=len(prompts), block=1)
    same(mix(pair, prompts, rule, sampling, batch_size, block=block), lockstep)
    own = mix(pair, prompts, rule, sampling, 3, block="auto", insertion=Insertion("own"))
    same(own, mix(pair, prompts, rule, sampling, 8, block=1, insertion=Insertion("own")))


def counting(policy, monkeypatch):
    """Counts of tokens that a policy's model reads, by call: ``(rows, tokens a row)``."""
    calls, forward = [], policy.model.forward

    def counted(**kwargs):
        calls.append(tuple(kwargs["input_ids"].shape))
        return forward(**kwargs)

    monkeypatch.setattr(policy.model, "forward", counted)
    return calls


@pytest.mark.parametrize("rule", [Rule("never"), Rule("random", None, 0.0), Rule("entropy", 99.0)])
def test_an_intervention_that_never_switches_is_not_run(pair, prompts, rule, monkeypatch):
    for policy in pair:
        policy.open(1)  # (a policy tries its cache once)
    calls = counting(pair[1], monkeypatch)
    mix(pair, prompts, rule)
    assert calls == []


def test_a_lagging_intervention_catches_up_in_one_chunk(pair, prompts, monkeypatch):
    rule = Rule("random", None, 0.05)
    long = Sampling(0.9, 0.7, 60)
    expected = [plain_cross(pair, prompts[i], KEYS[i], rule, long)[0] for i in range(3)]
    calls = counting(pair[1], monkeypatch)
    runs, switches = mix(pair, prompts[:3], rule, long, batch_size=1)
    assert [run.ids for run in runs] == expected
    assert len(calls) == len(switches["row"]) > 0  # one read a switch, prompt and drafts together
    monkeypatch.setattr(
        "tokenshift_utils.pairs.mixer.CATCH_UP", (2, 4)
    )  # reads in pieces, if need be
    assert [r.ids for r in mix(pair, prompts[:3], rule, long, batch_size=3)[0]] == expected


def test_one_rows_rollback_does_not_hold_up_the_others(pair, prompts, monkeypatch):
    always = {KEYS[0]}  # a rule that fires at every position of one row and nowhere else

    class OneRow(Rule):
        def fires(self, at):
            return torch.isin(at.keys, torch.tensor(list(always)))

    long = Sampling(0.9, 1.0, 40)
    rounds = []
    advance = Lanes.advance
    monkeypatch.setattr(
        Lanes,
        "advance",
        lambda self, t, c, v=None: rounds.append(c.tolist()) or advance(self, t, c, v),
    )
    monkeypatch.setattr("tokenshift_utils.pairs.mixer.stop_ids", lambda *_: ())
    mix(pair, prompts[:4], OneRow("js", 0.1), long, batch_size=4, block=8)
    assert rounds[:5] == [[1, 8, 8, 8]] * 5  # the others are through in five rounds
    assert [c[0] for c in rounds] == [1] * 40


def test_blocks_follow_the_switch_rate(pair, prompts):
    def blocks(rule):
        seen = []
        draft = Mixer._draft
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Mixer, "_draft", lambda self, n, a: seen.append(n) or draft(self, n, a))
            patch.setattr("tokenshift_utils.pairs.mixer.stop_ids", lambda *_: ())
            mix(pair, prompts, rule, Sampling(0.9, 0.7, 200), batch_size=N)
        return seen

    assert set(blocks(Rule("always"))[20:]) == {1}
    assert max(blocks(Rule("js", 9.0))) == 32
    rare = blocks(Rule("random", None, 0.02))
    assert 6 <= np.median(rare[3:-3]) <= 16


def test_no_more_than_a_block_of_distributions_is_held(pair, prompts, monkeypatch):
    held = []
    stack = Nucleus.stack

    def watched(parts):
        held.append(stack(parts).logp.numel())
        return stack(parts)

    monkeypatch.setattr(Nucleus, "stack", staticmethod(watched))
    monkeypatch.setattr("tokenshift_utils.pairs.mixer.COMPARED_LOGITS", 100)
    short = mix(pair, prompts, Rule("js", 0.05), Sampling(0.9, 0.7, 10), block=4)
    assert max(held) == 4 * pair[0].vocab_size  # a row at a time
    monkeypatch.undo()
    same(short, mix(pair, prompts, Rule("js", 0.05), Sampling(0.9, 0.7, 10), block=4))


def test_js_of_lists_is_js_of_the_vocabulary():
    torch.manual_seed(0)
    p = torch.log_softmax(3 * torch.randn(400, 300, dtype=torch.float64), -1)
    q = torch.log_softmax(p + 0.7 * torch.randn(400, 300, dtype=torch.float64), -1)
    a, b = truncate(p, 0.7), truncate(q, 0.7)
    both = a.listed & b.listed
    assert 0.2 < both.double().mean() < 1
    want = divergences.js(a.log_probs(), b.log_probs())
    torch.testing.assert_close(nucleus_js(a, b), want, rtol=0, atol=1e-9)
    tied = torch.log_softmax(torch.zeros(3, 300, dtype=torch.float64), -1)  # lower ids are in
    tied = truncate(tied, 0.01)
    assert not tied.listed.any()
    assert nucleus_js(tied, tied).tolist() == [0.0] * 3


def test_two_of_one_policy_never_switch(pair, prompts):
    runs, _ = cross_sample(pair[0], pair[0], prompts, KEYS, Rule("js", 1e-9), SAMPLING, 10)
    assert sum(run.n_switched for run in runs) == 0
    runs, _ = cross_sample(pair[0], pair[0], prompts, KEYS, Rule("always"), SAMPLING, 10)
    assert sum(run.n_effective for run in runs) == 0  # the same luck gives the same token
    assert sum(run.n_switched for run in runs) == sum(len(run.ids) for run in runs)


def test_fault_03_the_intervention_may_emit_any_token(pair, prompts):
    """Tokens that the primary ranks below its first list are emitted too."""
    wide = Sampling(1.0, 1.0, 20)
    _, switches = mix(pair, prompts, Rule("always"), wide)
    ranks = []
    for row, position, token in zip(
        switches["row"].tolist(),
        switches["position"].tolist(),
        switches["token_intervention"].tolist(),
    ):
        if position == 0:
            with torch.no_grad():
                logits = pair[0].model(torch.tensor([prompts[row]])).logits[0, -1]
            ranks.append(int((logits > logits[token]).sum()))
    assert max(ranks) > 16  # (the vocabulary has 36 tokens; the first list of a nucleus has 16)


def test_stops_at_either_policys_stop_ids(pair, prompts):
    plain, _ = mix(pair, prompts, Rule("never"))
    stop = next(run.ids[3] for run in plain if len(run.ids) > 8)
    before = pair[1].eos_ids
    try:
        pair[1].eos_ids = (1, stop)
        runs, _ = mix(pair, prompts, Rule("never"))
    finally:
        pair[1].eos_ids = before
    assert any(run.ids[-1] == stop for run in runs)
    assert all(stop not in run.ids[:-1] for run in runs)


@pytest.mark.parametrize("block", [1, 8])
def test_float32_parts_from_float64_only_where_the_margin_is_small(tiny_pair, pair, prompts, block):
    single = [HFPolicy.load(path, "p") for path in (tiny_pair.base, tiny_pair.tuned)]
    rule = Rule("js", 0.05)
    runs, _ = cross_sample(*single, prompts, KEYS, rule, SAMPLING, 10, block)
    exact, _ = mix(pair, prompts, rule)
    parted = 0
    for i, (a, b) in enumerate(zip(runs, exact)):
        if a.ids != b.ids:
            first = next(t for t, (x, y) in enumerate(zip(a.ids, b.ids)) if x != y)
            assert margin(pair, prompts[i], b.ids[:first], KEYS[i], rule, SAMPLING) < 1e-4
            parted += 1
    assert parted / N < 0.05


@pytest.mark.parametrize("name, threshold", [("js", 0.1), ("js_full", 0.02)])
def test_float32_block_and_lockstep_part_only_where_the_margin_is_small(name, threshold):
    """The shipped pair, as the tiny study computes with it."""
    models = CHECKOUT / "results/tiny/models"
    rule, sampling = Rule(name, threshold), Sampling(1.0, 0.7, 160)
    lines = (CHECKOUT / "results/tiny/benchmarks/hard.jsonl").read_text().splitlines()[:48]
    single = [HFPolicy.load(models / n, n) for n in ("base", "dapo")]
    exact = [HFPolicy.load(models / n, n, "float64") for n in ("base", "dapo")]
    prompts = [single[0].tokenizer.encode(json.loads(line)["problem"]) for line in lines]
    row_keys = [row_key(7, "hard", str(i), 0) for i in range(len(prompts))]
    first, *others = (
        cross_sample(*single, prompts, row_keys, rule, sampling, size, block)[0]
        for size, block in ((48, 1), (48, 8), (16, "auto"))
    )
    tokens, parted = sum(len(run.ids) for run in first), 0
    for other in others:
        for i, (a, b) in enumerate(zip(first, other)):
            if a.ids != b.ids:
                at = next(t for t, (x, y) in enumerate(zip(a.ids, b.ids)) if x != y)
                assert margin(exact, prompts[i], a.ids[:at], row_keys[i], rule, sampling) < 1e-4
                parted += 1
    print(
        f"{rule.label}: {parted} of {len(others) * len(prompts)} responses part ({tokens} tokens)"
    )
    assert parted <= 2


def test_rules_are_checked():
    for bad in (
        lambda: Rule("entropy", -0.5),
        lambda: Rule("entropy", None),
        lambda: Rule("nonsense"),
        lambda: Rule("kl", math.nan),
        lambda: Rule("js", 0.1, budget=-1),
        lambda: Insertion("other"),
        lambda: Insertion("extrapolated"),
        lambda: Insertion("extrapolated", math.nan),
        lambda: Rule("js", None),
        lambda: Rule("js", math.nan),
        lambda: Rule("random"),
        lambda: Rule("random", None, 1.5),
    ):
        with pytest.raises(TokenshiftError):
            bad()
    assert Rule("random", 0.1, 0.2) == Rule("random", None, 0.2)
    assert [Rule("js", 0.1).label, Rule("random", None, 0.25).label] == ["js>0.1", "random:0.25"]
    assert Rule("js", 0.1, budget=3).label == "js>0.1,budget:3"


def test_different_vocabularies_are_refused(pair, prompts):
    class Other:
        name, vocab_size, eos_ids = "other", 5, (1,)

    with pytest.raises(TokenshiftError, match="one vocabulary"):
        cross_sample(pair[0], Other(), prompts, KEYS, Rule("never"), SAMPLING, 4)


def test_no_common_end_is_refused(pair, prompts, monkeypatch):
    monkeypatch.setattr(pair[1], "eos_ids", (7,))
    with pytest.raises(TokenshiftError, match=r"ends responses with \[1\] and tuned with \[7\]"):
        mix(pair, prompts, Rule("never"))


@pytest.mark.parametrize("block", [0, -3, 2.5, "all"])
def test_blocks_below_one_are_refused(pair, prompts, block):
    with pytest.raises(TokenshiftError, match="block is"):
        mix(pair, prompts, Rule("never"), block=block)
