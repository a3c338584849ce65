"""What a sweep of mixtures costs: all walks of a pair through its trees, and each by itself.

Costs are multiples of plain generation of the same number of responses, by base and tuned half
each, in the same run. On a CPU time is the process's own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenshift_utils.bench import harness
from tokenshift_utils.bench.harness import TOP_P, PolicyPair, PrintedColumn
from tokenshift_utils.models.policy import Sampling, stop_ids
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.grow import grow
from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.pairs.walks import Walk, Walkers
from tokenshift_utils.sections.cross_sampling import settings
from tokenshift_utils.store.executor import one_thread
from tokenshift_utils.store.progress import Progress
from tokenshift_utils.study.study import load_study

RATES = (0.01, 0.02, 0.04, 0.1)  # shares of base's positions above the thresholds of a random pair
QUICK = 5  # a rough measurement takes so many times fewer responses, and mixtures by themselves
COLUMNS = (
    PrintedColumn("pair", "pair", width="<18"),
    PrintedColumn("device", "device", width="<6"),
    PrintedColumn("settings", "settings"),
    PrintedColumn("responses", "responses", width=">9"),
    PrintedColumn("tokens", "tokens"),
    PrintedColumn("distinct_prefixes", "prefixes"),
    PrintedColumn("cost_ratio", "cost", ".2f", ">5"),
    PrintedColumn("cost_ratio_separate", "separate", ".2f"),
)


@dataclass(frozen=True)
class Sweep:
    """A pair, and how many responses of at most how many tokens each mixture has."""

    pair: str
    batch: int
    rows: int
    tokens: int
    device: str = "cpu"
    every: int = 1  # one in so many mixtures is decoded by itself too, to stand for all


SWEEPS = (
    Sweep("tiny", 240, rows=60, tokens=320),
    Sweep("random-30m", 8, rows=2, tokens=512),
    Sweep("qwen2.5-1.5b-shape", 64, rows=8, tokens=512, device="cuda"),
)


def study_walks() -> list[Walk]:
    """What section 2 asks of the tiny study's first pair on its benchmark, but for random rules."""
    study = load_study("tiny")
    wanted = [*settings.curve_settings(study), *settings.focus_settings(study)]
    mine = [s for s in wanted if s.model == study.cross_sampling.pairs[0] and s.rule != "random"]
    rules = [Rule(s.rule, s.level, budget=s.budget) for s in mine]
    return [
        Walk(rule, s.direction == settings.FORWARD, Insertion(s.insert, s.gain))
        for rule, s in zip(rules, mine)
    ]


def random_walks(pair: PolicyPair, sampling: Sampling, responses: list[list[int]]) -> list[Walk]:
    """Both directions of JS rules at quantiles of JS along base's own responses, and of always."""
    js = harness.js_along(pair, responses, sampling, len(responses))
    thresholds = [-1.0, *(float(np.quantile(js, 1.0 - rate)) for rate in RATES)]
    return [Walk(Rule("js", t), forward) for t in thresholds for forward in (True, False)]


def controls(walkers: Walkers) -> list[Walk]:
    """Random positions, as many as each JS rule of the trained pair has switched."""
    runs, _ = walkers.result()
    made = []
    for i, walk in enumerate(walkers.walks):
        if walk.rule.name == "js" and walk.rule.budget is None and walk.insertion == Insertion():
            mine = [runs[j] for j in np.flatnonzero(walkers.walk == i)]
            rate = sum(run.n_switched for run in mine) / sum(len(run.ids) for run in mine)
            made.append(Walk(Rule("random", None, rate), walk.forward))
    return made


def measure(sweep: Sweep, pair: PolicyPair, progress: Callable[[], Any] = lambda: None) -> dict:
    """A row of ``bench``; ``progress`` is called thrice."""
    sampling = Sampling(pair.temperature, TOP_P, sweep.tokens)
    policies = pair.primary, pair.intervention
    prompts, stops = pair.prompts, stop_ids(*policies)
    keys = list(range(len(prompts)))
    own = [key + len(prompts) for key in keys]

    def plain(policy) -> list[list[int]]:
        drawn = policy.sample(prompts, keys, sampling, stops, sweep.batch)
        return [response.ids for response in drawn]

    both = [harness.seconds(lambda p=policy: plain(p), sweep.device) for policy in policies]
    one = sum(taken for taken, _ in both) / (2 * len(prompts))  # of a plain response
    progress()

    def walk_all(walks, trees=None) -> Walkers:
        return grow(*policies, prompts, keys, walks, sampling, sweep.batch, own, trees=trees)

    if sweep.pair == "tiny":
        walks = study_walks()
        first, walkers = harness.seconds(lambda: walk_all(walks), sweep.device)
        random = controls(walkers)
        second, others = harness.seconds(lambda: walk_all(random, walkers.trees), sweep.device)
        together, runs = first + second, [*walkers.result()[0], *others.result()[0]]
        walks += random
    else:
        walks = random_walks(pair, sampling, both[0][1])
        together, walkers = harness.seconds(lambda: walk_all(walks), sweep.device)
        runs = walkers.result()[0]
    prefixes = int(walkers.trees.visited.sum())
    progress()
    apart = 0.0
    for walk in walks[:: sweep.every]:
        order = policies if walk.forward else policies[::-1]
        apart += harness.seconds(
            lambda order=order, walk=walk: cross_sample(
                *(*order, prompts, keys, walk.rule, sampling, sweep.batch),
                insertion=walk.insertion,
                null_keys=own,
            ),
            sweep.device,
        )[0]
    progress()
    apart *= len(walks) / len(walks[:: sweep.every])
    tokens = sum(len(run.ids) for run in runs)
    counts = (len(walks), len(runs), tokens, prefixes)
    ratios = together / (one * len(runs)), apart / (one * len(runs))
    return harness.filled(COLUMNS, sweep.pair, sweep.device, *counts, *ratios)


def bench(pairs: Sequence[str] = (), quick: bool = False) -> Iterator[dict]:
    """Measure sweeps of some pairs, all that can be here where none is named.

    Returns
    -------
    One dict a pair when it is measured, with the fields of ``COLUMNS``: ``settings`` mixtures, ``responses`` of all
    of them together, their ``tokens``, and the ``distinct_prefixes`` at which these were taken.
    ``cost_ratio`` is the time of all mixtures from one set of trees over that of plain generation
    of as many responses, ``cost_ratio_separate`` that of each mixture decoded by itself.
    """
    sweeps = harness.select_cases(SWEEPS, pairs)
    if quick:
        sweeps = [
            replace(s, rows=max(1, s.rows // QUICK), tokens=s.tokens // 2, every=QUICK)
            for s in sweeps
        ]
    return _measure_all(sweeps)


def _measure_all(sweeps: Sequence[Sweep]) -> Iterator[dict]:
    with one_thread(), Progress(3 * len(sweeps), "part", "bench") as progress:
        for sweep in sweeps:
            progress.now(f"{sweep.pair}, batch {sweep.batch}")
            pair = harness.make_pair(sweep.pair, sweep.device, sweep.rows)
            yield measure(sweep, pair, progress.advance)
