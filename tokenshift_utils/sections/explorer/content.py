"""What the explorer shows: responses chosen by rule, their mixtures, and the study's accuracies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter

import numpy as np
import pandas as pd

from tokenshift_utils.pairs.rules import RULE_KINDS
from tokenshift_utils.records.tokens import tokenizer
from tokenshift_utils.report.bootstrap import Estimate
from tokenshift_utils.report.heatmap import CONTEXT, token_piece
from tokenshift_utils.report.style import color
from tokenshift_utils.sections.cross_sampling.numbers import MixtureEstimates
from tokenshift_utils.sections.cross_sampling.records import CrossRecords
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, REVERSE, Setting
from tokenshift_utils.sections.explorer.records import (
    problems_shown,
    requests,
    samples_shown,
    settings_shown,
)
from tokenshift_utils.sections.explorer.responses import OWN, ExplorerResponses, walk_of
from tokenshift_utils.sections.explorer.trees import MEASURED, SIDES
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import Study
from tokenshift_utils.tasks.benchmarks import Problem, load_benchmark

# Responses --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownSample:
    """A problem and sample of a pair, as the records have it.

    Attributes
    ----------
    nodes : the prefixes of its tree, rows of ``explorer``
    mixtures : by direction and rule, those of rising numbers of switches, the primary's own response
        first: the prefix that it is, and switched positions; None where there is none
    """

    pair: str
    benchmark: str
    problem: Problem
    sample: int
    nodes: list[dict]
    mixtures: dict[str, dict[str, list[tuple[int, list[int]] | None]]]


def responses(study: Study) -> Iterator[list[ShownSample]]:
    """The responses shown, of the first problem of every benchmark, then of the second, and so on."""
    asked = requests(study)
    executor.run(study, asked)
    found = [_of_benchmark(study, *one) for one in asked.items()]
    samples = samples_shown(study)
    for start in range(0, problems_shown(study) * samples, samples):
        if shown := [response for some in found for response in some[start : start + samples]]:
            yield shown


def _of_benchmark(
    study: Study, request: ExplorerResponses, settings: list[Setting]
) -> list[ShownSample]:
    """The responses of a pair and a benchmark."""
    problems = {problem.id: problem for problem in load_benchmark(study, request.benchmark)}
    walks = [walk_of(study, mixture) for mixture in request.mixtures]
    mixed = {
        (row["problem"], row["sample"], row["walk"]): (row["node"], row["switched"])
        for row in executor.read(study, request, "explorer_mixtures").to_pylist()
    }
    rows = executor.read(study, request, "explorer").to_pylist()
    shown = []
    for key, nodes in groupby(rows, itemgetter("problem", "sample")):
        mixtures: dict[str, dict[str, list]] = {FORWARD: {}, REVERSE: {}}
        for setting, walk in zip(settings, walks):
            own = mixed[*key, OWN[setting.direction == REVERSE]]
            stops = mixtures[setting.direction].setdefault(setting.rule, [own])
            stops.append(mixed.get((*key, walk)))
        problem, sample = key
        shown.append(
            ShownSample(
                request.tuned,
                request.benchmark,
                problems[problem],
                sample,
                list(nodes),
                mixtures,
            )
        )
    return shown


# Accuracies -------------------------------------------------------------------------------------


def mixtures(study: Study, data: CrossRecords) -> dict[Setting, pd.DataFrame]:
    """The runs of the settings shown, in their order."""
    runs = data.rules | data.runs
    return {setting: runs[setting] for setting in settings_shown(study)}


def mixture_curves(study: Study, data: CrossRecords, mixed: dict[Setting, pd.DataFrame]) -> dict:
    """By pair, direction and rule: accuracy and share replaced at each threshold, whole study.

    The first entry of each is the primary alone, on the same samples.
    """
    estimates = MixtureEstimates(study, mixed, data.rollouts)
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
            "t": setting.level,
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


def content(study: Study, data: CrossRecords) -> tuple[dict, Iterator[list[dict]]]:
    """What the page shows but for responses, and the responses, round by round.

    The texts that numbers in them stand for are ``strings`` of the first; they come with the
    responses, so that it is whole when all those wanted have been taken.
    """
    mixed = mixtures(study, data)
    pairs = study.cross_sampling.pairs
    strings: dict[str, int] = {}  # texts by number, each once
    shared = {
        "study": {"name": study.name, "title": study.title, "note": study.note},
        "base": study.base,
        "models": {
            m: {"label": short_label(study, m), "color": color(study, m)}
            for m in (study.base, *pairs)
        },
        "benchmarks": {name: spec.label for name, spec in study.benchmarks.items()},
        "rules": {s.rule: RULE_KINDS[s.rule].label for s in mixed},
        "topP": study_top_p(study),
        "topK": study.top_k,
        "samples": samples_shown(study),
        "curves": mixture_curves(study, data, mixed),
        "start": study.thresholds.high_js,
        "strings": strings,
    }

    def rounds() -> Iterator[list[dict]]:
        for some in responses(study):
            yield [_packed(study, response, strings) for response in some]

    return shared, rounds()


def short_label(study: Study, model: str) -> str:
    """A model's label without what it says in brackets: it stands in many a sentence."""
    return study.models[model].label.partition(" (")[0]


def study_top_p(study: Study) -> float:
    """The nucleus mass while mixing."""
    own = study.cross_sampling.top_p
    return study.sampling.top_p if own is None else own


def _packed(study: Study, response: ShownSample, strings: dict[str, int]) -> dict:
    """A response as the page reads it."""
    decoder, nodes = tokenizer(study), response.nodes

    def number(text: str) -> int:
        return strings.setdefault(text, len(strings))

    @cache
    def name(token: int) -> int:
        return number(decoder.decode([token]))

    pieces, before = [number("")], {0: []}
    for row in nodes[1:]:
        context = before[row["parent"]]
        before[row["node"]] = [*context[-CONTEXT:], row["token"]]
        pieces.append(number(token_piece(decoder, context, row["token"])))

    inner = [row for row in nodes if row["candidates"] is not None]
    listed = ("candidates", "candidates_p_base", "candidates_p_tuned", "candidates_nuclei")
    ends = [row for row in nodes if row["finish_reason"] is not None]
    return {
        "pair": response.pair,
        "benchmark": response.benchmark,
        "problem": response.problem.id,
        "sample": response.sample,
        "text": response.problem.problem,
        "answer": response.problem.answer,
        "parent": [row["node"] - row["parent"] for row in nodes],
        "piece": pieces,
        "name": [name(row["token"]) if row["token"] >= 0 else 0 for row in nodes],
        "own": [[row[f"own_{side}"] or 0 for row in nodes] for side in SIDES],
        "measured": {name: [_short(row[name]) for row in inner] for name in MEASURED},
        "at": [row["node"] for row in inner],
        "nuclei": [[row[f"nucleus_{side}"] for side in SIDES] for row in inner],
        "candidates": [
            [
                [name(token), _short(p), _short(q), bits]
                for token, p, q, bits in zip(*(row[column] for column in listed))
            ]
            for row in inner
        ],
        "ends": [
            [row["node"], int(row["finish_reason"] == "eos"), int(row["correct"])] for row in ends
        ],
        "answers": [number(row["answer"] or "") for row in ends],
        "mixtures": response.mixtures,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
