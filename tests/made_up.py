"""Made-up frames in the record schemas, to test code that counts and draws.

Nothing here is a measurement: numbers come from a random generator or are written by hand.
"""

import numpy as np
import pandas as pd

from tokenshift_utils.study.study import Study

LN2 = float(np.log(2))
TEXTS = {
    i: t
    for i, t in enumerate(
        ["0", "1", "2", "3", "+", "*", "=", "so", "then", "wait", "the", "\\boxed{", "}", "\n"]
    )
}


def study(**changes) -> Study:
    """A study of six models on two benchmarks; dotted changes override its keys."""

    def model(kind, label, **more):
        return {"path": "nowhere", "kind": kind, "label": label, **more}

    steps = [{"step": s, "path": f"nowhere-{s}"} for s in (3, 6, 9)]
    content = {
        "name": "made-up",
        "title": "Made up",
        "note": "Random numbers, no measurements.",
        "backend": "transformers",
        "dtype": "float32",
        "seed": 1,
        "workers": 1,
        "base": "base",
        "models": {
            "base": model("base", "Base"),
            "dapo": model("rl", "DAPO", recipe="dapo", checkpoints=steps),
            "simplerl": model("rl", "SimpleRL", recipe="simplerl"),
            "dapo-high-kl": model("weighted", "high-KL boost", recipe="high-kl"),
            "dapo-low-kl": model("weighted", "low-KL boost", recipe="low-kl"),
            "sft-far": model("sft", "SFT far"),
        },
        "benchmarks": {
            "easy": {"path": "easy.jsonl", "label": "Easy"},
            "hard": {"path": "hard.jsonl", "label": "Hard"},
        },
        "prompt": {"template": "{problem}"},
        "verifier": "boxed",
        "sampling": {"temperature": 1.0, "top_p": 0.7, "max_new_tokens": 80},
        "samples": {
            "accuracy": 8,
            "controls": 4,
            "shifts": 4,
            "checkpoints": 2,
            "cross_sampling": 4,
        },
        "thresholds": {"near_zero": [0.001, 0.01], "high_js": 0.1},
        "top_k": 10,
        "cross_sampling": {
            "pairs": ["dapo", "simplerl"],
            "thresholds": [0.01, 0.1, 0.3],
            "random_rates": [0.2, 0.6],
            "rules": {"kl": [0.05, 0.2], "entropy": [0.5], "first": [1, 4]},
            "budgets": [1, 2],
            "controls": {"models": ["sft-far"], "thresholds": [0.1]},
            "null_thresholds": [0.01, 0.1],
            "extrapolation": {"gains": [0.5, 1.0], "thresholds": [0.1]},
            "single_token": {
                "positions": 40,
                "continuations": 8,
                "strata": [0, 0.01, 0.1],
                "samples": 2,
            },
        },
        "evolution": {"model": "dapo"},
        "robustness": {
            "pair": "dapo",
            "benchmark": "hard",
            "samples": 4,
            "top_p": [0.7, 1.0],
            "temperature": [0.6, 1.0],
            "mixed_threshold": 0.1,
        },
        "statistics": {"resamples": 200, "confidence": 0.95, "seed": 0},
        "batch": {"rollout": 8, "score": 8, "cross_sampling": 8},
        "problems_per_shard": 4,
    }
    made = Study.model_validate(content)
    return made.with_overrides(**changes) if changes else made


def shifts(
    seed=0, share_high=0.05, problems=8, samples=3, benchmarks=("easy", "hard"), top_k=10, gain=0.5
) -> pd.DataFrame:
    """Shifts of one pair: JS mostly 0, `share_high` of the positions above 0.1."""
    rng = np.random.default_rng(seed)
    rows = []
    for benchmark in benchmarks:
        for p in range(problems):
            for s in range(samples):
                n = int(rng.integers(20, 80))
                answer = n - 5 if rng.random() < 0.9 else None
                rows += [(benchmark, f"{benchmark}-{p}", s, t, n, answer) for t in range(n)]
    names = ["benchmark", "problem", "sample", "position", "n_tokens", "answer_start"]
    frame = pd.DataFrame(rows, columns=names)
    frame["answer_start"] = frame["answer_start"].astype("Int32")
    n = len(frame)
    early = 1 + 4 * (frame["position"] / frame["n_tokens"] < 0.1)
    high = rng.random(n) < share_high * early
    some = rng.random(n) < 0.15
    js = np.where(high, rng.uniform(0.1, LN2, n), np.where(some, rng.exponential(0.01, n), 0.0))
    frame["js"] = np.minimum(js, LN2)
    frame["js_full"] = np.minimum(frame["js"] * 0.8 + rng.exponential(1e-4, n), LN2)
    frame["token"] = rng.choice(len(TEXTS), n, p=rng.dirichlet(np.ones(len(TEXTS))))
    frame["token_class"] = np.where(frame["token"] < 7, "structural", "other")
    frame["entropy_base"] = rng.exponential(np.where(high, 0.6, 0.08))
    frame["entropy_tuned"] = frame["entropy_base"] * 0.5
    frame["tv"], frame["tv_full"] = frame["js"] / LN2, frame["js_full"] / LN2
    frame["nucleus_base"] = frame["nucleus_tuned"] = 1 + rng.poisson(0.2, n)
    frame["kl_base_tuned"] = frame["kl_tuned_base"] = 4 * frame["js_full"]
    frame["logp_base"], frame["logp_tuned"] = -frame["entropy_base"], -frame["entropy_tuned"]
    frame["rank_base_of_tuned_top1"] = np.where(high, 1 + rng.geometric(0.6, n) % 5, 1)
    frame["logp_base_of_tuned_top1"] = np.log(np.where(high, rng.uniform(0.005, 0.4, n), 0.95))
    order = [rng.permutation(len(TEXTS))[:top_k] for _ in range(n)]
    frame["top_ids_base"] = order
    frame["top_ids_tuned"] = [o[rng.permutation(len(o))] if h else o for o, h in zip(order, high)]
    probabilities = np.log(0.6 * 0.4 ** np.arange(top_k))
    frame["top_logp_base"] = frame["top_logp_tuned"] = [probabilities] * n
    reach = np.minimum(1.0, gain + 0.1 * np.arange(top_k))
    frame["gain_in_base_topk"] = [t * reach for t in frame["tv_full"]]
    return frame


def rollouts(accuracy, seed=0, problems=8, samples=8, benchmarks=("easy", "hard")) -> pd.DataFrame:
    """Responses, each right with that probability; length in tokens."""
    rng = np.random.default_rng(seed)
    rows = [
        (b, f"{b}-{p}", s, bool(rng.random() < accuracy), int(rng.integers(20, 80)))
        for b in benchmarks
        for p in range(problems)
        for s in range(samples)
    ]
    return pd.DataFrame(rows, columns=["benchmark", "problem", "sample", "correct", "n_tokens"])


def runs(accuracy, effective, seed=0, **more) -> pd.DataFrame:
    """Cross-sampling runs: rollouts with a share of tokens switched, half of them effectively."""
    frame = rollouts(accuracy, seed=seed, **more)
    rng = np.random.default_rng(seed + 1)
    frame["n_switched"] = rng.binomial(frame["n_tokens"], min(1.0, 2 * effective))
    frame["n_effective"] = rng.binomial(frame["n_switched"], 0.5)
    frame["sum_tv"] = frame["sum_independent"] = 0.5 * frame["n_switched"]
    return frame


def single_token(seed=0, positions=40, strata=(0.0, 0.01, 0.1), continuations=8) -> pd.DataFrame:
    """Effects of single tokens, both ways: tokens differ the more often the higher the stratum."""
    rng = np.random.default_rng(seed)
    rows = []
    for tuned in ("dapo", "simplerl"):
        for direction in ("forward", "reverse"):
            pair = ("base", tuned) if direction == "forward" else (tuned, "base")
            for i in range(positions):
                k = i % len(strata)
                high = [*strata[1:], LN2][k]
                differ = bool(rng.random() < (0.05, 0.3, 0.7)[k % 3])
                wins = rng.integers(0, continuations + 1, 2) if differ else (None, None)
                both = (
                    rng.integers(max(0, sum(wins) - continuations), min(wins) + 1)
                    if differ
                    else None
                )
                effect = (wins[1] - wins[0]) / continuations if differ else 0.0
                key = (*pair, direction, "hard", f"hard-{i % 7}", i % 2, i)
                pool = (10000, 300, 200)[k % 3]
                js = rng.uniform(strata[k], high)
                rows.append((*key, k, strata[k], high, pool, js, differ, *wins, both, effect))
    names = ["primary", "intervention", "direction", "benchmark", "problem", "sample", "position"]
    names += ["stratum", "stratum_low", "stratum_high", "stratum_positions", "js", "effective"]
    names += ["successes_primary", "successes_intervention", "successes_both", "effect"]
    frame = pd.DataFrame(rows, columns=names).assign(continuations=continuations)
    for name in ("js_full", "kl_base_tuned", "kl_tuned_base", "tv"):
        frame[name] = frame["js"] * rng.uniform(0.5, 1.5, len(frame))
    for side in ("primary", "intervention"):
        frame[f"entropy_{side}"], frame[f"margin_{side}"] = rng.random((2, len(frame)))
        frame[f"logp_{side}_of_primary"], frame[f"logp_{side}_of_intervention"] = -rng.random(
            (2, len(frame))
        )
    frame["rank_primary_of_intervention"] = 1 + frame["effective"]
    frame["token_primary"] = rng.integers(0, len(TEXTS), len(frame))
    frame["token_intervention"] = frame["token_primary"] + frame["effective"]
    return frame.assign(n_tokens=80, class_base=rng.choice(["number", "word"], len(frame)))


def exact_rollouts(correct, problems=6, benchmark="easy") -> pd.DataFrame:
    """Rollouts in which every problem has the same samples, right (1) or wrong (0)."""
    rows = [
        (benchmark, f"p{i}", s, float(c)) for i in range(problems) for s, c in enumerate(correct)
    ]
    return pd.DataFrame(rows, columns=["benchmark", "problem", "sample", "correct"])


def exact_runs(correct, effective, problems=6, benchmark="easy") -> pd.DataFrame:
    """Runs in which everything is fixed: 100 tokens, `effective` of them, twice as many switched."""
    frame = exact_rollouts(correct, problems, benchmark)
    return frame.assign(n_tokens=100, n_switched=2 * effective, n_effective=effective)


def measured(found, quantity, subject="dapo"):
    """The one row of evidence on a quantity of a model."""
    row = found[(found["quantity"] == quantity) & (found["subject"] == subject)]
    assert len(row) == 1, (quantity, subject)
    return row.iloc[0]


def value(found, quantity, subject="dapo"):
    return measured(found, quantity, subject)["value"]
