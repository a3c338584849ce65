"""The paper's claims as predicates: read from claims.yaml, each with its criterion and reason.

All of it was first fixed before any trained model of the tiny study was analysed (rough figures of an
earlier prototype of such a study, on an easier task, were known). What was changed since, why, and
whether before or after the numbers were seen, is in criteria_log.yaml. A claim names the quantities
it looks at, the bound each has to keep, and why that bound. The notebooks measure the quantities
(with intervals) and write them as tables of *evidence*; `evaluate` reads those and computes a
verdict:

- ``supported``: the whole interval of every quantity keeps its bound;
- ``not supported``: the whole interval of at least one quantity violates its bound;
- ``undecided``: an interval straddles its bound;
- ``not testable``: the study lacks what the claim is about, or nothing could be measured.

Evidence has two kinds of intervals. Those over *problems* resample problems (all samples of a drawn
problem kept) and speak of one trained model. Those over *seeds* compare models that were trained
alike, on fixed problems. A claim is judged over problems and its interval over seeds stands beside
it, unless it says ``over: seeds``: comparisons of recipes are of that kind, since what one run has
over another says nothing of the recipe. A quantity that is a best or worst of several settings has an
interval that is corrected for their number.

Every claim is graded by how much its verdict tells: ``structural`` (near certain by design of the
study), ``direction`` (it could have gone the other way) or ``size`` (a number of the paper's is met).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, model_validator
from scipy import stats

from tokenshift_utils.report.seeds import holm
from tokenshift_utils.sections.paper import fact
from tokenshift_utils.study.schema import Role

FILE = Path(__file__).with_name("claims.yaml")
LOG = Path(__file__).with_name("criteria_log.yaml")

# Cuts that the quantities of claims.yaml are measured at.
NEAR_ZERO = 0.01  # nats. The paper's cut for "near zero" is not known, see the sparsity claims.
HIGH_JS = 0.1  # nats, the paper's cut for token mechanics
LOW_ENTROPY = 0.5 * math.log(2)  # nats: at most half the entropy of a fair coin
HIGH_ENTROPY = math.log(2)  # nats: at least the entropy of a fair coin
PAPER_BUDGET = 0.101  # effectively replaced share of tokens: the largest in the paper's Table 1

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_TESTABLE)

LACKING = {"rl": "RL model", "sft": "SFT control", "weighted": "model of a weighted objective"}

# `seeds`: how many the interval is over; NaN, or no such column, where it is over problems.
EVIDENCE_COLUMNS = ("quantity", "subject", "value", "low", "high", "note")
SEEDS_COLUMNS = ("quantity", "subject", "seeds", "value", "low", "high")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Entry):
    """A bound on one quantity: strictly above `above`, strictly below `below`, or both."""

    quantity: str
    above: float = -math.inf
    below: float = math.inf

    @model_validator(mode="after")
    def _bounds(self):
        if not (-math.inf < self.above or self.below < math.inf) or self.above >= self.below:
            raise ValueError(f"'{self.quantity}' needs a bound 'above' or 'below', in order")
        return self

    def text(self) -> str:
        """The bound in words."""
        if self.above > -math.inf and self.below < math.inf:
            bound = f"between {self.above:g} and {self.below:g}"
        elif self.above > -math.inf:
            bound = f"above {self.above:g}"
        else:
            bound = f"below {self.below:g}"
        return f"{QUANTITIES[self.quantity]}: {bound}"


class Claim(_Entry):
    """A claim of the paper and how it is tested; what the keys mean is said in claims.yaml."""

    id: str
    fact: str
    grade: Literal["structural", "direction", "size"]
    subjects: tuple[Role, ...]
    checks: tuple[Check, ...]
    reason: str
    requires: tuple[Role, ...] = ()
    over: Literal["problems", "seeds"] = "problems"
    lead: str = ""

    @cached_property
    def section(self) -> int:
        """The section of the paper that it is of."""
        return int(self.id[0])


class _File(_Entry):
    quantities: dict[str, str]
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _names_refer(self):
        ids = [claim.id for claim in self.claims]
        for claim in self.claims:
            if ids.count(claim.id) > 1 or fact(claim.fact).section != claim.section:
                raise ValueError(f"claim '{claim.id}' is there twice, or its fact is of elsewhere")
            for check in claim.checks:
                if check.quantity not in self.quantities:
                    raise ValueError(f"claim '{claim.id}': no quantity '{check.quantity}'")
        return self


class Change(_Entry):
    """A change of a claim's criterion; `seen`: before or after the numbers it decides were seen."""

    date: date
    claim: str
    old: str
    new: str
    why: str
    seen: Literal["before", "after"]


class _Log(_Entry):
    changes: dict[str, tuple[Change, ...]]

    @model_validator(mode="after")
    def _of_their_section(self):
        for section, changes in self.changes.items():
            for change in changes:
                if not change.claim.startswith(f"{section}-"):
                    raise ValueError(f"claim '{change.claim}' is not of section {section}")
        return self


_file = _File.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
QUANTITIES, CLAIMS = _file.quantities, _file.claims


def criteria_log(file: Path = LOG) -> pd.DataFrame:
    """Every change of a criterion, by date: date, claim, old, new, why, seen."""
    log = _Log(changes=yaml.safe_load(file.read_text(encoding="utf-8")))
    rows = [change.model_dump() for changes in log.changes.values() for change in changes]
    table = pd.DataFrame(rows, columns=list(Change.model_fields))
    return table.sort_values("date", kind="stable").reset_index(drop=True)


def judge(check: Check, value: float, low: float, high: float) -> str:
    """Verdict of one check from an estimate and its interval (NaN value: not testable)."""
    if any(math.isnan(x) for x in (value, low, high)):
        return NOT_TESTABLE
    if low > check.above and high < check.below:
        return SUPPORTED
    if high <= check.above or low >= check.below:
        return NOT_SUPPORTED
    return UNDECIDED


def _combine(verdicts: list[str]) -> str:
    """One false check refutes a claim; one that could not be tested leaves it untested."""
    for verdict in (NOT_SUPPORTED, NOT_TESTABLE, UNDECIDED):
        if verdict in verdicts:
            return verdict
    return SUPPORTED


def chance(
    check: Check, value: float, low: float, high: float, level: float, seeds: float
) -> float:
    """One-sided p that the quantity does not keep its bound; NaN without an interval.

    The half of the interval of confidence ``level`` that faces the bound is read as a normal one's, or
    as Student's over ``seeds``, so that p and the verdict agree; of two bounds the worse counts
    (intersection-union, so no correction for their number).
    """
    if not np.isfinite([value, low, high]).all():
        return math.nan
    law = stats.norm if math.isnan(seeds) else stats.t(max(seeds - 1, 1))
    unit = law.ppf(0.5 + level / 2)
    sides = ((value - check.above, value - low), (check.below - value, high - value))
    p = max(law.sf(room * unit / max(half, 1e-300)) for room, half in sides)
    return round(float(p), 6)  # tails beyond are not to be believed


def estimates(
    roles: dict[str, Collection[Role]], evidence: pd.DataFrame, confidence: float = 0.95
) -> pd.DataFrame:
    """What was measured for every check of every claim, numbers only.

    One row a claim, subject, check and kind of interval (``over``: problems or seeds) that the
    evidence has: claim, subject, quantity, above, below, value, low, high, seeds, over, note, verdict
    and p (see `chance`). Parameters as for `evaluate`.
    """
    rows = []
    evidence = evidence.assign(seeds=evidence.get("seeds", np.nan))
    for claim in CLAIMS:
        for _, subject in _subjects(claim, roles):
            for check in claim.checks:
                same = evidence["quantity"] == check.quantity
                for _, row in evidence[same & (evidence["subject"] == subject)].iterrows():
                    triple = (row["value"], row["low"], row["high"])
                    rows.append(
                        {"claim": claim.id, "subject": subject}
                        | check.model_dump()
                        | dict(zip(("value", "low", "high"), triple))
                        | {
                            "seeds": row["seeds"],
                            "over": "problems" if math.isnan(row["seeds"]) else "seeds",
                            "note": row["note"] if isinstance(row["note"], str) else "",
                            "verdict": judge(check, *triple),
                            "p": chance(check, *triple, confidence, row["seeds"]),
                        }
                    )
    columns = ["claim", "subject", *Check.model_fields, "value", "low", "high", "seeds", "over"]
    return pd.DataFrame(rows, columns=[*columns, "note", "verdict", "p"])


def _subjects(claim: Claim, roles: dict[str, Collection[Role]]) -> list[tuple[Role, str]]:
    """(role, model) of all whom a claim is about; a role that no model has stands for itself."""
    having = {role: [n for n, own in roles.items() if role in own] for role in claim.subjects}
    return [(role, name) for role in having for name in having[role] or [role]]


def _in_words(claim: Claim, rows: pd.DataFrame, over: str) -> tuple[list[str], list[str]]:
    """(verdicts, texts), one a check of a claim, of the intervals over problems or seeds."""
    verdicts, texts = [], []
    for check in claim.checks:
        found = rows[(rows["quantity"] == check.quantity) & (rows["over"] == over)]
        if found.empty:
            verdicts.append(NOT_TESTABLE)
            texts.append("not measured in this study" + " over seeds" * (over == "seeds"))
            continue
        row = found.iloc[0]
        seeds = (
            f"{row['seeds']:.0f} seed{'' if row['seeds'] == 1 else 's'}" if over == "seeds" else ""
        )
        note = row["note"] or seeds
        verdicts.append(row["verdict"])
        if row["verdict"] == NOT_TESTABLE:
            texts.append(note or "could not be measured")
        else:
            number = f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
            texts.append(f"{number} ({note})" if note else number)
    return verdicts, texts


def evaluate(
    roles: dict[str, Collection[Role]], evidence: pd.DataFrame, confidence: float = 0.95
) -> pd.DataFrame:
    """Judge every claim, of each model that has a role it is about.

    Parameters
    ----------
    roles : model name -> kind and recipe of the study's models; a role that no model has stands for
        itself, as a claim that can't be tested.
    evidence : columns `EVIDENCE_COLUMNS` and, where intervals are over training seeds, ``seeds``; one
        row a quantity, subject and kind of interval, written by the notebooks.
    confidence : level of the evidence's intervals.

    Returns
    -------
    One row a claim and subject: claim, grade, subject, says, criterion, measured, seeds (the interval
    over training seeds, where there is one beside that which decides), verdict, seeds_verdict (of that
    interval), p_holm (the largest p of its checks, corrected within the section for the number of claims
    and subjects), reason and witness.
    """
    rows, found = [], estimates(roles, evidence, confidence)
    for claim in CLAIMS:
        stated = fact(claim.fact)
        for role, subject in _subjects(claim, roles):
            own = found[(found["claim"] == claim.id) & (found["subject"] == subject)]
            beside, over_seeds, p = "", "", math.nan
            lacking = [
                r for r in (role, *claim.requires) if not any(r in o for o in roles.values())
            ]
            if lacking:
                what = LACKING.get(lacking[0], f"model of recipe {lacking[0]}")
                verdict, measured = NOT_TESTABLE, f"this study has no {what}"
            elif not claim.checks:
                verdict, measured = NOT_TESTABLE, "no number decides it"
            else:
                verdicts, texts = _in_words(claim, own, claim.over)
                verdict, measured = _combine(verdicts), "; ".join(texts)
                if claim.over == "problems" and (own["over"] == "seeds").any():
                    found_over_seeds, said = _in_words(claim, own, "seeds")
                    beside, over_seeds = "; ".join(said), _combine(found_over_seeds)
                if verdict != NOT_TESTABLE:
                    p = own.loc[own["over"] == claim.over, "p"].max(skipna=False)
            rows.append(
                {
                    "claim": claim.id,
                    "grade": claim.grade,
                    "subject": subject,
                    "says": stated.says,
                    "criterion": "; ".join(c.text() for c in claim.checks) or "none",
                    "measured": measured,
                    "seeds": beside,
                    "verdict": verdict,
                    "seeds_verdict": over_seeds,
                    "p_holm": p,
                    "reason": claim.reason,
                    "witness": stated.witness,
                }
            )
    table = pd.DataFrame(rows)
    of = table["claim"].str[0]
    table["p_holm"] = table.groupby(of)["p_holm"].transform(lambda p: holm(p.tolist()))
    return table
