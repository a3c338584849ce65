"""The divergence-weighted objective as a policy loss of verl, with the weights of the TRL trainer.

Registered as verl documents, with ``register_policy_loss``, from a module of your own::

    # my_losses.py, importable where verl's workers run
    from tokenshift_utils.training.verl_loss import register
    from tokenshift_utils.measures.weighting import Weighting

    register("high-kl", Weighting(alpha=1e5, scale=1.0))

and named on verl's command line::

    VERL_USE_EXTERNAL_MODULES=my_losses python -m verl.trainer.main_ppo \
        actor_rollout_ref.actor.policy_loss.loss_mode=high-kl ...

Tested with verl 0.9.1. verl wants another transformers than this package does, so it has an
environment of its own: install this package there with ``pip install --no-deps``; this module and
``weighting`` need torch alone.
"""

from importlib import import_module

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.weighting import (
    Weighting,
    check_same_shape,
    divergence_weights,
    k3,
    one_minus_p,
)


def register(name: str, weighting: Weighting, loss: str = "vanilla") -> None:
    """Make ``loss_mode=name`` in verl mean: the policy loss ``loss`` on weighted advantages.

    Raises
    ------
    TokenshiftError
        If the weighting needs what verl does not hand to a policy loss (a reference model's
        distributions, entropies), or is a shuffled placebo, which is the TRL trainer's alone.
    """
    if weighting.signal not in ("k3", "one_minus_p") or weighting.shuffle:
        asked = "shuffled weights" if weighting.shuffle else f"signal '{weighting.signal}'"
        raise TokenshiftError(
            f"verl_loss: {asked} can't be had in a policy loss of verl; use signal 'k3' or"
            " 'one_minus_p', not shuffled."
        )
    algorithms = import_module("verl.trainer.ppo.core_algos")

    def divergence_weighted(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config=None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict]:
        """``loss`` with advantages [batch, time] times weights; see verl's ``PolicyLossFn``."""
        check_same_shape(
            old_log_prob=old_log_prob,
            log_prob=log_prob,
            advantages=advantages,
            response_mask=response_mask,
        )
        logp = log_prob.detach()
        signal = k3(logp, old_log_prob) if weighting.signal == "k3" else one_minus_p(logp)
        weights = divergence_weights(signal, weighting)
        mask = response_mask.bool()
        if weighting.normalise:
            weights = weights / _mean(weights, mask)
        value, metrics = algorithms.get_policy_loss_fn(loss)(
            old_log_prob=old_log_prob,
            log_prob=log_prob,
            advantages=advantages * weights,
            response_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            config=config,
            rollout_is_weights=rollout_is_weights,
        )
        kept = weights[mask].float()
        if len(kept):
            metrics = metrics | {
                "actor/weights_mean": kept.mean().item(),
                "actor/weights_std": kept.std(correction=0).item(),
                "actor/weights_share_above_1": (kept > 1).float().mean().item(),
            }
        return value, metrics

    algorithms.register_policy_loss(name)(divergence_weighted)


def _mean(weights: Tensor, mask: Tensor) -> Tensor:
    """Mean weight over the tokens of the micro-batch, gathered across processes."""
    totals = torch.stack([(weights * mask).sum(), mask.sum().to(weights.dtype)])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
    total, count = totals
    return torch.where(count > 0, total / count.clamp(min=1), torch.ones_like(total))
