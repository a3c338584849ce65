"""What the paper's reviewers asked for and the paper lacks, answered from a study's tables.

Each question has a function that makes its answer, one line, from the tables that notebooks 01 to 05
left; None where a table that it needs is not there, or holds no number for it. One that opens with "in
part: " leaves some of what was asked open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from tokenshift_utils import paths
from tokenshift_utils.files import read_csv
from tokenshift_utils.sections.claims import NOT_TESTABLE
from tokenshift_utils.sections.common import (
    last_rows,
    of_kind,
    percent,
    pooled,
    rows_with,
    say_each,
)

ANSWERED, PART, OPEN = "answered", "in part", "not measured"


@dataclass(frozen=True)
class Found:
    """What a study's notebooks left: tables by name, verdicts of claims."""

    study: object
    claims: pd.DataFrame

    def __call__(self, name: str, *columns: str) -> pd.DataFrame:
        """A table; without rows where it is not there, or lacks one of the columns."""
        file = paths.tables(self.study.name) / f"{name}.csv"
        empty = pd.DataFrame(columns=list(columns))
        if not file.is_file() or not file.read_bytes().strip():
            return empty
        table = read_csv(file, "run the notebook that makes it again (tokenshift reproduce)")
        return table if set(columns) <= set(table.columns) else empty

    @cached_property
    def pair(self) -> str | None:
        """The label of the first RL model."""
        names = of_kind(self.study, "rl")
        return self.study.models[names[0]].label if names else None

    def measured(self, *ids: str) -> str | None:
        """What was measured of some claims, model by model; None where nothing was."""
        claims = self.claims[self.claims["claim"].isin(ids)]
        claims = claims[claims["verdict"] != NOT_TESTABLE]
        return _listed("{claim} ({subject}): {measured}, {verdict}", claims)


def _listed(said: str, rows: pd.DataFrame, opening: str = "") -> str | None:
    """What is said of each row, see `say`; None where there is none."""
    return opening + "; ".join(say_each(said, rows).splitlines()) if len(rows) else None


def _gains(found: Found, arms: Callable[[pd.Series], bool]) -> str | None:
    table = found("04_weighted_objective", "role", "gain", "arm", "objective").dropna(subset="gain")
    rows = table[[arms(row) for _, row in table.iterrows()]]
    rows = rows.assign(s=np.where(rows.get("paired_seeds", 0) == 1, "", "s"))
    return _listed("{objective} {gain:points} over {paired_seeds:.0f} seed{s:}", rows)


def _boosts(found: Found) -> str | None:
    return _gains(found, lambda row: row["role"] == "confirmatory")


def _other_objectives(found: Found) -> str | None:
    return _gains(found, lambda row: "entropy" in row["arm"] or "grpo-" in row["arm"])


def _details(found: Found) -> str | None:
    table = found("02_curves", "rule", "threshold", "direction", "model")
    cuts = {rule: np.unique(rows["threshold"]) for rule, rows in table.groupby("rule")}
    if "js" not in cuts:
        return None
    js, rates, pairs = cuts["js"], cuts.get("random", ()), table["model"].nunique()
    return (
        f"{len(js)} thresholds of JS, {js.min():g} to {js.max():g} nats (-1: everywhere), {len(rates)} rates "
        f"of random positions, {pairs} pair{'' if pairs == 1 else 's'}, both directions; all settings in the study file"
    )


def _controls(found: Found) -> str | None:
    text, high = found.measured("1-sft-denser"), f"share_gt_{found.study.thresholds.high_js:g}"
    table = pooled(found("01_sparsity", "model", "support", "benchmark", high))
    tuned = last_rows(found.study, table, ("dpo",), support="nucleus")
    said = "".join(f"; {row['pair']}: {percent(row, high)} of positions are high" for row in tuned)
    return text and (text + said if tuned else f"{PART}: no preference-tuned model; {text}")


def _families(found: Found) -> str | None:
    if found.claims["verdict"].eq(NOT_TESTABLE).all():
        return None
    labels = ", ".join(b.label for b in found.study.benchmarks.values())
    return f"{PART}: one base model, {found.study.models[found.study.base].label}, on {labels}"


def _sampler(found: Found) -> str | None:
    table = found("05_sampler", "nucleus_high", "top_p", "temperature")
    if table.empty:
        return None
    parts = [
        f"{100 * high:.2g}% at top-p {p:g}, T {t:g}"
        for high, p, t in table[["nucleus_high", "top_p", "temperature"]].itertuples(index=False)
    ]
    return f"high-JS positions: {'; '.join(parts)}"


def _truncation(found: Found) -> str | None:
    rows = pooled(found("05_support", "nucleus_high_full_high", "pair"))
    rows = rows.dropna(subset="nucleus_high_full_high")
    opening = "of the high positions these are high in full: "
    return _listed("{nucleus_high_full_high:%} ({pair})", rows, opening)


def _trajectories(found: Found) -> str | None:
    rows = pooled(found("05_trajectories", "trajectories", "nucleus_high"))
    return _listed("{nucleus_high:%} on {trajectories}", rows, "high-JS positions: ")


def _everywhere(found: Found) -> str | None:
    rows = rows_with(found("03_rank", "pair", "at", "top1"), pair=found.pair)
    return _listed("{top1:%} ({at})", rows, "RL's first choice is base's at ")


def _why_js(found: Found) -> str | None:
    table = found("01_why_js", "change", "kl_base_tuned", "js")
    if table.empty:
        return None
    row = table.iloc[-1]
    return f"{row['change']}: KL {row['kl_base_tuned']:.3g}, JS {row['js']:.3g} nats"


def _sequences(found: Found) -> str | None:
    table = rows_with(found("01_sparsity", "pair", "benchmark", "positions"), pair=found.pair)
    if table.empty:
        return None
    study = found.study
    return (
        f"each RL model's own responses: {pooled(table)['positions'].iloc[0]:,} positions of {found.pair}, "
        f"{study.samples.shifts} responses a problem, top-p {study.sampling.top_p:g}, temperature "
        f"{study.sampling.temperature:g}"
    )


def _critical(found: Found) -> str | None:
    table = found("02_single_token", "direction", "js_stratum", "positions", "effect_different")
    table = table[(table["positions"] >= 100) & table["effect_different"].notna()]
    said = "{effect_different:points} at JS {js_stratum} ({direction})"
    return _listed(said, table, "effect of one token that differs: ")


@dataclass(frozen=True)
class OpenQuestion:
    """An open question, where its answer is looked up, and what computes the answer: a function, or
    the claims of which it says what was measured."""

    asks: str
    artefact: str
    answer: Callable[[Found], str | None] | tuple[str, ...]

    def of(self, found: Found) -> str | None:
        """The answer of a study; None where it has none."""
        return self.answer(found) if callable(self.answer) else found.measured(*self.answer)


QUESTIONS = (
    OpenQuestion("Table 2 spelled out, with variance: do the boosts gain?", "04_weighted_objective", _boosts),
    OpenQuestion("Against the 20% most entropic tokens, and on GRPO?", "04_weighted_objective", _other_objectives),
    OpenQuestion("Does JS beat random positions at the same switch rate?", "02_curves",
             ("2-beats-random-switched", "2-beats-random")),
    OpenQuestion("Every threshold and detail of cross-sampling?", "02_curves", _details),
    OpenQuestion("SFT and preference-tuned controls?", "01_sparsity", _controls),
    OpenQuestion("Other model families, tasks that are not maths?", "study file", _families),
    OpenQuestion("Sensitivity to top-p, temperature, samples?", "05_sampler, 05_top_p", _sampler),
    OpenQuestion("Is JS on truncated distributions an artefact of truncation?", "05_support", _truncation),
    OpenQuestion("On-policy bias: base's and mixed trajectories?", "05_trajectories", _trajectories),
    OpenQuestion("JS against entropy, not only bins?", "figure 01_js_entropy",
             ("1-low-js-entropy", "1-high-js-both-ends")),
    OpenQuestion("Position relative to landmarks?", "figure 01_position",
             ("1-start", "1-start-later", "1-end")),
    OpenQuestion("Top-k and rank at all positions?", "03_rank, 03_topk_overlap", _everywhere),
    OpenQuestion("Why JS rather than KL?", "01_why_js", _why_js),
    OpenQuestion("On which sequences was it measured?", "01_sparsity", _sequences),
    OpenQuestion("What makes a position critical?", "02_single_token", _critical),
)  # fmt: skip


def questions_table(studies: dict, claims: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The fifteen questions: number, question, answer of the first study, artefact, status by study.

    ``claims`` are the studies' tables of claims, see ``overview.claims_table``.
    """
    found = {name: Found(study, claims[name]) for name, study in studies.items()}
    rows = []
    for number, question in enumerate(QUESTIONS, 1):
        answers = {name: question.of(own) for name, own in found.items()}
        status = {name: _status(answer) for name, answer in answers.items()}
        rows.append(
            {"number": number, "question": question.asks}
            | {"answer": next(iter(answers.values())) or OPEN, "artefact": question.artefact}
            | status
        )
    return pd.DataFrame(rows)


def _status(answer: str | None) -> str:
    return OPEN if not answer else PART if answer.startswith(f"{PART}: ") else ANSWERED


def say_questions(table: pd.DataFrame) -> str:
    """How many questions each study answers, and which are open."""
    lines = []
    for name in table.columns[4:]:
        counts = table[name].value_counts()
        left = ", ".join(table.loc[table[name] == OPEN, "number"].astype(str))
        lines.append(
            f"**{name}**: {counts.get(ANSWERED, 0)} of {len(table)} questions are answered, "
            f"{counts.get(PART, 0)} in part{f'; not measured: {left}' if left else ''}."
        )
    return "\n".join(lines)
