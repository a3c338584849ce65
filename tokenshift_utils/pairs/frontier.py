"""Tree nodes that lack what a walk must know there, and what is learnt at them.

Two classes run the models: ``lanes.Lanes`` on cached sessions, ``engine_frontier.EngineFrontier`` on
engines. Each lets one model draft tokens behind such a node and the other read the drafts, and writes what
both say of every prefix on the way into the trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import Nucleus, nucleus_js, on_supports
from tokenshift_utils.models.decoding import check_prompts
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.tree import OWN_TOKENS
from tokenshift_utils.pairs.walks import Walkers


class Frontier:
    """The places at which some walkers wait, and what all who run models there have in common.

    A ``lane`` is a place that is served and the drafts behind it, a row of ``nodes`` [b, n].
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        own_keys: Sequence[int] | None,
        walkers: Walkers,
        sampling: Sampling,
        stops: Sequence[int],
        device: torch.device,
        block: int | None = None,
    ) -> None:
        check_prompts(prompts)
        self._walkers, self._trees, self._sampling = walkers, walkers.trees, sampling
        self._prompts, self._block, self._device = prompts, block, device
        self._keys = self._trees.keys.to(device)
        self._own_keys = None if own_keys is None else torch.tensor(own_keys, device=device)
        self._stops = np.array(sorted(stops), np.int64)
        self._waiting: dict[int, np.ndarray] = {}  # walkers by place
        self._cuts, self._written = [0, 0], [0, 0]  # of drafts by each model

    def _tensor(self, values) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self._device)

    def _wait(self, who: np.ndarray) -> dict[int, np.ndarray]:
        """Note where the walkers that are not done wait; walkers by place, where none waited before."""
        who = who[~self._walkers.done[who]]
        if not len(who):
            return {}
        nodes = self._walkers.node[who]
        order = np.argsort(nodes, kind="stable")
        places, starts = np.unique(nodes[order], return_index=True)
        found = {}
        for place, group in zip(places.tolist(), np.split(who[order], starts[1:])):
            if place in self._waiting:  # others wait there already, and a lane will come
                self._waiting[place] = np.concatenate([self._waiting[place], group])
            else:
                self._waiting[place] = found[place] = group
        return found

    def _chain(self, start: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The nodes ``[b, n]`` at which ``tokens`` [b, n] were drafted; -1 behind a text's end."""
        nodes = np.full(tokens.shape, -1)
        nodes[:, 0] = start
        limit = self._sampling.max_new_tokens
        for i in range(1, tokens.shape[1]):
            on = np.flatnonzero((nodes[:, i - 1] >= 0) & ~np.isin(tokens[:, i - 1], self._stops))
            on = on[self._trees.position[nodes[on, i - 1]] + 1 < limit]
            nodes[on, i] = self._trees.descend(nodes[on, i - 1], tokens[on, i - 1])
        return nodes

    def _firing(self, nodes: np.ndarray, who: np.ndarray, lane: np.ndarray) -> np.ndarray:
        """In which lanes ``[b]`` a walker's rule would fire on the drafts, as far as is known."""
        found = np.zeros(len(nodes), bool)
        for i in range(nodes.shape[1]):
            there = nodes[lane, i] >= 0
            found[lane[there][self._walkers.fires(who[there], nodes[lane[there], i])]] = True
        return found

    def _wanted(
        self, places: np.ndarray, who: np.ndarray, lane: np.ndarray, nodes: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Sources of tokens that are neither model's own, by column of ``PrefixTrees.tokens``, and at
        which of ``places`` walkers would switch to them."""
        column = self._walkers.source_column(who)
        for source in np.unique(column[column >= len(OWN_TOKENS)]).tolist():
            mine = column == source
            wanted = []
            for i in range(nodes.shape[1]):
                at = nodes[lane[mine], i]
                there = at >= 0
                wanted.append(at[there][self._walkers.fires(who[mine][there], at[there])])
            some = np.flatnonzero(np.isin(places, np.concatenate(wanted)))
            if len(some):
                yield source, some

    def _count_kept(self, model: int, nodes: np.ndarray) -> None:
        """Note how far walkers went along the drafts of ``model`` at ``nodes`` [b, n]."""
        kept = (self._trees.visited[nodes] & (nodes >= 0)).sum(1)
        self._cuts[model] += int((kept < nodes.shape[1]).sum())
        self._written[model] += int(kept.sum())


def compare(base: Nucleus, tuned: Nucleus) -> dict[str, Tensor]:
    """``tree.MEASURES`` between two models at some places, ``[n]`` each."""
    full = divergences.pair(base.logp, tuned.logp)
    tv, independent = (torch.empty_like(full.js) for _ in range(2))
    for rows, p, q in on_supports(base, tuned):
        tv[rows] = divergences.total_variation(p, q)
        independent[rows] = divergences.independent_disagreement(p, q)
    return {
        "js": nucleus_js(base, tuned),
        "js_full": full.js,
        "kl_base_tuned": full.kl_pq,
        "kl_tuned_base": full.kl_qp,
        "entropy_base": full.entropy_p,
        "entropy_tuned": full.entropy_q,
        "tv": tv,
        "independent": independent,
        "unknown_mass": torch.zeros_like(full.js),  # both are whole
    }
