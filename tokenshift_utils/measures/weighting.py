"""Divergence weights of the advantage (paper section 4), as tensor functions.

One interface for every signal: ``w = 1 + scale * (sigmoid(alpha * signal) - 1/2)``, where the
signal of a token is at least 0. So w is 1 where the signal is 0, and goes to ``1 + scale / 2``
(alpha > 0) or ``1 - scale / 2`` (alpha < 0) where it is large.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError

LOG_RATIO_LIMIT = 10.0  # a ratio beyond e^10 saturates every weight and would overflow in k3

SIGNALS = {
    "k3": "estimate of KL(pi_old || pi_theta) at the sampled token, the paper's",
    "kl_ref": "KL(pi_theta || pi_ref), exact over the vocabulary",
    "js_ref": "Jensen-Shannon divergence of pi_theta and pi_ref, exact over the vocabulary",
    "entropy": "entropy of pi_theta",
    "one_minus_p": "1 - pi_theta(y): how improbable the sampled token is",
}


@dataclass(frozen=True)
class Weighting:
    """How advantages are weighed: ``w = 1 + scale * (sigmoid(alpha * signal) - 1/2)``.

    Parameters
    ----------
    alpha
        Steepness, in units of 1 / signal. alpha > 0 boosts tokens of high signal, alpha < 0 damps
        them, which is a relative boost of the others.
    scale
        The ``s`` of the formula; weights stay within ``1 +- |scale| / 2``.
    signal
        One of ``SIGNALS``; divergences and entropy are in nats.
    normalise
        Divide weights by their mean over the tokens of the micro-batch, gathered across processes:
        a mean other than 1 changes the size of the steps, not only their emphasis.
    shuffle
        A placebo: weights are dealt out at random among the tokens of the micro-batch, so that
        their distribution is as it was and their places mean nothing.

    Raises
    ------
    TokenshiftError
        If alpha or scale is not finite, ``|scale| >= 2``, where a weight could turn the sign of an
        advantage, or the signal is unknown.
    """

    alpha: float
    scale: float
    signal: str = "k3"
    normalise: bool = False
    shuffle: bool = False

    def __post_init__(self):
        for name, value in (("alpha", self.alpha), ("scale", self.scale)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TokenshiftError(f"weighting: {name} must be a number, got {value!r}.")
            if not math.isfinite(value):
                raise TokenshiftError(f"weighting: {name} must be finite, got {value}.")
        if abs(self.scale) >= 2:
            raise TokenshiftError(
                f"weighting: |scale| must be below 2, got {self.scale}; beyond it a weight could turn"
                " the sign of an advantage."
            )
        if self.signal not in SIGNALS:
            raise TokenshiftError(
                f"weighting: unknown signal {self.signal!r}; there are {', '.join(SIGNALS)}."
            )

    @property
    def needs_old_logps(self) -> bool:
        """Whether the signal compares with the policy that sampled."""
        return self.signal == "k3"

    @property
    def needs_reference(self) -> bool:
        """Whether the signal compares with a reference model, over the whole vocabulary."""
        return self.signal in ("kl_ref", "js_ref")


def check_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes, naming them: broadcasting would weigh wrong tokens."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise TokenshiftError(f"weighting: shapes do not match: {listed}.")


def k3(logp_new: Tensor, logp_old: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi_old || pi_new), in nats, per token drawn from pi_old.

    ``r - 1 - log r`` with ``r = pi_new(y) / pi_old(y)``: unbiased and never negative. Both are
    log-probabilities of the sampled tokens, of one shape. The log-ratio is clamped to +-10 and one
    that does not exist (a NaN, two infinities) counts as 0, so the result is finite for any input.
    """
    check_same_shape(logp_new=logp_new, logp_old=logp_old)
    if logp_new.dtype in (torch.float16, torch.bfloat16):
        logp_new, logp_old = logp_new.float(), logp_old.float()
    log_ratio = (logp_new - logp_old).nan_to_num(nan=0.0)
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(log_ratio) - log_ratio


def one_minus_p(logp: Tensor) -> Tensor:
    """How improbable tokens of log-probability ``logp`` are, same shape, within [0, 1]."""
    return -torch.expm1(logp)


def divergence_weights(signal: Tensor, weighting: Weighting) -> Tensor:
    """Weights of the advantage for a per-token ``signal``, same shape, without gradient.

    Finite whatever the signal: one that is NaN counts as 0, so its weight is 1. Normalising and
    shuffling, which need the whole micro-batch, are the trainer's business.
    """
    signal = signal.detach().nan_to_num(nan=0.0)
    return 1 + weighting.scale * (torch.sigmoid(weighting.alpha * signal) - 0.5)
