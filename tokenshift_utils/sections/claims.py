"""The paper's claims as predicates, each with its criterion and the reason for it.

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
from dataclasses import dataclass

import pandas as pd

from tokenshift_utils.sections.paper import fact

__all__ = [
    "BUDGET",
    "CLAIMS",
    "EVIDENCE_COLUMNS",
    "HIGH_ENTROPY",
    "HIGH_JS",
    "LOW_ENTROPY",
    "NEAR_ZERO",
    "QUANTITIES",
    "Check",
    "Claim",
    "evaluate",
    "judge",
]

NEAR_ZERO = 0.01  # nats. The paper's cut for "near zero" is not known, see the sparsity claims.
HIGH_JS = 0.1  # nats, the paper's cut for token mechanics
LOW_ENTROPY = 0.5 * math.log(2)  # nats: at most half the entropy of a fair coin
HIGH_ENTROPY = math.log(2)  # nats: at least the entropy of a fair coin
BUDGET = 0.101  # effectively replaced share of tokens: the largest in the paper's Table 1

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_TESTABLE)

EVIDENCE_COLUMNS = ("quantity", "subject", "value", "low", "high", "note")

# What each quantity is. Positions are those of the tuned model's own responses, pooled over the
# study's benchmarks; JS is between the truncated distributions unless "full" is said.
QUANTITIES = {
    "near_zero_share": f"share of positions with JS <= {NEAR_ZERO}",
    "high_js_share": f"share of positions with JS > {HIGH_JS}",
    "wider_difference": f"share of positions with JS > {NEAR_ZERO}, DAPO minus SimpleRL",
    "start_ratio": "mean JS in the first tenth of a response / mean JS in its middle (0.3 to 0.7)",
    "end_ratio": "mean JS in the last tenth of a finished response / mean JS in its middle",
    "low_js_low_entropy": f"share of positions with JS <= {NEAR_ZERO} at which both models' "
    "entropy is at most half that of a fair coin",
    "high_js_low_entropy": f"share of positions with JS > {HIGH_JS} at which base's entropy is at "
    "most half that of a fair coin",
    "high_js_high_entropy": f"share of positions with JS > {HIGH_JS} at which base's entropy is at "
    "least that of a fair coin",
    "structural_difference": f"share of digits and operators at JS <= {NEAR_ZERO} minus their "
    f"share at JS > {HIGH_JS}",
    "identity_variance": "share of the variance of JS that token identity explains (adjusted)",
    "frequent_low_share": f"share of occurrences with JS <= {HIGH_JS}, of the ten tokens most "
    f"frequent at JS > {HIGH_JS}",
    "sft_density_ratio": f"share of positions with JS > {HIGH_JS}, SFT / the denser RL model",
    "recovered": "share of RL's gain over base that forward cross-sampling recovers, at the "
    "largest effective share within the budget",
    "lost": "share of RL's gain over base that reverse cross-sampling loses, at the largest "
    "effective share within the budget",
    "random_gap_switches": "accuracy of the JS rule minus random positions, same switched share",
    "random_gap_effective": "accuracy of the JS rule minus random positions, same effective share",
    "best_mixed_gain": "largest accuracy gain of a forward setting over RL (interval corrected for "
    "the number of settings)",
    "overlap_rise": "rise of top-k overlap from k=1 to 2 minus its rise from k=2 to 3",
    "overlap_2_5": "top-k overlap, mean over k = 2 to 5",
    "overlap_difference": "top-k overlap, mean over k = 2 to 5, DAPO minus SimpleRL",
    "rank1": "share with RL's top-1 = base's top-1",
    "rank3": "share with RL's top-1 within base's top 3",
    "new_token": "share with base probability of RL's top-1 below 0.01",
    "gain_inside": "share of the probability gained that goes to tokens in base's top 3",
    "js_smallest_step": "smallest change of mean JS between consecutive checkpoints (interval "
    "corrected for the number of steps)",
    "p95_excess": "growth of the 95th percentile of JS, first checkpoint to final, minus that of "
    "the 75th",
    "p99_excess": "growth of the 99th percentile of JS, first checkpoint to final, minus that of "
    "the 75th",
    "jaccard_rise": "Jaccard overlap with the final high-JS set, last earlier checkpoint minus "
    "first",
    "jaccard_late": "rise of the Jaccard overlap per update in the second half of training minus "
    "the first half",
    "boost_gain": "mean@k gain over DAPO at the same seed, mean of benchmarks and seeds",
    "boost_difference": "mean@k, high-KL boost minus low-KL boost at the same seed, mean of benchmarks "
    "and seeds",
}


@dataclass(frozen=True)
class Check:
    """A bound on one quantity: strictly above `above`, strictly below `below`, or both."""

    quantity: str
    above: float = -math.inf
    below: float = math.inf

    def text(self) -> str:
        if self.above > -math.inf and self.below < math.inf:
            bound = f"between {self.above:g} and {self.below:g}"
        elif self.above > -math.inf:
            bound = f"above {self.above:g}"
        else:
            bound = f"below {self.below:g}"
        return f"{QUANTITIES[self.quantity]}: {bound}"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it is tested.

    Attributes
    ----------
    id : short name, unique; the first digit is the section of the paper.
    fact : key of the statement in `tokenshift_utils.sections.paper`.
    subjects : model names it is about; "rl" or "sft" for every model of that kind.
    checks : all must hold.
    reason : why these bounds.
    requires : names of further models the claim compares with.
    """

    id: str
    fact: str
    subjects: tuple[str, ...]
    checks: tuple[Check, ...]
    reason: str
    requires: tuple[str, ...] = ()


CLAIMS = (
    Claim(
        "1-sparsity-dapo",
        "sparsity_dapo",
        ("dapo",),
        (Check("near_zero_share", above=0.83),),
        "The paper's own share. It leaves open where 'near zero' ends; 0.01 is a tenth of its cut"
        " for high JS and 1.4% of ln 2. Shares at 0.001 stand beside it in table 01_sparsity.",
    ),
    Claim(
        "1-sparsity-simplerl",
        "sparsity_simplerl",
        ("simplerl",),
        (Check("near_zero_share", above=0.98),),
        "The paper's own share, at the same cut of 0.01. It belongs to the paper's model and "
        "training length, so a model organism may miss it while its changes are sparse.",
    ),
    Claim(
        "1-few-high",
        "sparsity_dapo",
        ("rl",),
        (Check("high_js_share", below=0.17),),
        "The same claim from the other end, free of the open cut: what is not near zero at all "
        "is under 17% in the paper, so high-JS positions must be fewer.",
    ),
    Claim(
        "1-dapo-wider",
        "wider",
        ("dapo",),
        (Check("wider_difference", above=0.0),),
        "A direction without a size in what is known of the paper, so only its sign is tested, "
        "on the same problems. It is fair only between models with equal numbers of updates: "
        "sparsity also follows the length of training.",
        requires=("simplerl",),
    ),
    Claim(
        "1-start",
        "start",
        ("rl",),
        (Check("start_ratio", above=1.0),),
        "No size is known, so only the direction is tested. Tenths, as responses differ in length.",
    ),
    Claim(
        "1-end",
        "end",
        ("rl",),
        (Check("end_ratio", above=1.0),),
        "No size is known. Only responses that ended by themselves have an end.",
    ),
    Claim(
        "1-low-js-entropy",
        "low_js_entropy",
        ("rl",),
        (Check("low_js_low_entropy", above=0.5),),
        "'Mostly' is read as more than half; low entropy as at most half that of a fair coin, "
        "about what a 90:10 choice has.",
    ),
    Claim(
        "1-high-js-both-ends",
        "high_js_entropy",
        ("dapo",),
        (Check("high_js_low_entropy", above=0.05), Check("high_js_high_entropy", above=0.05)),
        "The paper says it of DAPO. 'Span both ends' asks that neither end is a stray: at least "
        "one in twenty high-JS positions at either.",
    ),
    Claim(
        "1-token-classes",
        "token_classes",
        ("rl",),
        (Check("structural_difference", above=0.0),),
        "Digits and operators can be told from their text; 'reasoning words' would need a list "
        "made by hand, so only this half is tested, and only its direction.",
    ),
    Claim(
        "1-identity",
        "identity",
        ("rl",),
        (Check("identity_variance", below=0.5), Check("frequent_low_share", above=0.5)),
        "'Does not decide' is read as: identity explains less than half of the variance, and the "
        "tokens most frequent at high JS are low-JS in most of their occurrences.",
    ),
    Claim(
        "1-sft-denser",
        "sft",
        ("sft",),
        (Check("sft_density_ratio", above=2.0),),
        "'Much larger' is read as at least twice the denser RL model's share. How dense SFT "
        "looks depends on its teacher, so each control is judged by itself.",
    ),
    Claim(
        "2-sufficiency",
        "sufficiency",
        ("dapo", "simplerl"),
        (Check("recovered", above=0.9),),
        "In Table 1 at least 97% of the gain is recovered; 0.9 leaves room for fewer samples. "
        "The setting is the one with the largest effective share up to 10.1%, the largest in "
        "Table 1: chosen by its share, never by its accuracy.",
    ),
    Claim(
        "2-necessity",
        "necessity",
        ("dapo", "simplerl"),
        (Check("lost", above=0.9),),
        "In Table 1 at least 99% of the gain is lost; same allowance and same choice of setting "
        "as for sufficiency.",
    ),
    Claim(
        "2-beats-random",
        "no_random_control",
        ("dapo", "simplerl"),
        (Check("random_gap_switches", above=0.0), Check("random_gap_effective", above=0.0)),
        "Asked for by reviewers. Random positions matched on the switched share alone replace "
        "far fewer tokens effectively, so the rule must win under both matchings.",
    ),
    Claim(
        "2-mixed-beats-rl",
        "beats_rl",
        ("dapo", "simplerl"),
        (Check("best_mixed_gain", above=0.0),),
        "'Sometimes' asks for one setting; the interval is widened for picking the best of "
        "several. Near a ceiling there is little room for it.",
    ),
    Claim(
        "2-sensitivity",
        "sensitivity",
        ("rl",),
        (),
        "Whether two tokens 'look interchangeable' is a reader's judgement; the example "
        "trajectories of 02 show it, no number decides it.",
    ),
    Claim(
        "3-overlap-rise",
        "overlap_rise",
        ("dapo", "simplerl"),
        (Check("overlap_rise", above=0.0),),
        "'Steep from 1 to 2' is read as: steeper there than at the next step.",
    ),
    Claim(
        "3-overlap-simplerl",
        "overlap_simplerl",
        ("simplerl",),
        (Check("overlap_2_5", above=0.8),),
        "The paper's own number. Its largest k is not known; beyond 5 a peaked distribution "
        "ranks tokens of negligible probability. Table 03_topk_overlap goes on to 10.",
    ),
    Claim(
        "3-overlap-dapo-lower",
        "overlap_dapo",
        ("dapo",),
        (Check("overlap_difference", below=0.0),),
        "'Somewhat lower': only the sign is tested, over the same k.",
        requires=("simplerl",),
    ),
    Claim(
        "3-rank1",
        "rank1",
        ("dapo", "simplerl"),
        (Check("rank1", above=0.2, below=0.4),),
        "'About 30%' is read as 20% to 40%.",
    ),
    Claim(
        "3-rank3-dapo",
        "rank3_dapo",
        ("dapo",),
        (Check("rank3", above=0.8),),
        "The paper's own number.",
    ),
    Claim(
        "3-rank3-simplerl",
        "rank3_simplerl",
        ("simplerl",),
        (Check("rank3", above=0.9),),
        "The paper's own number.",
    ),
    Claim(
        "3-new-token-dapo",
        "new_token_dapo",
        ("dapo",),
        (Check("new_token", below=0.1),),
        "'About 5%' says rare; up to twice that is accepted.",
    ),
    Claim(
        "3-new-token-simplerl",
        "new_token_simplerl",
        ("simplerl",),
        (Check("new_token", below=0.02),),
        "'Near 0' is read as under 2%, well under DAPO's 5%.",
    ),
    Claim(
        "3-reallocation",
        "reallocation",
        ("dapo", "simplerl"),
        (Check("gain_inside", above=0.8),),
        "The paper shows it by ranks; by mass it asks that most of what is gained goes to "
        "tokens base already ranks in its top 3, with the bound the paper has for DAPO's ranks.",
    ),
    Claim(
        "3-js-grows",
        "js_grows",
        ("dapo",),
        (Check("js_smallest_step", above=0.0),),
        "Monotone growth means that no step goes down; all checkpoints are scored on the final "
        "model's responses.",
    ),
    Claim(
        "3-upper-faster",
        "upper_faster",
        ("dapo",),
        (Check("p95_excess", above=0.0), Check("p99_excess", above=0.0)),
        "Growth in nats, against the 75th percentile. With most positions near zero this is "
        "close to a consequence of sparsity.",
    ),
    Claim(
        "3-jaccard-rises",
        "jaccard",
        ("dapo",),
        (Check("jaccard_rise", above=0.0),),
        "The final checkpoint is 1 by construction, so the rise is tested before it.",
    ),
    Claim(
        "3-jaccard-late",
        "jaccard",
        ("dapo",),
        (Check("jaccard_late", above=0.0),),
        "'Slowly, then steeply': steeper per update in the second half. The last step up to 1 "
        "is included, as in the paper, and is partly by construction.",
    ),
    Claim(
        "4-high-kl-gains",
        "boost",
        ("dapo-high-kl",),
        (Check("boost_gain", above=0.0),),
        "A gain over DAPO's runs of the same seeds. The interval is over training seeds, on the "
        "study's problems; the paper has three runs and no interval.",
        requires=("dapo",),
    ),
    Claim(
        "4-low-kl-gains",
        "boost",
        ("dapo-low-kl",),
        (Check("boost_gain", above=0.0),),
        "As for the high-KL boost.",
        requires=("dapo",),
    ),
    Claim(
        "4-boosts-alike",
        "boosts_alike",
        ("dapo-high-kl",),
        (Check("boost_difference", above=-0.025, below=0.025),),
        "Alike means: they differ by less than the gain itself, 2.5 points in the paper. Whether they "
        "gain at all is for the two claims before this one.",
        requires=("dapo-low-kl",),
    ),
)


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


def _subjects(claim: Claim, kinds: dict[str, str]) -> list[str]:
    """Model names a claim is about; a kind that the study lacks stands for itself."""
    names: list[str] = []
    for subject in claim.subjects:
        found = [name for name, kind in kinds.items() if kind == subject]
        names += found if subject in ("rl", "sft") and found else [subject]
    return names


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


def evaluate(kinds: dict[str, str], evidence: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim.

    Parameters
    ----------
    kinds : model name -> kind ("base", "rl", "sft", "weighted") of the study's models.
    evidence : columns `EVIDENCE_COLUMNS`, one row a quantity and subject, written by the notebooks.

    Returns
    -------
    One row a claim and subject: claim, subject, says, criterion, measured, verdict, reason and
    witness.
    """
    rows = []
    for claim in CLAIMS:
        stated = fact(claim.fact)
        for subject in _subjects(claim, kinds):
            lacking = [n for n in (subject, *claim.requires) if n not in kinds]
            if lacking:
                what = (
                    "SFT control"
                    if lacking[0] == "sft"
                    else ("RL model" if lacking[0] == "rl" else f"model named '{lacking[0]}'")
                )
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
