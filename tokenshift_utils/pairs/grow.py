"""Trees of prefixes, grown by the frontier that suits how the models draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.decoding import check_positions, check_prompts
from tokenshift_utils.models.policy import Policy, Sampling, stop_ids
from tokenshift_utils.pairs.cross_sample import check_pair
from tokenshift_utils.pairs.engine_frontier import EngineFrontier
from tokenshift_utils.pairs.session_frontier import SessionFrontier
from tokenshift_utils.pairs.tree import PrefixTrees
from tokenshift_utils.pairs.walks import Walk, Walkers


@torch.inference_mode()
def grow(
    base: Policy,
    tuned: Policy,
    prompts: Sequence[Sequence[int]],
    row_keys: Sequence[int],
    walks: Sequence[Walk],
    sampling: Sampling,
    batch_size: int,
    null_keys: Sequence[int] | None = None,
    block: int | Literal["auto"] = "auto",
    trees: PrefixTrees | None = None,
    wanted: Sequence[Sequence[int]] | None = None,
) -> Walkers:
    """Take ``walks`` through the trees of ``prompts``, running the models only where these end.

    Parameters
    ----------
    null_keys : row keys of another stream, for the insertion "own"
    block : tokens drafted a round; "auto" follows how far walks went along the drafts so far
    trees : those grown before, of the same prompts and noise; they grow further. None: new ones
    wanted : which of the walks each prompt is wanted for, indices into ``walks``; None: all

    Returns
    -------
    The walkers, all done, prompt by prompt and walk by walk; their ``trees`` can be kept, and their
    ``result()`` is what ``cross_sample.cross_sample`` gives.
    """
    check_pair(base, tuned)
    check_prompts(prompts, row_keys=row_keys, null_keys=null_keys)
    if null_keys is None and any(walk.insertion.name == "own" for walk in walks):
        raise TokenshiftError("the insertion 'own' needs row keys of another stream (null_keys)")
    if not len(prompts) or not len(walks):
        raise TokenshiftError("there are no prompts or no walks to take through their trees")
    for policy in (base, tuned):
        check_positions(policy, prompts, sampling.max_new_tokens)
    stops = stop_ids(base, tuned)
    trees = PrefixTrees(row_keys) if trees is None else trees
    for walk in walks:
        trees.add_source(walk.source)
    wanted = [range(len(walks))] * len(prompts) if wanted is None else wanted
    owners = np.array([(i, w) for i, some in enumerate(wanted) for w in some]).T
    walkers = Walkers(trees, walks, owners, stops, sampling.max_new_tokens)
    rows = min(batch_size, len(walkers.tree))
    given = None if block == "auto" else block
    kind = EngineFrontier if base.draws_inside else SessionFrontier
    frontier = kind((base, tuned), prompts, null_keys, walkers, sampling, stops, rows, given)
    frontier.run(np.arange(len(walkers.tree)))
    return walkers
