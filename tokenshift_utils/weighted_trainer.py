"""The divergence-weighted objective as a subclass of TRL's GRPOTrainer (paper section 4)."""

import torch
from torch import Tensor
from trl import GRPOTrainer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.weighting import Weighting, divergence_weights, k3


class DivergenceWeightedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose per-token advantages are multiplied by divergence weights.

    TRL computes the policy's log-probabilities before it reads ``inputs["advantages"]`` and takes
    advantages of shape (batch, time), so the weights slip in between: everything else of the
    objective, whatever its ``loss_type``, is TRL's own.

    Parameters
    ----------
    weighting
        None trains with TRL's advantages and only logs k3.

    Notes
    -----
    On the first minibatch after a rollout the policy is still pi_old: k3 is 0 and every weight 1.
    """

    def __init__(self, *args, weighting: Weighting | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.weighting = weighting
        self._step_inputs: dict | None = None

    def _compute_loss(self, model, inputs):
        if self.weighting is not None and "old_per_token_logps" not in inputs:
            raise TokenshiftError(
                "DivergenceWeightedGRPOTrainer: TRL computed no old log-probabilities, so that every"
                " weight would be 1; set steps_per_generation to more than"
                " gradient_accumulation_steps, or num_iterations above 1."
            )
        # A copy: TRL hands out the same dict again on later iterations and weights would compound.
        self._step_inputs = dict(inputs)
        try:
            return super()._compute_loss(model, self._step_inputs)
        finally:
            self._step_inputs = None

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        outputs = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._step_inputs is not None and "old_per_token_logps" in self._step_inputs:
            self._weigh(outputs[0].detach())
        return outputs

    def _weigh(self, logp_new: Tensor) -> None:
        inputs = self._step_inputs
        mask = inputs["completion_mask"].bool()
        divergence = k3(logp_new, inputs["old_per_token_logps"])
        self._log_token_metric("k3/mean", divergence[mask].mean())
        for percent in (50, 90, 99):
            self._log_token_metric(f"k3/p{percent}", divergence[mask].quantile(percent / 100))
        if self.weighting is None:
            return
        weights = divergence_weights(divergence, self.weighting)
        advantages = inputs["advantages"]
        inputs["advantages"] = (
            advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
        ) * weights
        kept = weights[mask]
        self._log_token_metric("weights/mean", kept.mean())
        self._log_token_metric("weights/std", kept.std(correction=0))
        self._log_token_metric("weights/share_above_1", (kept > 1).float().mean())

    def _log_token_metric(self, name: str, value: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        value = self.accelerator.gather(value.to(torch.float32)).nanmean()
        self._metrics[mode][name].append(value.item())
