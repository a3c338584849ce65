"""Divergence weights of the advantage (paper section 4), as tensor functions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError

LOG_RATIO_LIMIT = 10.0  # a ratio beyond e^10 saturates every weight and would overflow in k3


@dataclass(frozen=True)
class Weighting:
    """``w = 1 + scale * (sigmoid(alpha * k3) - 1/2)``; alpha > 0 boosts high KL, alpha < 0 low KL.

    Raises
    ------
    TokenshiftError
        If a value is not finite, or ``|scale| >= 2``, where a weight could turn the sign of an
        advantage.
    """

    alpha: float
    scale: float

    def __post_init__(self):
        for name, value in (("alpha", self.alpha), ("scale", self.scale)):
            if not math.isfinite(value):
                raise TokenshiftError(f"weighting: {name} must be finite, got {value}.")
        if abs(self.scale) >= 2:
            raise TokenshiftError(
                f"weighting: |scale| must be below 2, got {self.scale}; beyond it a weight could turn"
                " the sign of an advantage."
            )


def k3(logp_new: Tensor, logp_old: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi_old || pi_new), in nats, per token drawn from pi_old.

    ``r - 1 - log r`` with ``r = pi_new(y) / pi_old(y)``: unbiased and never negative. The log-ratio
    is clamped to +-10, so the result is finite for any finite input. Shapes broadcast.
    """
    log_ratio = (logp_new - logp_old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(log_ratio) - log_ratio


def divergence_weights(divergence: Tensor, weighting: Weighting) -> Tensor:
    """Weights of the advantage for per-token ``divergence`` (nats), same shape, without gradient."""
    divergence = divergence.detach()
    return 1 + weighting.scale * (torch.sigmoid(weighting.alpha * divergence) - 0.5)
