"""The paper's claims as predicates: read from claims.yaml, each with its criterion and reason.

Everything here was fixed before any trained model of the tiny study was analysed (rough figures of
an earlier prototype of such a study, on an easier task, were known). A claim names the quantities
it looks at, the bound each has to keep, and why that bound. The notebooks measure the quantities
(with intervals) and write them as tables of *evidence*; `evaluate` reads those and computes a
verdict:

- ``supported``: the whole interval of every quantity keeps its bound;
- ``not supported``: the whole interval of at least one quantity violates its bound;
- ``undecided``: an interval straddles its bound;
- ``not testable``: the study lacks what the claim is about, or nothing could be measured.

Intervals come from resampling problems (all samples of a drawn problem kept), so they speak of
problems and samples. They do not cover training seeds: each model was trained once. Only section 4
compares several runs, and its intervals are over their seeds, on fixed problems. Verdicts are
not corrected for the number of claims; a quantity that is a best or worst of several settings has
an interval that is corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from tokenshift_utils.sections.paper import fact
from tokenshift_utils.study.schema import Role

FILE = Path(__file__).with_name("claims.yaml")

# Cuts that the quantities of claims.yaml are measured at.
NEAR_ZERO = 0.01  # nats. The paper's cut for "near zero" is not known, see the sparsity claims.
HIGH_JS = 0.1  # nats, the paper's cut for token mechanics
LOW_ENTROPY = 0.5 * math.log(2)  # nats: at most half the entropy of a fair coin
HIGH_ENTROPY = math.log(2)  # nats: at least the entropy of a fair coin
BUDGET = 0.101  # effectively replaced share of tokens: the largest in the paper's Table 1

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_TESTABLE)

LACKING = {"rl": "RL model", "sft": "SFT control", "weighted": "model of a weighted objective"}

EVIDENCE_COLUMNS = ("quantity", "subject", "value", "low", "high", "note")


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
    subjects: tuple[Role, ...]
    checks: tuple[Check, ...]
    reason: str
    requires: tuple[Role, ...] = ()

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


_file = _File.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
QUANTITIES, CLAIMS = _file.quantities, _file.claims


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


def _measure(claim: Claim, subject: str, evidence: pd.DataFrame) -> tuple[str, str]:
    """(verdict, what was measured) for one claim and subject."""
    verdicts, texts = [], []
    for check in claim.checks:
        rows = evidence[(evidence["quantity"] == check.quantity) & (evidence["subject"] == subject)]
        if len(rows) == 0:
            verdicts.append(NOT_TESTABLE)
            texts.append("not measured in this study")
            continue
        row = rows.iloc[0]
        verdicts.append(judge(check, row["value"], row["low"], row["high"]))
        note = str(row["note"]) if isinstance(row["note"], str) else ""
        if verdicts[-1] == NOT_TESTABLE:
            texts.append(note or "could not be measured")
        else:
            number = f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
            texts.append(f"{number} ({note})" if note else number)
    return _combine(verdicts), "; ".join(texts)


def evaluate(roles: dict[str, Collection[Role]], evidence: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim, of each model that has a role it is about.

    Parameters
    ----------
    roles : model name -> kind and recipe of the study's models; a role that no model has stands for
        itself, as a claim that can't be tested.
    evidence : columns `EVIDENCE_COLUMNS`, one row a quantity and subject, written by the notebooks.

    Returns
    -------
    One row a claim and subject: claim, subject, says, criterion, measured, verdict, reason and
    witness.
    """
    rows = []
    for claim in CLAIMS:
        stated = fact(claim.fact)
        having = {role: [n for n, own in roles.items() if role in own] for role in claim.subjects}
        found = [(role, name) for role in having for name in having[role] or [role]]
        for role, subject in found:
            lacking = [
                r for r in (role, *claim.requires) if not any(r in o for o in roles.values())
            ]
            if lacking:
                what = LACKING.get(lacking[0], f"model of recipe {lacking[0]}")
                verdict, measured = NOT_TESTABLE, f"this study has no {what}"
            elif not claim.checks:
                verdict, measured = NOT_TESTABLE, "no number decides it"
            else:
                verdict, measured = _measure(claim, subject, evidence)
            rows.append(
                {
                    "claim": claim.id,
                    "subject": subject,
                    "says": stated.says,
                    "criterion": "; ".join(c.text() for c in claim.checks) or "none",
                    "measured": measured,
                    "verdict": verdict,
                    "reason": claim.reason,
                    "witness": stated.witness,
                }
            )
    return pd.DataFrame(rows)
