"""The divergence-weighted objective as a subclass of TRL's GRPOTrainer (paper section 4)."""

import math

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import log_softmax32
from tokenshift_utils.measures.weighting import Weighting, divergence_weights, k3, one_minus_p

HELD_LOGITS = 2**26  # of each model that the signals with a reference hold at once (256 MiB)


class DivergenceWeightedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose per-token advantages are multiplied by divergence weights.

    TRL computes the policy's log-probabilities before it reads ``inputs["advantages"]`` and takes
    advantages of shape (batch, time), so the weights slip in between: everything else of the
    objective, whatever its ``loss_type``, is TRL's own.

    Parameters
    ----------
    weighting
        None trains with TRL's advantages and only logs k3.
    reference
        Model that the signals ``kl_ref`` and ``js_ref`` compare with, whole on every process; None
        takes TRL's own, which it has where ``beta`` is not 0 and which may be sharded.
    honest_mask
        With ``top_entropy_quantile`` below 1 TRL drops the loss of the other tokens and still
        divides by all of them, so that the gradient shrinks with the share kept. True divides by
        the tokens kept.

    Notes
    -----
    On the first minibatch after a rollout the policy is still pi_old: k3 is 0 and every weight 1.
    """

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: GRPOConfig | None = None,
        *others,
        weighting: Weighting | None = None,
        reference: torch.nn.Module | None = None,
        honest_mask: bool = False,
        **kwargs,
    ):
        _check(weighting, GRPOConfig() if args is None else args, reference)
        super().__init__(model, reward_funcs, args, *others, **kwargs)
        self.weighting = weighting
        self.honest_mask = honest_mask
        self._reference = reference if reference is not None else self.ref_model
        if weighting is not None and weighting.needs_reference and self._reference is None:
            raise TokenshiftError(
                f"DivergenceWeightedGRPOTrainer: signal '{weighting.signal}' compares with a reference"
                " model, and TRL keeps none of its own for an adapter; pass reference=MODEL."
            )
        if reference is not None:
            self._reference = self.accelerator.prepare_model(reference, evaluation_mode=True)
        self._step_inputs: dict | None = None
        self._shuffler = torch.Generator()
        self._shuffled_step = -1

    def _compute_loss(self, model, inputs):
        needed = self.weighting is not None and self.weighting.needs_old_logps
        if needed and "old_per_token_logps" not in inputs:
            raise TokenshiftError(
                "DivergenceWeightedGRPOTrainer: this step's inputs have no old log-probabilities, so"
                " that every weight would be 1; let TRL compute them (old_per_token_logps)."
            )
        # A copy: TRL hands out the same dict again on later iterations and weights would compound.
        self._step_inputs = dict(inputs)
        try:
            return super()._compute_loss(model, self._step_inputs)
        finally:
            self._step_inputs = None

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, *args, **kwargs):
        outputs = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, *args, **kwargs
        )
        if self._step_inputs is not None:
            logp, entropy = outputs[0].detach(), outputs[1]
            self._weigh(logp, entropy, model, input_ids, attention_mask)
        return outputs

    def _weigh(self, logp: Tensor, entropy: Tensor, model, input_ids, attention_mask) -> None:
        """Log k3 and multiply the step's advantages by the weights. Tensors are [batch, time]."""
        inputs, weighting = self._step_inputs, self.weighting
        mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask = mask & inputs["tool_mask"].bool()
        old, divergence, weights = inputs.get("old_per_token_logps"), None, None
        if old is not None:
            divergence = k3(logp, old)
            self._log_tokens("k3", divergence[mask], quantiles=(50, 90, 99))
        if weighting is not None:
            if weighting.signal == "k3":
                signal = divergence
            elif weighting.signal == "entropy":
                signal = entropy.detach()
            elif weighting.signal == "one_minus_p":
                signal = one_minus_p(logp)
            else:
                signal = self._distance_to_reference(
                    model, input_ids, attention_mask, logp.shape[1]
                )
            weights = self._over_batch(divergence_weights(signal, weighting), mask)
            advantages = inputs["advantages"]
            if advantages.dim() == 1:
                advantages = advantages.unsqueeze(1)
            inputs["advantages"] = advantages * weights
            self._log_tokens("weights", weights[mask], spread=True)
        self._observe(mask, divergence, weights)

    def _over_batch(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Shuffle weights among the tokens of the micro-batch; divide by their mean over them."""
        if self.weighting.shuffle:
            # Drawn anew from (seed, step, process), so that a resumed run deals the same hands.
            if self._shuffled_step != self.state.global_step:
                self._shuffled_step = self.state.global_step
                place = (self.args.seed * 1_000_003 + self._shuffled_step) * 4096
                self._shuffler.manual_seed(place + self.accelerator.process_index)
            kept = weights[mask]
            order = torch.randperm(len(kept), generator=self._shuffler).to(kept.device)
            weights = weights.masked_scatter(mask, kept[order])
        if self.weighting.normalise:
            totals = torch.stack([(weights * mask).sum(), mask.sum().to(weights.dtype)])
            total, count = self.accelerator.reduce(totals, reduction="sum")
            weights = weights * (count / total if count > 0 else 1.0)
        return weights

    @torch.no_grad()
    def _distance_to_reference(self, model, input_ids, attention_mask, width: int) -> Tensor:
        """Exact KL or JS to the reference, nats, [batch, width]: a forward of each model more."""
        measure = divergences.kl if self.weighting.signal == "kl_ref" else divergences.js
        vocabulary = self.accelerator.unwrap_model(model).config.get_text_config().vocab_size
        parts, rows = [], max(1, HELD_LOGITS // (width * vocabulary))
        for ids, attention in zip(input_ids.split(rows), attention_mask.split(rows)):
            pair = []
            for each in (model, self._reference):
                with self.accelerator.autocast():
                    logits = each(
                        input_ids=ids, attention_mask=attention, logits_to_keep=width + 1
                    ).logits[:, :-1]
                pair.append(log_softmax32(logits, self.temperature))
            parts.append(measure(*pair))
        return torch.cat(parts)

    def get_high_entropy_mask(self, entropies, mask, threshold):
        """TRL's mask of the most entropic tokens; with ``honest_mask`` its kept ones sum to all."""
        kept = super().get_high_entropy_mask(entropies, mask, threshold)
        if not self.honest_mask:
            return kept
        totals = torch.stack([mask.sum(), kept.sum()]).float()
        everything, remaining = self.accelerator.reduce(totals, reduction="sum")
        return kept.to(entropies.dtype) * (everything / remaining.clamp(min=1.0))

    def _observe(self, mask: Tensor, divergence: Tensor | None, weights: Tensor | None) -> None:
        """A subclass may look at a micro-batch's k3 and weights [batch, time] here."""

    def _log_tokens(self, name: str, values: Tensor, quantiles=(), spread: bool = False) -> None:
        """Log statistics of a micro-batch's values [tokens] over the tokens of all processes.

        Quantiles are means of the processes' own.
        """
        values, offset = values.float(), float(spread)  # squares about 1, near which weights are
        sums = [torch.ones_like(values), values - offset, (values - offset) ** 2, values > 1]
        totals = self.accelerator.reduce(torch.stack([s.float().sum() for s in sums]), "sum")
        count, *totals = totals.tolist()
        mean, square, above = (total / count if count else math.nan for total in totals)
        found = {"mean": mean + offset}
        if spread:
            found["std"] = math.sqrt(max(0.0, square - mean**2)) if count else math.nan
            found["share_above_1"] = above
        if quantiles:
            levels = values.new_tensor(quantiles) / 100
            # A process may have no token at all, where every response is truncated and masked out.
            own = values.quantile(levels) if len(values) else torch.full_like(levels, math.nan)
            gathered = self.accelerator.gather(own[None]).nanmean(0).tolist()
            found |= {f"p{q}": value for q, value in zip(quantiles, gathered)}
        mode = "train" if self.model.training else "eval"
        for statistic, value in found.items():
            self._metrics[mode][f"{name}/{statistic}"].append(value)


def _check(weighting: Weighting | None, args: GRPOConfig, reference) -> None:
    """Refuse, before a model is loaded, settings under which weights could not be what they say."""
    if weighting is None:
        return
    if not isinstance(weighting, Weighting):
        raise TokenshiftError(
            "DivergenceWeightedGRPOTrainer: weighting must be a Weighting (or None), got"
            f" {type(weighting).__name__}."
        )
    every = args.steps_per_generation * args.num_iterations
    if weighting.needs_old_logps and args.gradient_accumulation_steps % every == 0:
        raise TokenshiftError(
            "DivergenceWeightedGRPOTrainer: with these settings every optimiser step has freshly"
            " sampled responses, so the policy is the one that sampled (TRL then skips old"
            " log-probabilities), k3 is 0 and every weight 1; set steps_per_generation to more than"
            f" gradient_accumulation_steps ({args.gradient_accumulation_steps}), or num_iterations"
            " above 1."
        )
    if weighting.needs_reference and reference is None and args.beta == 0.0:
        raise TokenshiftError(
            f"DivergenceWeightedGRPOTrainer: signal '{weighting.signal}' compares with a reference"
            " model, and TRL loads none while beta is 0; pass reference=MODEL or set beta above 0."
        )
