"""Tree nodes that lack what a walk must know there, and what is learnt at them.

Two classes run the models: ``session_frontier`` on cached sessions, ``engine_frontier`` on engines. Each
lets one model draft tokens behind such a node and the other read the drafts, and hands over what both say
of every prefix on the way, from which the measures and tokens of the trees are made here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenshift_utils.measures import divergences, noise
from tokenshift_utils.measures.nucleus import Nucleus, nucleus_js, on_supports
from tokenshift_utils.measures.top_logprobs import Aligned
from tokenshift_utils.models.decoding import check_prompts
from tokenshift_utils.models.policy import Policy, Sampling
from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.tree import BASE, OWN_TOKENS, TUNED, WHOLE
from tokenshift_utils.pairs.walks import Walkers


@dataclass(frozen=True)
class Pair:
    """What base and tuned model say at m places.

    ``nuclei`` are of the whole vocabulary, or of the tokens that ``listed`` names.
    """

    nuclei: tuple[Nucleus, Nucleus]
    listed: Aligned | None = None

    def select(self, rows: Tensor) -> Pair:
        """Some places, by index."""
        listed = None if self.listed is None else self.listed.select(rows)
        return Pair(tuple(nucleus.select(rows) for nucleus in self.nuclei), listed)

    def draw(self, nucleus: Nucleus, keys: Tensor, positions: Tensor) -> Tensor:
        """A token at each place from a nucleus over the same tokens, ids ``[m]``."""
        if self.listed is None:
            return nucleus.draw(keys, positions)
        return noise.draw(nucleus.log_probs(), keys, positions, self.listed.names)

    def log_probs(self, model: int, tokens: Tensor) -> Tensor:
        """Of ``tokens`` [m] under one model, full; -inf where a list lacks them."""
        columns = tokens if self.listed is None else self.listed.columns(tokens)
        return self.nuclei[model].logp.gather(1, columns[:, None]).squeeze(1)

    def measures(self) -> dict[str, Tensor]:
        """``tree.MEASURES`` at each place, ``[m]``."""
        base, tuned = self.nuclei
        partial = self.listed is not None and self.listed.partial
        if partial:
            full, unknown = self.listed.full_measures(), self.listed.unknown_mass
        else:
            full = divergences.pair_measures(base.logp, tuned.logp)._asdict()
            unknown = torch.zeros_like(full["js"])
        tv, independent = (torch.empty_like(full["js"]) for _ in range(2))
        for rows, p, q in on_supports(base, tuned):
            tv[rows] = divergences.total_variation(p, q)
            independent[rows] = divergences.independent_disagreement(p, q)
        return {
            "js": nucleus_js(base, tuned),
            "js_full": full["js"],
            "kl_base_tuned": full["kl_pq"],
            "kl_tuned_base": full["kl_qp"],
            "entropy_base": full["entropy_p"],
            "entropy_tuned": full["entropy_q"],
            "tv": tv,
            "independent": independent,
            "unknown_mass": unknown,
        }


class Frontier(ABC):
    """The places at which some walkers wait, at most ``rows`` of which are served at once.

    A ``lane`` is a place that is served and the drafts behind it, a row of ``nodes`` [b, n]; ``block`` are
    the tokens drafted a round, None: as many as promise the least work.
    """

    def __init__(
        self,
        policies: tuple[Policy, Policy],
        prompts: Sequence[Sequence[int]],
        own_keys: Sequence[int] | None,
        walkers: Walkers,
        sampling: Sampling,
        stops: Sequence[int],
        rows: int,
        block: int | None = None,
    ) -> None:
        check_prompts(prompts)
        self._walkers, self._trees, self._sampling = walkers, walkers.trees, sampling
        self._prompts, self._block = prompts, block
        self._stops = np.array(sorted(stops), np.int64)
        self._waiting: dict[int, np.ndarray] = {}  # walkers by place
        self._cuts, self._written = [0, 0], [0, 0]  # of drafts by each model
        self._device = self._open(policies, rows)
        self._keys = self._trees.keys.to(self._device)
        self._own_keys = None if own_keys is None else torch.tensor(own_keys, device=self._device)

    @abstractmethod
    def _open(self, policies: tuple[Policy, Policy], rows: int) -> torch.device:
        """Make the models ready for so many rows; where their answers are."""

    @abstractmethod
    def run(self, who: np.ndarray) -> None:
        """Let the walkers ``who`` go on until all are done."""

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

    def _learn_pair(
        self,
        model: int,
        places: np.ndarray,
        drafted: Tensor,
        pair: Pair,
        who: np.ndarray,
        lane: np.ndarray,
        nodes: np.ndarray,
    ) -> None:
        """Write all about ``places`` [m], where ``model`` drafted tokens, into the trees.

        Where walkers ``who`` of the lanes ``lane`` switch to a token that is neither model's own, it is
        drawn too. ``nodes`` [b, n] are those of all lanes.
        """
        keys, positions = self._luck(self._keys, places), self._tensor(self._trees.position[places])
        other = pair.draw(pair.nuclei[1 - model], keys, positions)
        drawn = {model: drafted, 1 - model: other}
        self._learn(places, WHOLE, pair.measures(), drawn, pair)
        for source, some in self._wanted(places, who, lane, nodes):
            name, primary, gain = self._trees.sources[source]
            rows = self._tensor(some)
            here = pair.select(rows)
            p, q = here.nuclei[primary], here.nuclei[1 - primary]
            luck = self._luck(self._own_keys if name == "own" else self._keys, places[some])
            inserted = here.draw(Insertion(name, gain).source(p, q), luck, positions[rows])
            self._learn(places[some], 0, {}, {source: inserted}, here)

    def _luck(self, keys: Tensor, places: np.ndarray) -> Tensor:
        return keys[self._tensor(self._trees.tree[places])]

    def _learn(
        self,
        places: np.ndarray,
        bits: int,
        found: dict[str, Tensor],
        drawn: dict[int, Tensor],
        pair: Pair,
    ) -> None:
        logp = {
            (source, model): self._log_probs(model, places, tokens, pair).cpu().numpy()
            for source, tokens in drawn.items()
            for model in (BASE, TUNED)
        }
        drawn = {source: tokens.cpu().numpy() for source, tokens in drawn.items()}
        found = {name: values.cpu().numpy() for name, values in found.items()}
        self._trees.learn(places, bits, found, drawn, logp)

    def _log_probs(self, model: int, places: np.ndarray, tokens: Tensor, pair: Pair) -> Tensor:
        """Log-probabilities of ``tokens`` [m] at ``places``."""
        return pair.log_probs(model, tokens)

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
