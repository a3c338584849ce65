"""Rules that say at which positions the intervention takes over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.noise import uniform
from tokenshift_utils.measures.nucleus import Nucleus, nucleus_js

RuleName = Literal[
    "js", "js_full", "kl", "kl_reverse", "entropy", "signed_logp", "random", "first", "always",
    "never",
]  # fmt: skip
RULES = get_args(RuleName)
WITH_THRESHOLD = ("js", "js_full", "kl", "kl_reverse", "entropy", "signed_logp", "first")
PRIMARY_ONLY = ("entropy", "random", "first", "always", "never")


@dataclass(frozen=True)
class Rule:
    """Where the intervention takes over. Divergences are in nats, at the sampling temperature.

    - ``js``, ``js_full``: JS of the nucleus (as in the paper) or full distributions is above
      ``threshold``; a negative one always fires, ``inf`` never.
    - ``kl``: KL(primary || intervention) of the full distributions is above it (truncated ones have
      infinite KL wherever a nucleus lacks a token of the other); ``kl_reverse``: KL(intervention ||
      primary).
    - ``entropy``: the primary's own, of its full distribution, is above it.
    - ``signed_logp``: log p_primary(y) - log p_intervention(y), full, is above it for the token y
      that the primary drew: with base as primary, minus the sister paper's signed log-prob
      difference. It depends on the draw, so its firings are no function of the prefix alone.
    - ``first``: the first ``threshold`` positions of a response.
    - ``random``: by chance ``rate``, with noise of its own. ``always``, ``never``.

    With a ``budget`` only the first so many firings of a response switch.
    """

    name: RuleName = "js"
    threshold: float | None = 0.1
    rate: float | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise TokenshiftError(f"unknown rule '{self.name}'; give one of {', '.join(RULES)}")
        if self.name in WITH_THRESHOLD:
            if self.threshold is None or math.isnan(self.threshold):
                raise TokenshiftError(
                    f"rule {self.name} needs a threshold that is a number, not {self.threshold}"
                )
            if self.name in ("entropy", "first") and self.threshold < 0:
                raise TokenshiftError(
                    f"rule {self.name} needs a threshold of at least 0, not {self.threshold:g}"
                )
        elif self.threshold is not None:
            object.__setattr__(self, "threshold", None)
        if self.name == "random":
            if self.rate is None or not 0.0 <= self.rate <= 1.0:
                raise TokenshiftError(f"rule random needs a rate within [0, 1], not {self.rate}")
        elif self.rate is not None:
            object.__setattr__(self, "rate", None)
        if self.budget is not None and (self.budget < 0 or self.budget != int(self.budget)):
            raise TokenshiftError(f"budget is {self.budget}; give a whole number of at least 0")

    @property
    def primary_only(self) -> bool:
        """Whether the intervention's distribution plays no part in where it fires."""
        return self.name in PRIMARY_ONLY

    @property
    def label(self) -> str:
        """The rule in a few characters, ``js>0.1``."""
        if self.name == "first":
            text = f"first:{self.threshold:g}"
        elif self.threshold is not None:
            text = f"{self.name}>{self.threshold:g}"
        else:
            text = self.name if self.rate is None else f"{self.name}:{self.rate:g}"
        return text if self.budget is None else f"{text},budget:{self.budget}"

    def fires(
        self,
        primary: Nucleus,
        intervention: Nucleus | None,
        tokens: Tensor,
        keys: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """At which of n places the rule fires, bool ``[n]``, no budget applied.

        ``tokens`` [n] are what the primary drew; ``keys`` and ``positions`` [n] are the noise's.
        ``intervention`` may be None where ``primary_only``.
        """
        if self.name == "random":
            return uniform(keys, positions) < self.rate
        if self.name == "first":
            return positions < self.threshold
        if self.name in ("always", "never"):
            return torch.full_like(keys, self.name == "always", dtype=torch.bool)
        return self._value(primary, intervention, tokens) > self.threshold

    def _value(self, primary: Nucleus, intervention: Nucleus, tokens: Tensor) -> Tensor:
        if self.name == "js":
            return nucleus_js(primary, intervention)
        p = primary.logp
        if self.name == "entropy":
            return divergences.entropy(p)
        q = intervention.logp
        if self.name == "js_full":
            return divergences.js(p, q)
        if self.name == "kl":
            return divergences.kl(p, q)
        if self.name == "kl_reverse":
            return divergences.kl(q, p)
        drawn = tokens[:, None]
        return (p.gather(-1, drawn) - q.gather(-1, drawn)).squeeze(-1)
