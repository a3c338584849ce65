"""The paper's own numbers, as data.

Only what is publicly known of the paper is here, each fact with its witness: the paper's abstract
and its public reviews, or, where nothing else is known to say so, a published summary. A number
that is not here is not known; nothing is filled in.

Source: Meng et al., *Sparse but Critical: A Token-Level Analysis of Distributional Shifts in RLVR
Fine-Tuning of LLMs*, ICLR 2026, arXiv:2603.22446.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

REVIEWS = "abstract and public reviews"
SUMMARY = "a published summary only"


@dataclass(frozen=True)
class Fact:
    """One thing the paper states.

    Attributes
    ----------
    key : short name, by which claims refer to it.
    section : 1 divergence, 2 cross-sampling, 3 token mechanics, 4 weighted objective.
    says : the statement, in words.
    value : the number stated, as a share or in nats, None where it is stated in words only.
    bound : how the number is stated: ">", "<", "=", "about" or "" (no number).
    witness : where the statement is known from.
    """

    key: str
    section: int
    says: str
    value: float | None = None
    bound: str = ""
    witness: str = REVIEWS


FACTS = (
    # 1 divergence characterization
    Fact("sparsity_dapo", 1, "JS is near zero at more than 83% of positions (DAPO)", 0.83, ">"),
    Fact("sparsity_simplerl", 1, "JS is near zero at more than 98% of positions (SimpleRL)",
         0.98, ">"),
    Fact("few_high_dapo", 1, "hence JS is high at fewer than 17% of positions (DAPO)", 0.17, "<"),
    Fact("few_high_simplerl", 1, "hence JS is high at fewer than 2% of positions (SimpleRL)",
         0.02, "<"),
    Fact("wider", 1, "DAPO (clip-higher, no KL term) spreads wider than SimpleRL"),
    Fact("js_range", 1, "JS is in nats and lies within [0, ln 2]", 0.6931471805599453, "<"),
    Fact("truncated", 1, "JS is computed on top-p-truncated, renormalised distributions",
         witness=SUMMARY),
    Fact("start", 1, "JS is high at the start of a response and lower through the middle"),
    Fact("end", 1, "JS rises a little at the end (answer format, termination)"),
    Fact("low_js_entropy", 1, "low-JS positions are mostly low-entropy in both models"),
    Fact("high_js_entropy", 1, "high-JS positions span both ends of the entropy range: DAPO "
         "overrides confident base predictions too"),
    Fact("token_classes", 1, "function words, reasoning words and formula pieces are frequent "
         "among high-JS tokens; digits, operators and structural maths among low-JS ones"),
    Fact("identity", 1, "token identity does not decide: a frequent high-JS token such as 'the' is "
         "low-JS in most of its occurrences"),
    Fact("sft", 1, "SFT gives a much larger, broader set of high-JS positions than RL"),
    # 2 cross-sampling
    Fact("sufficiency", 2, "putting the RL model's tokens at a small share of positions into the "
         "base model's generation recovers RL accuracy"),
    Fact("necessity", 2, "putting the base model's tokens at a small share of positions into the "
         "RL model's generation takes accuracy back to the base level"),
    Fact("largest_budget", 2, "the largest effectively replaced share in Table 1",
         0.101, "=", SUMMARY),
    Fact("beats_rl", 2, "the mixed policy sometimes beats the RL policy"),
    Fact("sensitivity", 2, "replaced tokens often look locally interchangeable, yet the trajectory "
         "derails"),
    Fact("no_random_control", 2, "(asked for by reviewers, not in the paper) switching at random "
         "positions at the same rate"),
    # 3 token mechanics, at positions with JS > 0.1
    Fact("high_js_cut", 3, "token mechanics are measured at positions with JS > 0.1", 0.1, ">"),
    Fact("overlap_rise", 3, "top-k overlap rises steeply from k=1 to k=2"),
    Fact("overlap_simplerl", 3, "for k >= 2 overlap is above 80% on average (SimpleRL)", 0.8, ">"),
    Fact("overlap_dapo", 3, "overlap is somewhat lower for DAPO than for SimpleRL"),
    Fact("rank1", 3, "RL's top-1 token is also base's top-1 at about 30% of high-JS positions", 0.3, "about"),
    Fact("rank3_dapo", 3, "RL's top-1 token is within base's top 3 at more than 80% (DAPO)",
         0.8, ">"),
    Fact("rank3_simplerl", 3, "RL's top-1 token is within base's top 3 at more than 90% (SimpleRL)",
         0.9, ">"),
    Fact("new_token_dapo", 3, "base gives RL's top-1 token less than 0.01 at about 5% (DAPO)",
         0.05, "about"),
    Fact("new_token_simplerl", 3, "base gives RL's top-1 token less than 0.01 almost never "
         "(SimpleRL)", 0.0, "about"),
    Fact("reallocation", 3, "RL reallocates mass among existing candidates, seldom to a new token"),
    Fact("js_grows", 3, "JS grows monotonically over DAPO's checkpoints"),
    Fact("upper_faster", 3, "the 95th and 99th percentiles of JS grow faster than the lower ones"),
    Fact("jaccard", 3, "the Jaccard overlap of the high-JS set with the final one rises slowly, "
         "then steeply, to 1"),
    # 4 divergence-weighted objective
    Fact("boost", 4, "both the high-KL and the low-KL boost improve on DAPO (mean@32)"),
    Fact("boosts_alike", 4, "the two boosts gain about the same: 2.57 and 2.44 points on average",
         witness=SUMMARY),
)  # fmt: skip

_BY_KEY = {f.key: f for f in FACTS}

# Table 1 (Qwen2.5-32B): effectively replaced share of tokens in %, effectively replaced tokens a
# response, accuracy in % before and after; "after" is known as a bound only.
_TABLE1 = (
    ("AIME24", "SimpleRL", "forward", 3.86, 38, 8.23, "> 25"),
    ("AIME24", "SimpleRL", "reverse", 5.0, 29, 25.52, "< 8.3"),
    ("AIME24", "DAPO", "forward", 7.8, 280, 8.23, "> 44"),
    ("AIME24", "DAPO", "reverse", 10.1, 173, 44.8, "< 8.5"),
    ("AIME25", "SimpleRL", "forward", 1.53, 13, 5.3, "> 14"),
    ("AIME25", "SimpleRL", "reverse", 4.73, 31, 12.71, "< 4"),
    ("AIME25", "DAPO", "forward", 6.47, 230, 5.0, "> 33"),
    ("AIME25", "DAPO", "reverse", 9.89, 181, 32.0, "< 4.5"),
)

# Table 2 (Qwen2.5-Math-7B): mean@32 in %, mean of three runs; the average with its "±", of which
# it is not known what it measures.
_TABLE2 = (
    ("DAPO", 33.61, 18.75, 75.08, 42.48, 1.35),
    ("low-KL boost", 35.90, 19.90, 78.97, 44.92, 0.05),
    ("high-KL boost", 36.74, 20.00, 78.40, 45.05, 0.79),
)


def fact(key: str) -> Fact:
    """The fact of that name; a KeyError if there is none."""
    return _BY_KEY[key]


def table1() -> pd.DataFrame:
    """The paper's Table 1 as known from published summaries (shares and accuracies in %)."""
    names = [
        "benchmark",
        "model",
        "direction",
        "effective_percent",
        "effective_per_response",
        "percent_right_before",
        "percent_right_after",
    ]
    return pd.DataFrame(_TABLE1, columns=names)


def table2() -> pd.DataFrame:
    """The paper's Table 2 as known from published summaries (mean@32 in %)."""
    names = ["objective", "AIME24", "AIME25", "AMC", "average", "plus_minus"]
    return pd.DataFrame(_TABLE2, columns=names)
