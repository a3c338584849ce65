"""Mixed responses of two policies, by the mixer that suits how they draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.decoding import check_positions
from tokenshift_utils.models.policy import Policy, Sampling
from tokenshift_utils.pairs.engine_mixer import EngineMixer
from tokenshift_utils.pairs.mixer import INTERVENTION_TOKEN, Insertion, MixedRun, Mixer
from tokenshift_utils.pairs.rules import Rule


def check_pair(primary: Policy, intervention: Policy) -> None:
    """Refuse two policies that cannot be mixed, before either runs."""
    if primary.vocab_size != intervention.vocab_size:
        raise TokenshiftError(
            f"{primary.name} has {primary.vocab_size} tokens and {intervention.name} "
            f"{intervention.vocab_size}; cross-sampling needs one vocabulary"
        )
    ends = set(primary.eos_ids), set(intervention.eos_ids)
    if all(ends) and not ends[0] & ends[1]:
        raise TokenshiftError(
            f"{primary.name} ends responses with {sorted(ends[0])} and {intervention.name} with "
            f"{sorted(ends[1])}; cross-sampling needs an end-of-sequence token that both have"
        )


@torch.inference_mode()
def cross_sample(
    primary: Policy,
    intervention: Policy,
    prompts: Sequence[Sequence[int]],
    row_keys: Sequence[int],
    rule: Rule,
    sampling: Sampling,
    batch_size: int,
    block: int | Literal["auto"] = "auto",
    insertion: Insertion = INTERVENTION_TOKEN,
    null_keys: Sequence[int] | None = None,
) -> tuple[list[MixedRun], dict[str, Tensor]]:
    """Mixed responses to ``prompts``, and every switch in them.

    What a row gets depends neither on its batch nor on ``block``. Generation stops at either's stop
    ids. No more than the distributions of one block are held at a time.

    Parameters
    ----------
    block : tokens drafted a round, at least 1 (lockstep); "auto" follows the switch rate seen so far
    null_keys : row keys of another stream, for the insertion "own"

    Returns
    -------
    runs : one a prompt, in the order given
    switches : columns ``row`` (index into ``prompts``), ``position``, ``token_primary``,
        ``token_intervention`` (int64) and ``SWITCH_COLUMNS`` (float64), by row and position
    """
    check_pair(primary, intervention)
    if block != "auto" and (not isinstance(block, int) or block < 1):
        raise TokenshiftError(f"block is {block!r}; give a whole number of at least 1, or 'auto'")
    if insertion.name == "own" and null_keys is None:
        raise TokenshiftError("the insertion 'own' needs row keys of another stream (null_keys)")
    if not len(prompts):
        raise TokenshiftError("there are no prompts to cross-sample")
    for policy in (primary, intervention):
        check_positions(policy, prompts, sampling.max_new_tokens)
    kind = EngineMixer if primary.draws_inside else Mixer
    mixer = kind(primary, intervention, prompts, row_keys, rule, sampling, batch_size, insertion)
    if null_keys is not None:
        mixer.null_keys = torch.tensor(null_keys, dtype=torch.long, device=mixer.lanes.item.device)
    while mixer.refill():
        mixer.round(mixer.adaptive_block() if block == "auto" else block)
    return mixer.result()
