"""Rules that say at which positions the intervention takes over: one class each.

To add one, write a class below and name it in a study's ``cross_sampling.rules`` with its
thresholds; records, tables and figures follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.noise import uniform
from tokenshift_utils.measures.nucleus import Nucleus, nucleus_js


class Positions(NamedTuple):
    """n positions of some texts, as a rule sees them.

    Attributes
    ----------
    primary, intervention : what is sampled from there, ``[n, V]``; ``.logp`` is the full
        distribution at the sampling temperature. The intervention's is None for rules that do not
        read it.
    tokens : what the primary drew, int64 ``[n]``
    keys, positions : the noise's, int64 ``[n]``
    """

    primary: Nucleus
    intervention: Nucleus | None
    tokens: Tensor
    keys: Tensor
    positions: Tensor


class RuleKind:
    """A rule without its numbers. A subclass is known by its ``name`` from then on.

    Attributes
    ----------
    label : what tables and figures call it
    parameter : the number that it needs beside its name, "threshold", "rate" or None
    columns : what mixture trees hold of its value, of ``tree.NODE_VALUES``, where base and where the
        tuned model writes; None where they hold nothing of it, so that a mixture is decoded by itself
    minimum : the smallest threshold that means something
    reads_intervention : whether the intervention's distribution decides where it fires
    reads_full : whether it needs full distributions, which a list of log-probs does not give
    """

    name: ClassVar[str]
    label: ClassVar[str]
    parameter: ClassVar[str | None] = "threshold"
    columns: ClassVar[tuple[str, str] | None] = None
    minimum: ClassVar[float] = -math.inf
    reads_intervention: ClassVar[bool] = True
    reads_full: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        RULE_KINDS[cls.name] = cls
        cls.columns = vars(cls).get("columns")  # another value, of a subclass, is not in them

    @staticmethod
    def value(at: Positions) -> Tensor:
        """What decides, ``[n]``."""
        raise NotImplementedError

    @classmethod
    def cutoff(cls, rule: Rule) -> float:
        """The value above which it fires."""
        return float(rule.threshold)

    @classmethod
    def fires(cls, at: Positions, rule: Rule) -> Tensor:
        """Where the rule fires, bool ``[n]``."""
        return cls.value(at) > cls.cutoff(rule)

    @classmethod
    def describe(cls, rule: Rule) -> str:
        """The rule in a few characters, ``js>0.1``."""
        return f"{cls.name}>{rule.threshold:g}"


RULE_KINDS: dict[str, type[RuleKind]] = {}


class NucleusJS(RuleKind):
    """JS of the nucleus distributions, as in the paper; below 0 always fires, ``inf`` never."""

    name, label = "js", "JS"
    columns = ("js", "js")
    reads_full = False

    @staticmethod
    def value(at: Positions) -> Tensor:
        return nucleus_js(at.primary, at.intervention)


class FullJS(RuleKind):
    """JS of the full distributions."""

    name, label = "js_full", "JS, full"
    columns = ("js_full", "js_full")

    @staticmethod
    def value(at: Positions) -> Tensor:
        return divergences.js(at.primary.logp, at.intervention.logp)


class KL(RuleKind):
    """KL(primary || intervention) of the full distributions: truncated ones have infinite KL
    wherever a nucleus lacks a token of the other."""

    name, label = "kl", "KL(primary || other)"
    columns = ("kl_base_tuned", "kl_tuned_base")

    @staticmethod
    def value(at: Positions) -> Tensor:
        return divergences.kl(at.primary.logp, at.intervention.logp)


class ReverseKL(RuleKind):
    """KL(intervention || primary) of the full distributions."""

    name, label = "kl_reverse", "KL(other || primary)"
    columns = ("kl_tuned_base", "kl_base_tuned")

    @staticmethod
    def value(at: Positions) -> Tensor:
        return divergences.kl(at.intervention.logp, at.primary.logp)


class Entropy(RuleKind):
    """The primary's own entropy, of its full distribution."""

    name, label = "entropy", "primary's entropy"
    columns = ("entropy_base", "entropy_tuned")
    minimum = 0.0
    reads_intervention = False

    @staticmethod
    def value(at: Positions) -> Tensor:
        return divergences.entropy(at.primary.logp)


class SignedLogProb(RuleKind):
    """log p_primary(y) - log p_intervention(y), full, for the token y that the primary drew.

    With base as primary, minus the signed log-prob difference of Huang et al. (2026, arXiv:2603.22117). It depends on the
    draw, so its firings are no function of the prefix alone.
    """

    name, label = "signed_logp", "signed log-prob"
    columns = ("signed_logp_forward", "signed_logp_reverse")
    reads_full = False

    @staticmethod
    def value(at: Positions) -> Tensor:
        drawn = at.tokens[:, None]
        of_primary = at.primary.logp.gather(-1, drawn)
        return (of_primary - at.intervention.logp.gather(-1, drawn)).squeeze(-1)


class First(RuleKind):
    """The first ``threshold`` positions of a response."""

    name, label = "first", "first n positions"
    columns = ("minus_position", "minus_position")
    minimum = 1.0
    reads_intervention = reads_full = False

    @staticmethod
    def value(at: Positions) -> Tensor:
        return -at.positions

    @classmethod
    def cutoff(cls, rule: Rule) -> float:
        return -rule.threshold

    @classmethod
    def describe(cls, rule: Rule) -> str:
        return f"first:{rule.threshold:g}"


class Random(RuleKind):
    """By chance ``rate``, with noise of its own: the same places for every larger rate too."""

    name, label = "random", "random positions"
    parameter = "rate"
    columns = ("minus_uniform", "minus_uniform")
    reads_intervention = reads_full = False

    @staticmethod
    def value(at: Positions) -> Tensor:
        return -uniform(at.keys, at.positions)

    @classmethod
    def cutoff(cls, rule: Rule) -> float:
        return -rule.rate

    @classmethod
    def describe(cls, rule: Rule) -> str:
        return f"random:{rule.rate:g}"


class Always(RuleKind):
    """Everywhere."""

    name, label = "always", "every position"
    parameter = None
    columns = ("zero", "zero")
    reads_intervention = reads_full = False

    @staticmethod
    def value(at: Positions) -> Tensor:
        return torch.zeros(at.keys.shape, device=at.keys.device)

    @classmethod
    def cutoff(cls, rule: Rule) -> float:
        return -1.0

    @classmethod
    def describe(cls, rule: Rule) -> str:
        return cls.name


class Never(Always):
    """Nowhere."""

    name, label = "never", "no position"
    columns = Always.columns

    @classmethod
    def cutoff(cls, rule: Rule) -> float:
        return math.inf


@dataclass(frozen=True)
class Rule:
    """Where the intervention takes over: a kind of rule by name, and its number.

    Divergences are in nats, at the sampling temperature. With a ``budget`` only the first so many
    firings of a response switch.

    Examples
    --------
    >>> Rule("js", 0.1).label, Rule("random", rate=0.05, budget=3).label
    ('js>0.1', 'random:0.05,budget:3')
    """

    name: str = "js"
    threshold: float | None = 0.1
    rate: float | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.name not in RULE_KINDS:
            raise TokenshiftError(
                f"unknown rule '{self.name}'; give one of {', '.join(RULE_KINDS)}"
            )
        if self.kind.parameter != "threshold":
            object.__setattr__(self, "threshold", None)
        elif self.threshold is None or math.isnan(self.threshold):
            raise TokenshiftError(
                f"rule {self.name} needs a threshold that is a number, not {self.threshold}"
            )
        elif self.threshold < self.kind.minimum:
            raise TokenshiftError(
                f"rule {self.name} needs a threshold of at least {self.kind.minimum:g}, not "
                f"{self.threshold:g}"
            )
        if self.kind.parameter != "rate":
            object.__setattr__(self, "rate", None)
        elif self.rate is None or not 0.0 <= self.rate <= 1.0:
            raise TokenshiftError(f"rule {self.name} needs a rate within [0, 1], not {self.rate}")
        if self.budget is not None and (self.budget < 0 or self.budget != int(self.budget)):
            raise TokenshiftError(f"budget is {self.budget}; give a whole number of at least 0")

    @property
    def kind(self) -> type[RuleKind]:
        """The class that the name stands for."""
        return RULE_KINDS[self.name]

    @property
    def label(self) -> str:
        """The rule in a few characters, ``js>0.1``."""
        text = self.kind.describe(self)
        return text if self.budget is None else f"{text},budget:{self.budget}"

    def fires(self, at: Positions) -> Tensor:
        """At which of n positions the rule fires, bool ``[n]``, no budget applied.

        So in one mixture by itself; on trees ``walks.Walkers.fires`` compares a node's recorded value
        with the same cutoff.
        """
        return self.kind.fires(at, self)


PAPER_RULE = Rule()  # JS of the nuclei above 0.1 nats
