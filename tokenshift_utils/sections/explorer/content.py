"""What the explorer shows: responses chosen by rule, their mixtures, and the study's accuracies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tokenshift_utils.models.policy import stop_ids
from tokenshift_utils.pairs.rules import KINDS, Rule
from tokenshift_utils.pairs.walks import can_walk
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.mixture_trees import MixtureTrees
from tokenshift_utils.records.requests import items, shards_of, study_policy, verdict
from tokenshift_utils.records.tokens import tokenizer
from tokenshift_utils.report.bootstrap import Estimate
from tokenshift_utils.report.heatmap import CONTEXT, token_piece
from tokenshift_utils.report.style import color
from tokenshift_utils.sections.cross_sampling.numbers import Mixed
from tokenshift_utils.sections.cross_sampling.records import CrossRecords
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, REVERSE, Setting, roles
from tokenshift_utils.sections.explorer.trees import MEASURED, SIDES, Tree, compare, complete
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import Study
from tokenshift_utils.tasks.benchmarks import load_benchmark

SAMPLES = 2  # shown of each problem
RISING = ("first", "random")  # rules that switch more often the larger their number is


def problems_shown(study: Study) -> int:
    """How many problems of each benchmark are shown: the first ones."""
    return max(1, study.explorer.responses // (samples_shown(study) * len(study.benchmarks)))


def samples_shown(study: Study) -> int:
    """How many samples of each problem are shown: the first ones."""
    return min(SAMPLES, study.samples.cross_sampling)


# Mixtures ---------------------------------------------------------------------------------------


def mixtures(study: Study, data: CrossRecords) -> dict[Setting, pd.DataFrame]:
    """The runs of every rule that puts in the other model's token, those with few switches first."""
    found = {
        setting: frame
        for setting, frame in {**data.rules, **data.runs}.items()
        if setting.budget is None
        and (study.explorer.rules is None or setting.rule in study.explorer.rules)
        and setting.model in study.cross_sampling.pairs
        and setting.insert == "intervention"
        and _trees_behind(study, _requests(study, setting, frame)[0]) is not None
    }
    order = list(KINDS)
    ways = list(dict.fromkeys(s[:2] for s in found))

    def place(setting: Setting) -> tuple:
        rising = setting.threshold if setting.rule in RISING else -setting.threshold
        return (ways.index(setting[:2]), order.index(setting.rule), rising)

    return {setting: found[setting] for setting in sorted(found, key=place)}


def _requests(study: Study, setting: Setting, frame: pd.DataFrame) -> list[CrossSampling]:
    """What the rows of a setting were asked for with, a request a benchmark."""
    rate = None if pd.isna(frame["rate"].iloc[0]) else float(frame["rate"].iloc[0])
    here = list(dict.fromkeys(frame["benchmark"]))
    rule = Rule(setting.rule, setting.threshold, rate)
    samples = int(frame["sample"].max()) + 1
    return CrossSampling.of(study, *roles(study, setting), rule, benchmarks=here, samples=samples)


def _trees_behind(study: Study, request: CrossSampling) -> MixtureTrees | None:
    return request.behind(study) if can_walk(request.rule) else None


@dataclass(frozen=True)
class Mixture:
    """One response as the page needs it: where it ends in its tree, and where tokens were put in."""

    leaf: int
    switched: list[int]


@dataclass
class Response:
    """A problem and sample of a pair: its tree, and its mixtures by direction and rule."""

    pair: str
    benchmark: str
    tree: Tree
    leaves: dict[int, None]
    mixtures: dict[str, dict[str, list[Mixture | None]]]


def responses(
    study: Study, data: CrossRecords, mixed: dict[Setting, pd.DataFrame]
) -> Iterator[list[Response]]:
    """The responses shown, of the first problem of every benchmark, then of the second, and so on."""
    found = {
        (model, name): _of_benchmark(study, data, mixed, model, name)
        for model in study.cross_sampling.pairs
        for name in study.benchmarks
    }
    samples = samples_shown(study)
    for start in range(0, problems_shown(study) * samples, samples):
        rows = [some[start : start + samples] for some in found.values()]
        if shown := [response for some in rows for response in some]:
            yield shown


def _of_benchmark(
    study: Study, data: CrossRecords, mixed: dict[Setting, pd.DataFrame], model: str, name: str
) -> list[Response]:
    """The responses of a pair and a benchmark, with what the records say of them."""
    base, tuned = study_policy(study, study.base), study_policy(study, model)
    problems = load_benchmark(study, name)[: problems_shown(study)]
    requests = {
        setting: next(r for r in _requests(study, setting, frame) if r.benchmark == name)
        for setting, frame in mixed.items()
        if setting.model == model and (frame["benchmark"] == name).any()
    }
    trees = _trees_behind(study, next(iter(requests.values())))
    stops, limit = stop_ids(base, tuned), trees.sampling.max_new_tokens
    shown = [
        Response(model, name, Tree(item, stops, limit), {}, {})
        for item in items(study, base, name, problems, samples_shown(study))
    ]
    by_key = {(r.tree.item.problem.id, r.tree.item.sample): r for r in shown}
    for direction in (FORWARD, REVERSE):
        primary, _ = roles(study, Setting(model, direction, 0.0))
        own = _rows(data.rollouts[primary], name, by_key)
        rules = dict.fromkeys(s.rule for s in requests if s.direction == direction)
        for key, response in by_key.items():
            leaf = response.tree.record(own[key])
            response.leaves[leaf] = None
            response.mixtures[direction] = {rule: [Mixture(leaf, [])] for rule in rules}
    for setting, request in requests.items():
        ids = _rows(mixed[setting], name, by_key)
        switched = _switched(study, request, len(problems))
        for key, response in by_key.items():
            mixture = None
            if key in ids:
                leaf = response.tree.record(ids[key])
                response.leaves[leaf] = None
                mixture = Mixture(leaf, sorted(switched.get(key, [])))
            response.mixtures[setting.direction][setting.rule].append(mixture)
    for shard in range(_shards(study, len(problems))):
        table = executor.read_shard(study, executor.Job(trees.root, shard), "mixture_trees")
        names = ["problem", "sample", "parent", "token", *(f"token_{s}" for s in SIDES), *MEASURED]
        for key, rows in table.select(names).to_pandas().groupby(["problem", "sample"]):
            if key in by_key:
                by_key[key].tree.learn(rows)
    _finish(study, shown, (base, tuned), trees, stops)
    return shown


def _switched(study: Study, request: CrossSampling, problems: int) -> dict[tuple, list[int]]:
    """Where a mixture switched, by problem and sample, in the first so many problems and more."""
    trees = request.behind(study)
    (walk, walked), key = trees.walks[0], executor.key_of(study, trees)
    samples, found = min(walked, samples_shown(study)), {}
    shards = shards_of(study, request.benchmark, study.problems_per_shard)
    for shard in range(_shards(study, problems)):
        switches = trees.switches(study, key, shard, walk, samples)
        for row, position in zip(switches["row"].tolist(), switches["position"].tolist()):
            problem, sample = divmod(row, samples)
            found.setdefault((shards[shard][problem].id, sample), []).append(position)
    return found


def _shards(study: Study, problems: int) -> int:
    """How many shards hold the first so many problems of a benchmark."""
    return -(-problems // study.problems_per_shard)


def _finish(study: Study, shown: list[Response], policies, trees: MixtureTrees, stops) -> None:
    """What the records do not hold: candidates, and how each model goes on by itself."""
    tree = [response.tree for response in shown]
    leaves = [list(response.leaves) for response in shown]
    with executor.one_thread():
        compare(tree, leaves, policies, trees.sampling, study.top_k, study.batch.score)
        complete(tree, policies, trees.sampling, stops, study.batch.rollout)


def _rows(frame: pd.DataFrame, name: str, wanted) -> dict[tuple, np.ndarray]:
    """Response ids of the rows of a benchmark, by problem and sample."""
    here = frame[frame["benchmark"] == name]
    keys = zip(here["problem"], here["sample"].astype(int))
    return {key: ids for key, ids in zip(keys, here["response_ids"]) if key in wanted}


# Accuracies -------------------------------------------------------------------------------------


def curves(study: Study, data: CrossRecords, mixed: dict[Setting, pd.DataFrame]) -> dict:
    """By pair, direction and rule: accuracy and share replaced at each threshold, whole study.

    The first entry of each is the primary alone, on the same samples.
    """
    estimates = Mixed(study, mixed, data.rollouts)
    found: dict = {}
    for setting, frame in mixed.items():
        names = list(dict.fromkeys(frame["benchmark"]))
        pool = list(estimates.parts[setting])[-1]
        ways = found.setdefault(setting.model, {}).setdefault(setting.direction, {})
        if setting.rule not in ways:
            before = _triple(estimates.accuracy(setting, pool, "before"))
            ways[setting.rule] = {
                "where": names[0] if len(names) < len(study.benchmarks) else None,
                "goal": _triple(estimates.accuracy(setting, pool, "goal")),
                "stops": [{"t": None, "accuracy": before, "share": [0.0] * 3}],
            }
        stop = {
            "t": setting.threshold,
            "accuracy": _triple(estimates.accuracy(setting, pool)),
            "share": _triple(estimates.count(setting, pool, per="n_tokens")),
            "responses": len(frame),
        }
        ways[setting.rule]["stops"].append(stop)
    return found


def _triple(estimate: Estimate) -> list[float | None]:
    values = (estimate.value, *estimate.interval())
    return [None if np.isnan(v) else round(v, 5) for v in values]


# The page's content -----------------------------------------------------------------------------


class Strings:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.number.setdefault(text, len(self.number))


def content(study: Study, data: CrossRecords) -> tuple[dict, Iterator[list[dict]]]:
    """What the page shows but for responses, and the responses, round by round.

    The texts that numbers in them stand for are ``strings`` of the first; they come with the
    responses, so that it is whole when all those wanted have been taken.
    """
    mixed = mixtures(study, data)
    pairs = study.cross_sampling.pairs
    strings = Strings()
    shared = {
        "study": {"name": study.name, "title": study.title, "note": study.note},
        "base": study.base,
        "models": {
            m: {"label": short_label(study, m), "color": color(study, m)}
            for m in (study.base, *pairs)
        },
        "benchmarks": {name: spec.label for name, spec in study.benchmarks.items()},
        "rules": {s.rule: KINDS[s.rule].label for s in mixed},
        "topP": study_top_p(study),
        "topK": study.top_k,
        "samples": samples_shown(study),
        "curves": curves(study, data, mixed),
        "start": study.thresholds.high_js,
        "strings": strings.number,
    }

    def rounds() -> Iterator[list[dict]]:
        for some in responses(study, data, mixed):
            yield [_packed(study, response, strings) for response in some]

    return shared, rounds()


def short_label(study: Study, model: str) -> str:
    """A model's label without what it says in brackets: it stands in many a sentence."""
    return study.models[model].label.partition(" (")[0]


def study_top_p(study: Study) -> float:
    """The nucleus mass while mixing."""
    own = study.cross_sampling.top_p
    return study.sampling.top_p if own is None else own


def lacks_trees(study: Study) -> str:
    """Why a study's mixtures leave no trees to read, as one sentence; "" where they do."""
    request = CrossSampling.of(study, study.base, study.cross_sampling.pairs[0])[0]
    if request.behind(study) is not None:
        return ""
    return (
        f"study {study.name} mixes with the backend {study.backend}, which leaves no mixture trees "
        "for an explorer to read: use the backend transformers, or do without the explorer"
    )


def _packed(study: Study, response: Response, strings: Strings) -> dict:
    """A response as the page reads it."""
    tree, item = response.tree, response.tree.item
    decoder = tokenizer(study)
    tokens: dict[int, int] = {}

    def name(token: int) -> int:
        if token not in tokens:
            tokens[token] = strings(decoder.decode([token]))
        return tokens[token]

    pieces, before = [strings("")], {0: []}
    for node in range(1, len(tree.parent)):
        context = before[tree.parent[node]]
        before[node] = [*context[-CONTEXT:], tree.token[node]]
        pieces.append(strings(token_piece(decoder, context, tree.token[node])))

    ends = [node for node in range(1, len(tree.parent)) if tree.ends(node)]
    texts = [tree.ids(node) for node in ends]
    reasons = ["eos" if ids[-1] in tree.stops else "length" for ids in texts]
    judged = verdict(study_policy(study, study.base), texts, reasons, [item] * len(ends))
    inner = sorted(tree.candidates)
    return {
        "pair": response.pair,
        "benchmark": response.benchmark,
        "problem": item.problem.id,
        "sample": item.sample,
        "text": item.problem.problem,
        "answer": item.problem.answer,
        "parent": [node - parent for node, parent in enumerate(tree.parent)],
        "piece": pieces,
        "name": [name(token) if token >= 0 else 0 for token in tree.token],
        "own": [[tree.own[s].get(n, 0) for n in range(len(tree.parent))] for s in range(2)],
        "measured": {name: [_short(tree.measured[n][name]) for n in inner] for name in MEASURED},
        "at": inner,
        "nuclei": [tree.candidates[n][1] for n in inner],
        "candidates": [
            [[name(t), _short(p), _short(q), bits] for t, p, q, bits in tree.candidates[n][0]]
            for n in inner
        ],
        "ends": [[n, int(r == "eos"), int(c)] for n, r, c in zip(ends, reasons, judged["correct"])],
        "answers": [strings(answer or "") for answer in judged["answer"]],
        "mixtures": {
            way: {
                rule: [m and [m.leaf, m.switched] for m in found] for rule, found in rules.items()
            }
            for way, rules in response.mixtures.items()
        },
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
