"""The real vLLM engine, on a CPU, beside the transformers policy on the shipped models.

``bash tests/run_vllm.sh`` installs the engine in an environment of its own and runs these.
"""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import CHECKOUT, fetch_both, margin, write_adapter, write_smoke_root

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.measures.nucleus import log_softmax32, truncate
from tokenshift_utils.measures.top_logprobs import align, join
from tokenshift_utils.models.adapters import load_adapter
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.grow import grow
from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.pairs.walks import Walk
from tokenshift_utils.records import single_token
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.requests import items, verdict
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts, shift_table
from tokenshift_utils.report.bootstrap import Bootstrap
from tokenshift_utils.store import columns as records
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import load_benchmark

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vllm is not installed here: bash tests/run_vllm.sh installs it and runs this",
    ),
]

SAMPLING = Sampling(1.0, 0.7, 160)
SMALL = {"kv_cache_gib": 0.0625, "gpu_memory_utilization": 0.05}
LISTS = {"robustness": None, "cross_sampling.rules": {}, "cross_sampling.extrapolation": None}
KEY = ["benchmark", "problem", "sample"]


@pytest.fixture(scope="module", autouse=True)
def checkout():
    """The shipped models, whatever root other tests were at."""
    before = os.environ.get("TOKENSHIFT_HOME")
    os.environ["TOKENSHIFT_HOME"] = str(CHECKOUT)
    yield
    os.environ.pop("TOKENSHIFT_HOME")
    if before is not None:
        os.environ["TOKENSHIFT_HOME"] = before


@pytest.fixture(scope="module")
def study(checkout):
    return load_study("smoke").with_overrides(workers=0)


def engines_of(study, **settings):
    return study.with_overrides(backend="vllm", vllm=SMALL | settings)


@pytest.fixture(scope="module")
def theirs(study):
    """Base and DAPO on transformers."""
    return load_policy(study, "base"), load_policy(study, "dapo")


@pytest.fixture(scope="module")
def exact(study):
    return [HFPolicy.load(study.model_path(n), n, "float64") for n in ("base", "dapo")]


@pytest.fixture(scope="module")
def ours(study):
    """The same on vLLM."""
    return tuple(load_policy(engines_of(study), name) for name in ("base", "dapo"))


@pytest.fixture(scope="module")
def listing(study):
    """The same where only the 16 most probable tokens' log-probs are returned."""
    some = engines_of(study.with_overrides(**LISTS), top_logprobs=16)
    return tuple(load_policy(some, name) for name in ("base", "dapo"))


@pytest.fixture(scope="module")
def made(study, theirs):
    problems = load_benchmark(study, "hard")
    return items(study, theirs[0], "hard", problems, 4)


@pytest.fixture(scope="module")
def given(made):
    return [list(m.prompt_ids) for m in made], [m.key for m in made]


def parting(exact, given, one, other, rule=None):
    """Number of responses that part, each where the choice was close enough for rounding."""
    parted = 0
    for prompt, key, a, b in zip(*given, one, other, strict=True):
        if a != b:
            at = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
            assert margin(exact, prompt, a[:at], key, rule, SAMPLING) < 1e-4
            parted += 1
    print(f"{parted} of {len(one)} responses part")
    return parted


def accuracy(policy, made, responses):
    judged = verdict(policy, [r.ids for r in responses], [r.finish_reason for r in responses], made)
    columns = {"benchmark": "hard", "problem": [m.problem.id for m in made]}
    frame = pd.DataFrame(columns | {"correct": judged["correct"]})
    return Bootstrap(frame).accuracy(frame)


def test_rollouts_are_those_of_transformers(theirs, ours, exact, made, given):
    for hf, vllm, one in zip(theirs, ours, exact):
        a, b = hf.sample(*given, SAMPLING), vllm.sample(*given, SAMPLING)
        assert parting([one], given, [r.ids for r in a], [r.ids for r in b]) <= 1
        same = [(x, y) for x, y in zip(a, b) if x.ids == y.ids]
        assert all(x.finish_reason == y.finish_reason for x, y in same)
        for x, y in same:
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)
        # (samples of a problem, which the engine is given at once, have luck of their own)
        assert len({tuple(r.ids) for r in b}) > len(b) / 2
        first, second = accuracy(hf, made, a), accuracy(vllm, made, b)
        assert first.low <= second.value <= first.high
        assert second.low <= first.value <= second.high


def test_greedy_rollouts_are_identical(theirs, ours, given):
    greedy = Sampling(1.0, 1e-9, 160)
    for hf, vllm in zip(theirs, ours):
        a, b = hf.sample(*given, greedy), vllm.sample(*given, greedy)
        assert [r.ids for r in a] == [r.ids for r in b]
        assert [r.finish_reason for r in a] == [r.finish_reason for r in b]


def test_other_temperatures_and_continued_responses(theirs, ours, exact, given):
    warm = Sampling(1.5, 0.9, 60)
    a, b = theirs[0].sample(*given, warm), ours[0].sample(*given, warm)
    same = [i for i, (x, y) in enumerate(zip(a, b)) if x.ids == y.ids]
    assert len(same) >= len(a) - 1
    for i in same:
        assert a[i].logprobs == pytest.approx(b[i].logprobs, abs=1e-4)
    begun = [b[i].ids[: len(b[i].ids) // 2] for i in same]
    prompts, keys = ([x[i] for i in same] for x in given)
    rest = ours[0].sample(
        [p + ids for p, ids in zip(prompts, begun)], keys, warm, None, None, list(map(len, begun))
    )
    assert sum(x + r.ids == b[i].ids for i, x, r in zip(same, begun, rest)) >= len(same) - 1


@pytest.fixture(scope="module")
def trajectories(theirs, made, given):
    """DAPO's responses as ``shift_table`` takes them."""
    responses = theirs[1].sample(*given, SAMPLING)
    keys = {"benchmark": "hard", "problem": [m.problem.id for m in made]}
    keys |= {"sample": [m.sample for m in made], "prompt_ids": given[0]}
    return pd.DataFrame(keys | {"response_ids": [r.ids for r in responses]})


def scored(pair, trajectories):
    return shift_table(*pair, "dapo", trajectories, SAMPLING, 10, 16).to_pandas()


@pytest.fixture(scope="module")
def reference(theirs, trajectories):
    return scored(theirs, trajectories)


def test_log_probs_agree_within_1e_4(theirs, ours, trajectories):
    given = trajectories["prompt_ids"].tolist(), trajectories["response_ids"].tolist()
    real = [len(ids) for ids in given[1]]
    worst = 0.0
    for hf, vllm in zip(theirs, ours):
        for (where, a), (same, b) in zip(hf.score(*given), vllm.score(*given), strict=True):
            assert where == same and a.shape == b.shape
            for row, length in enumerate(real):
                n = max(0, min(length, where.stop) - where.start)
                difference = log_softmax32(a[row, :n]) - log_softmax32(b[row, :n])
                worst = max(worst, float(difference.abs().max()) if n else 0.0)
    print(f"log-probs of {sum(real)} positions, whole vocabulary: at most {worst:.2g} apart")
    assert worst < 1e-4


def away_from_edges(exact, trajectories):
    """Positions at which no nucleus of either model is within 1e-4 of another size."""
    found = []
    for prompt, ids in zip(trajectories["prompt_ids"], trajectories["response_ids"]):
        clear = torch.ones(len(ids), dtype=torch.bool)
        for policy in exact:
            with torch.no_grad():
                logits = policy.model(torch.tensor([prompt + ids])).logits[0]
            logp = log_softmax32(logits[len(prompt) - 1 : -1])
            masses = logp.exp().sort(-1, descending=True).values.cumsum(-1)
            clear &= (masses - SAMPLING.top_p).abs().amin(-1) > 1e-4
        found.append(clear.numpy())
    return np.concatenate(found)


EXACT = ["js", "tv", "nucleus_base", "nucleus_tuned", "logp_base", "logp_tuned"]
EXACT += ["rank_base_of_tuned_top1", "logp_base_of_tuned_top1"]
WHOLE = ["js_full", "tv_full", "entropy_base", "entropy_tuned", "kl_base_tuned", "kl_tuned_base"]


def test_shifts_agree_within_1e_4_away_from_edges(ours, exact, trajectories, reference):
    frame = scored(ours, trajectories)
    clear = away_from_edges(exact, trajectories)
    print(f"{len(clear)} positions, {(~clear).sum()} of them at the edge of a nucleus")
    assert clear.mean() > 0.99
    for name in EXACT + WHOLE:
        difference = (frame[name] - reference[name]).abs()[clear]
        print(f"{name}: {difference.max():.2g}")
        assert difference.max() < 1e-4
    assert (frame["unknown_mass"] == 0).all()
    for name in ("top_ids_base", "top_ids_tuned"):
        same = [list(a[:3]) == list(b[:3]) for a, b in zip(frame[name], reference[name])]
        assert np.mean(same) > 0.999


@pytest.mark.parametrize("count", [2, 16])
def test_shifts_from_lists_are_exact_or_bounded(study, exact, trajectories, reference, count):
    pair = [
        load_policy(engines_of(study.with_overrides(top_k=2, **LISTS), top_logprobs=count), n)
        for n in ("base", "dapo")
    ]
    frame = shift_table(*pair, "dapo", trajectories, SAMPLING, 2, 16).to_pandas()
    clear = away_from_edges(exact, trajectories)
    for name in EXACT:  # two log-probs do not cover every nucleus: more were asked for there
        assert (frame[name] - reference[name]).abs()[clear].max() < 1e-4, name
    unknown = frame["unknown_mass"]
    assert 0 < unknown.max() < 1
    assert (reference["nucleus_base"] > count).any() == (count == 2)
    for name in WHOLE:
        assert (frame[name] - reference[name]).max() < 1e-4, name
    slack = {"js_full": np.log(2) * unknown, "tv_full": unknown}
    for name, bound in slack.items():
        assert (reference[name] - frame[name] <= bound + 1e-4).all(), name
    print(f"{count} log-probs: unknown mass {unknown.mean():.2g} on average, {unknown.max():.2g}")
    for side in ("base", "tuned"):
        short = np.stack(reference[f"top_logp_{side}"])[:, :2]
        assert np.abs(np.stack(frame[f"top_logp_{side}"]) - short).max() < 1e-4


def test_nucleus_is_covered_by_asking_for_more(listing, given):
    """At top-p 0.999 sixteen tokens are often too few."""
    [lists] = listing[0].score_listed([given[0][0]], [given[0][1]])
    assert lists.ids.shape[1] == 17 and not lists.covers(0.99999).all()
    [lists] = listing[0].score_listed([given[0][0]], [given[0][1]], 0.99999)
    assert lists.covers(0.99999).all()


RULES = {
    "js": Rule("js", 0.1),
    "js_full": Rule("js_full", 0.02),
    "entropy": Rule("entropy", 1.2),
    "signed log-prob": Rule("signed_logp", 1.0),
    "random": Rule("random", None, 0.05),
    "budget": Rule("js", 0.1, budget=1),
    "first": Rule("first", 3),
}


def same_runs(exact, given, rule, one, other):
    (a, of_a), (b, of_b) = one, other
    parted = parting(exact, given, [r.ids for r in a], [r.ids for r in b], rule)
    assert parted <= 2
    if parted:
        keep = [i for i, (x, y) in enumerate(zip(a, b)) if x.ids == y.ids]
        kept = [torch.isin(s["row"], torch.tensor(keep)) for s in (of_a, of_b)]
        of_a, of_b = ({n: v[k] for n, v in s.items()} for s, k in zip((of_a, of_b), kept))
    for name in ("row", "position", "token_primary", "token_intervention"):
        assert torch.equal(of_a[name], of_b[name]), name
    return of_a, of_b


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_mixed_responses_are_those_of_transformers(theirs, ours, exact, given, rule):
    n = 12
    given = given[0][:n], given[1][:n]
    a, b = (cross_sample(*pair, *given, rule, SAMPLING, 8) for pair in (theirs, ours))
    of_a, of_b = same_runs(exact, given, rule, a, b)
    assert len(of_a["row"])
    for name in ("js_full", "entropy_primary", "logp_primary_of_intervention", "tv"):
        close = (of_a[name] - of_b[name]).abs()
        assert close.median() < 1e-5 and (close > 1e-4).double().mean() < 0.02, name


@pytest.mark.parametrize("insertion", [Insertion("own"), Insertion("extrapolated", 0.5)])
def test_other_insertions(theirs, ours, exact, given, insertion):
    n, rule = 8, Rule("js", 0.1)
    given = given[0][:n], given[1][:n]
    own = [row_key(1, "hard", str(i), 0, 1) for i in range(n)]
    settings = {"insertion": insertion, "null_keys": own}
    runs = [cross_sample(*pair, *given, rule, SAMPLING, 8, **settings) for pair in (theirs, ours)]
    same = sum(x.ids == y.ids for x, y in zip(*(r[0] for r in runs)))
    assert same >= n - 1


def test_limits_are_the_policies_own_rollouts(ours, exact, given):
    n = 8
    given = given[0][:n], given[1][:n]
    for threshold, policy, one in ((float("inf"), ours[0], exact[0]), (-1.0, ours[1], exact[1])):
        runs, switches = cross_sample(*ours, *given, Rule("js", threshold), SAMPLING, 8)
        alone = policy.sample(*given, SAMPLING)
        assert parting([one], given, [r.ids for r in alone], [r.ids for r in runs]) <= 1
        written = sum(len(run.ids) for run in runs)
        assert len(switches["row"]) == (0 if threshold > 0 else written)


def test_mixing_on_lists(ours, listing, exact, given):
    rule, n = Rule("js", 0.1), 12
    given = given[0][:n], given[1][:n]
    a, b = (cross_sample(*pair, *given, rule, SAMPLING, 8) for pair in (ours, listing))
    of_a, of_b = same_runs(exact, given, rule, a, b)
    logps = [name for name in of_a if name.startswith("logp_")]
    for name in ("js", "tv", *logps):
        close = (of_a[name] - of_b[name]).abs()
        assert close.median() < 1e-5 and (close > 1e-4).double().mean() < 0.02, name
    short = of_a["js_full"] - of_b["js_full"]
    assert (of_b["unknown_mass"] > 0).any() and (of_a["unknown_mass"] == 0).all()
    assert (short > -1e-4).all()
    assert (short <= np.log(2) * of_b["unknown_mass"] + 1e-4).all()


def test_a_sweep_from_trees_is_that_of_transformers(theirs, ours, listing, exact, given):
    """Whole vocabularies and lists: responses part where rounding decides, and nowhere else."""
    n = 12
    given = given[0][:n], given[1][:n]
    walks = [Walk(Rule("js", t), f) for t in (0.01, 0.1, 0.2) for f in (True, False)]
    walks.append(Walk(Rule("random", None, 0.05)))
    swept = [grow(*pair, *given, walks, SAMPLING, 24) for pair in (theirs, ours, listing)]
    runs = [walkers.result()[0] for walkers in swept]
    for engines in runs[1:]:
        parted = 0
        for i, (run, other) in enumerate(zip(runs[0], engines, strict=True)):
            row, walk = divmod(i, len(walks))
            order = exact if walks[walk].forward else exact[::-1]
            at = (given[0][row : row + 1], given[1][row : row + 1])
            parted += parting(order, at, [run.ids], [other.ids], walks[walk].rule)
        assert parted <= 4
    tokens = sum(len(run.ids) for run in runs[1])
    assert swept[1].trees.visited.sum() < tokens / 2  # what is alike is asked once


@pytest.mark.parametrize("name", ["js_full", "kl", "entropy"])
def test_rules_of_whole_distributions_are_refused_on_lists(listing, given, name):
    with pytest.raises(TokenshiftError, match=f"'{name}' takes full distributions"):
        cross_sample(*listing, *given, Rule(name, 0.1), SAMPLING, 8)


def test_what_lists_cannot_give_is_refused(listing, given):
    for sampling in (Sampling(0.6, 0.7, 8), Sampling(1.0, 1.0, 8)):
        with pytest.raises(TokenshiftError, match="takes the log-probs of the whole vocabulary"):
            cross_sample(*listing, *given, Rule("js", 0.1), sampling, 8)
    with pytest.raises(TokenshiftError, match="gives 16 log-probs a position"):
        next(listing[0].score(given[0][:1], [[3]]))


def test_texts_too_long_for_the_engine_are_refused(ours, given):
    with pytest.raises(TokenshiftError, match="has room for 512"):
        ours[0].sample(given[0][:1], given[1][:1], Sampling(1.0, 0.7, 600))


def test_a_study_may_give_a_model_more_positions_than_its_configuration(study, given):
    prompt = given[0][0]
    response = [5] * (590 - len(prompt))
    settings = {"vllm": SMALL | {"max_model_len": 600}, "backend": "vllm"}
    short = load_policy(study.with_overrides(**settings), "base")  # its configuration has 512
    with pytest.raises(TokenshiftError, match="vllm cannot start an engine"):
        next(short.score([prompt], [response]))
    settings["models.base.max_position_embeddings"] = 700
    long = load_policy(study.with_overrides(**settings), "base")
    theirs = load_policy(study, "base")  # rotary positions need no table there
    own, other = (next(p.score([prompt], [response], block=600))[1] for p in (long, theirs))
    assert (log_softmax32(own) - log_softmax32(other)).abs().max() < 1e-4


def test_next_distributions_for_the_effects_of_single_tokens(theirs, listing, given):
    texts = [prompt[: 3 + i % 4] for i, prompt in enumerate(given[0])]
    a, b = (single_token.next_logits(pair[0], texts) for pair in (theirs, listing))
    assert (log_softmax32(a) - log_softmax32(b)).abs().max() < 1e-4


def test_engines_keep_to_their_shares(study, given):
    from tokenshift_utils.models import vllm_engine as engines

    engines.stop_engines()  # those of other tests
    prompts, keys = given[0][:2], given[1][:2]
    half = [
        load_policy(engines_of(study, gpu_memory_utilization=0.45), name)
        for name in ("base", "dapo", "simplerl")
    ]
    first = [policy.sample(prompts, keys, SAMPLING) for policy in half[:2]]
    setups = [policy.setup for policy in half]
    assert [setup in engines._running for setup in setups] == [True, True, False]
    half[2].sample(prompts, keys, SAMPLING)  # no room beside them
    assert [setup in engines._running for setup in setups] == [False, False, True]
    again = [policy.sample(prompts, keys, SAMPLING) for policy in half[:2]]
    assert [r.ids for pair in first for r in pair] == [r.ids for pair in again for r in pair]
    assert sum(setup.memory for setup in engines._running) <= 1.0


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, study):
    """A random LoRA adapter on the base model, and the model merged with it."""
    return write_adapter(study.model_path("base"), tmp_path_factory.mktemp("adapter"))


def test_adapter_is_switched_on_and_off_on_one_engine(study, adapter, exact, given):
    from tokenshift_utils.models import vllm_engine as engines

    models = {n: s.model_dump(exclude_none=True) for n, s in study.models.items()}
    models |= {
        name: {"path": str(path), "label": name, "kind": "rl"}
        for name, path in zip(("lora", "merged"), adapter)
    }
    study = engines_of(study.with_overrides(models=models))
    base, lora, merged = (load_policy(study, name) for name in ("base", "lora", "merged"))
    assert base.setup == lora.setup != merged.setup
    plain = HFPolicy.load(study.model_path("base"), "base")
    on = load_adapter(HFPolicy.load(study.model_path("base"), "base"), adapter[0], "lora")
    given = given[0][:8], given[1][:8]
    runs = {p.name: p.sample(*given, SAMPLING) for p in (base, lora, merged)}
    runs["off"] = base.sample(*given, SAMPLING)
    assert [r.ids for r in runs["off"]] == [r.ids for r in runs["base"]]
    assert [r.ids for r in runs["lora"]] != [r.ids for r in runs["base"]]
    assert sum(a.ids == b.ids for a, b in zip(runs["lora"], runs["merged"])) >= 7
    of_hf = [plain.sample(*given, SAMPLING), on.sample(*given, SAMPLING)]
    assert sum(a.ids == b.ids for a, b in zip(runs["base"], of_hf[0])) >= 7
    assert sum(a.ids == b.ids for a, b in zip(runs["lora"], of_hf[1])) >= 7
    responses = [r.ids for r in runs["base"]]
    logits = [next(p.score(given[0], responses))[1] for p in (lora, merged)]
    assert (log_softmax32(logits[0]) - log_softmax32(logits[1])).abs().max() < 1e-4
    # mixed on one engine, request by request with and without it
    mixed = [
        cross_sample(base, tuned, *given, Rule("js", 0.05), SAMPLING, 8)[0]
        for tuned in (lora, merged)
    ]
    assert sum(a.ids == b.ids for a, b in zip(*mixed)) >= 7
    assert sum(run.n_switched for run in mixed[0]) > 0
    assert sum(setup.directory == base.setup.directory for setup in engines._running) <= 3


@pytest.mark.parametrize("top_logprobs", [-1, 16])
def test_a_study_runs_on_either_backend(study, tmp_path, monkeypatch, top_logprobs):
    """Through the store, with the records' own columns: the same responses, shifts and switches."""
    content = study.with_overrides(**LISTS).model_dump(mode="json", exclude_none=True)
    content["benchmarks"] = {
        n: b | {"path": str(CHECKOUT / b["path"]), "limit": 3}
        for n, b in content["benchmarks"].items()
    }
    content["models"] = {
        n: {"path": str(CHECKOUT / m["path"]), "label": m["label"], "kind": m["kind"]}
        for n, m in content["models"].items()
    }
    content.pop("evolution")
    content["sampling"]["max_new_tokens"] = 160
    frames = []
    for backend in ("transformers", "vllm"):
        root = tmp_path / backend
        file = root / "notebooks/studies/small.yaml"
        file.parent.mkdir(parents=True)
        settings = {"backend": backend, "vllm": SMALL | {"top_logprobs": top_logprobs}}
        file.write_text(yaml.safe_dump(content | settings | {"name": "small"}))
        monkeypatch.setenv("TOKENSHIFT_HOME", str(root))
        small = load_study("small")
        found = {
            "rollouts": fetch(small, Rollouts.of(small, "dapo")),
            "shifts": fetch(small, Shifts.of(small, "dapo")),
        }
        found["cross_sampling"], found["switches"] = fetch_both(
            small, CrossSampling.of(small, "base", "dapo")
        )
        again = fetch_both(small, CrossSampling.of(small, "base", "dapo"))[0]
        pd.testing.assert_frame_equal(again, found["cross_sampling"])
        frames.append(found)
    for kind in frames[0]:
        assert list(frames[1][kind].columns) == [c.name for c in records.describe(kind)]
    (a, b) = frames
    for kind in ("rollouts", "cross_sampling"):
        one, other = (f[kind].set_index(KEY) for f in frames)
        same = [
            list(x) == list(y)
            for x, y in zip(one["response_ids"], other.loc[one.index, "response_ids"])
        ]
        assert np.mean(same) > 0.9, kind
        estimates = [Bootstrap(f[kind]).accuracy(f[kind]) for f in frames]
        assert estimates[0].low <= estimates[1].value <= estimates[0].high
    on = [*KEY, "position", "token"]
    both = a["shifts"].merge(b["shifts"], on=on, suffixes=("", "_vllm"))
    assert len(both) > 0.9 * len(a["shifts"])
    assert ((both["js"] - both["js_vllm"]).abs() > 1e-4).mean() < 0.001
    rates = [
        f["cross_sampling"]["n_switched"].sum() / f["cross_sampling"]["n_tokens"].sum()
        for f in frames
    ]
    assert rates[0] == pytest.approx(rates[1], rel=0.1)


def test_lists_align(ours, given):
    """Whole vocabularies side by side are just that."""
    found = [p.score_listed([given[0][0][:4]], [given[0][0][4:]])[0] for p in ours]
    pair = align(*found, 1.0)
    assert not pair.partial and pair.names.tolist() == [list(range(128))] * len(found[0])
    assert torch.equal(pair.names.gather(1, truncate(pair.p, 0.7).ids[:, :1]), found[0].ids[:, 1:2])
    assert len(join(found)) == 2 * len(found[0])


def test_all_notebooks_run_with_engines(tmp_path):
    """The smoke study through Papermill, each kernel with engines of its own."""
    tables = {}
    for backend, only in (("vllm", []), ("transformers", ["--only", "01"])):
        root = tmp_path / backend
        engines = {"backend": backend, "workers": 0, "vllm": SMALL} if backend == "vllm" else {}
        write_smoke_root(root, **engines)
        run = subprocess.run(
            [sys.executable, "-m", "tokenshift_utils", "reproduce", "--study", "smoke", *only],
            env=os.environ | {"TOKENSHIFT_HOME": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        tables[backend] = pd.read_csv(root / "results/smoke/tables/01_sparsity.csv")
    assert len(list((tmp_path / "vllm/results/smoke/notebooks").glob("0?_*.ipynb"))) == 6
    one, other = tables.values()
    assert one.select_dtypes(object).equals(other.select_dtypes(object))
    for name in ("positions", "share_le_0.001", "share_gt_0.1", "mean"):
        # (a response that parts by rounding brings other positions)
        assert one[name].to_numpy() == pytest.approx(other[name].to_numpy(), rel=0.05, abs=1e-4)
