"""The lockstep cross-sampler against single policies and against a loop that shares no code."""

import math

import numpy as np
import pytest
import torch

from tokenshift_utils import measures
from tokenshift_utils.cross_sampling import Rule, cross_sample, get_cross_sampling
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.hf_policy import HFPolicy
from tokenshift_utils.noise import gumbel, row_key, uniform
from tokenshift_utils.nucleus import log_softmax32, truncate
from tokenshift_utils.policy import Sampling, stop_ids
from tokenshift_utils.rollouts import get_rollouts
from tokenshift_utils.study import load_study

SAMPLING = Sampling(temperature=0.9, top_p=0.7, max_new_tokens=24)
N = 24


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return (
        HFPolicy.load(tiny_pair.base, "base", "float64"),
        HFPolicy.load(tiny_pair.tuned, "tuned", "float64"),
    )


@pytest.fixture(scope="module")
def prompts():
    generator = np.random.default_rng(1)
    return [generator.integers(3, 36, generator.integers(1, 9)).tolist() for _ in range(N)]


KEYS = [row_key(5, "bench", f"p{i}", 0) for i in range(N)]


def mix(pair, prompts, rule, sampling=SAMPLING, batch_size=10):
    return cross_sample(*pair, prompts, KEYS, rule, sampling, batch_size)


def plain_cross(pair, prompt, key, rule, sampling):
    """One mixed response, one forward over the whole prefix a token, in numpy: the definition."""

    def distribution(policy, ids):
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
        p = np.exp(logits / sampling.temperature - np.max(logits / sampling.temperature))
        p /= p.sum()
        order = np.lexsort((np.arange(len(p)), -p))
        size = int(np.searchsorted(np.cumsum(p[order]), sampling.top_p)) + 1
        inside = np.zeros_like(p)
        inside[order[:size]] = p[order[:size]]
        return p, inside / inside.sum()

    def divergence(p, q):
        m = (p + q) / 2
        return sum(0.5 * (a[a > 0] * np.log(a[a > 0] / m[a > 0])).sum() for a in (p, q))

    ids, switches = [], []
    row, everything = torch.tensor([key]), torch.arange(pair[0].vocab_size)
    for t in range(sampling.max_new_tokens):
        at = torch.tensor([t])
        (p_full, p), (q_full, q) = (distribution(x, prompt + ids) for x in pair)
        noise = gumbel(row, at, everything)[0].numpy()
        with np.errstate(divide="ignore"):
            token_p, token_q = (int(np.argmax(np.log(x) + noise)) for x in (p, q))
        if rule.name == "random":
            fired = float(uniform(row, at)) < rule.rate
        else:
            fired = (
                divergence(*((p, q) if rule.name == "js" else (p_full, q_full))) > rule.threshold
            )
        if fired:
            tv, differ = 0.5 * np.abs(p - q).sum(), 1 - (p * q).sum()
            switches.append((t, token_p, token_q, divergence(p, q), tv, differ))
        ids.append(token_q if fired else token_p)
        if ids[-1] in stop_ids(*pair):
            break
    return ids, switches


@pytest.mark.parametrize(
    "rule", [Rule("js", 0.05), Rule("js", 0.2), Rule("js_full", 0.02), Rule("random", None, 0.3)]
)
def test_equals_the_definition(pair, prompts, rule):
    runs, switches = mix(pair, prompts, rule)
    some = 0
    for i in range(N):
        ids, expected = plain_cross(pair, prompts[i], KEYS[i], rule, SAMPLING)
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


@pytest.mark.parametrize("rule", [Rule("js", 0.05), Rule("random", None, 0.2)])
def test_runs_do_not_depend_on_the_batch(pair, prompts, rule):
    whole = mix(pair, prompts, rule, batch_size=N)
    for batch_size in (1, 5):
        runs, switches = mix(pair, prompts, rule, batch_size=batch_size)
        assert [r.ids for r in runs] == [r.ids for r in whole[0]]
        for name, column in switches.items():
            torch.testing.assert_close(column, whole[1][name], rtol=0, atol=1e-6)


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
        pair[1].eos_ids = (stop,)
        runs, _ = mix(pair, prompts, Rule("never"))
    finally:
        pair[1].eos_ids = before
    assert any(run.ids[-1] == stop for run in runs)
    assert all(stop not in run.ids[:-1] for run in runs)


def margin(pair, prompt, ids, key, rule, sampling):
    """How close the choice after ``ids`` is to being another one, in float64: the smallest of the
    Gumbel scores' lead, the masses' distance from top-p, and the distance of JS from epsilon."""
    nuclei, row, at = [], torch.tensor([key]), torch.tensor([len(ids)])
    margins = []
    for policy in pair:
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + ids]), use_cache=False).logits[:, -1]
        nucleus = truncate(log_softmax32(logits, sampling.temperature), sampling.top_p)
        nuclei.append(nucleus)
        masses = nucleus.logp.exp().sort(descending=True).values.cumsum(-1)
        margins.append((masses - sampling.top_p).abs().min())
        scores = nucleus.log_probs() + gumbel(row, at, torch.arange(policy.vocab_size))
        best = scores.topk(2).values[0]
        margins.append(best[0] - best[1])
    js = measures.js(nuclei[0].log_probs(), nuclei[1].log_probs())
    margins.append((js - rule.threshold).abs().squeeze())
    return float(min(margins))


def test_float32_parts_from_float64_only_where_the_margin_is_small(tiny_pair, pair, prompts):
    single = [HFPolicy.load(path, "p") for path in (tiny_pair.base, tiny_pair.tuned)]
    rule = Rule("js", 0.05)
    runs, _ = cross_sample(*single, prompts, KEYS, rule, SAMPLING, 10)
    exact, _ = mix(pair, prompts, rule)
    parted = 0
    for i, (a, b) in enumerate(zip(runs, exact)):
        if a.ids != b.ids:
            first = next(t for t, (x, y) in enumerate(zip(a.ids, b.ids)) if x != y)
            assert margin(pair, prompts[i], b.ids[:first], KEYS[i], rule, SAMPLING) < 1e-4
            parted += 1
    assert parted / N < 0.05


def test_rules_are_checked():
    for bad in (
        lambda: Rule("entropy"),
        lambda: Rule("js", None),
        lambda: Rule("js", math.nan),
        lambda: Rule("random"),
        lambda: Rule("random", None, 1.5),
    ):
        with pytest.raises(TokenshiftError):
            bad()
    assert Rule("random", 0.1, 0.2) == Rule("random", None, 0.2)
    assert [Rule("js", 0.1).label, Rule("random", None, 0.25).label] == ["js>0.1", "random:0.25"]


def test_different_vocabularies_are_refused(pair, prompts):
    class Other:
        name, vocab_size, eos_ids = "other", 5, (1,)

    with pytest.raises(TokenshiftError, match="one vocabulary"):
        cross_sample(pair[0], Other(), prompts, KEYS, Rule("never"), SAMPLING, 4)


def test_records_agree_with_rollouts_and_with_each_other(mini_root):
    study = load_study("mini").with_overrides(dtype="float64")
    runs, switches = get_cross_sampling(study, "base", "tuned", threshold=math.inf)
    own = get_rollouts(study, "base", samples=study.samples.cross_sampling)
    key = ["benchmark", "problem", "sample"]
    assert runs[key].equals(own[key]) and len(switches) == 0
    assert [list(a) for a in runs["response_ids"]] == [list(b) for b in own["response_ids"]]
    assert runs["correct"].equals(own["correct"])

    runs, switches = get_cross_sampling(study, "tuned", "base", threshold=0.05)
    assert set(runs["direction"]) == {"reverse"}
    counted = switches.groupby(key)["effective"].agg(["size", "sum"]).reset_index()
    merged = runs.merge(counted, on=key, how="left").fillna({"size": 0, "sum": 0})
    assert (merged["size"] == merged["n_switched"]).all()
    assert (merged["sum"] == merged["n_effective"]).all()
    assert (switches["js"] > 0.05).all()
    emitted = {tuple(r[k] for k in key): r["response_ids"] for r in runs.to_dict("records")}
    for switch in switches.to_dict("records"):
        ids = emitted[tuple(switch[k] for k in key)]
        assert ids[switch["position"]] == switch["token_intervention"]
        assert switch["effective"] == (switch["token_primary"] != switch["token_intervention"])


def test_support_of_the_js_rule_is_the_studys(mini_root):
    study = load_study("mini")
    full = study.with_overrides(divergence_support="full")
    runs, _ = get_cross_sampling(full, "base", "tuned", threshold=0.05)
    assert set(runs["rule"]) == {"js_full"}
    same, _ = get_cross_sampling(study, "base", "tuned", rule="js_full", threshold=0.05)
    assert same.equals(runs)
