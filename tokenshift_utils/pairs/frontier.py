"""Tree nodes that lack what a walk must know there, and what is computed at them.

Two classes run the models: ``session_frontier`` on cached sessions, ``engine_frontier`` on engines. Each
lets one model draft tokens from such a node on and the other read the drafts; from both distributions at
every prefix on the way, the measures and tokens of the tree's nodes are made here.
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
from tokenshift_utils.pairs.tree import ALL_KNOWN, BASE, MODEL_SOURCES, TUNED
from tokenshift_utils.pairs.walks import Walkers

ENTROPY = ("entropy_base", "entropy_tuned")


@dataclass(frozen=True)
class PairDistributions:
    """Base's and tuned's next-token distributions at m nodes.

    ``nuclei`` are of the whole vocabulary, or of the tokens that ``listed`` names.
    """

    nuclei: tuple[Nucleus, Nucleus]
    listed: Aligned | None = None

    def select(self, rows: Tensor) -> PairDistributions:
        """Some nodes, by index."""
        listed = None if self.listed is None else self.listed.select(rows)
        return PairDistributions(tuple(nucleus.select(rows) for nucleus in self.nuclei), listed)

    def draw(self, nucleus: Nucleus, keys: Tensor, positions: Tensor) -> Tensor:
        """A token at each node from a nucleus over the same tokens, ids ``[m]``."""
        if self.listed is None:
            return nucleus.draw(keys, positions)
        return noise.draw(nucleus.log_probs(), keys, positions, self.listed.names)

    def log_probs(self, model: int, tokens: Tensor) -> Tensor:
        """Of ``tokens`` [m] under one model, full; -inf where a list lacks them."""
        columns = tokens if self.listed is None else self.listed.columns(tokens)
        return self.nuclei[model].logp.gather(1, columns[:, None]).squeeze(1)

    def measures(self) -> dict[str, Tensor]:
        """``tree.NODE_MEASURES`` at each node, ``[m]``."""
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
    """The nodes at which walkers wait for the models, at most ``rows`` of which are expanded at once.

    A lane expands one node: the drafts from there on are a path in the tree, a row of ``paths`` [b, n].
    ``block`` is how many tokens are drafted a round, None: as many as promise the least work.

    ``walker`` and ``lane`` [m] say which walkers wait in which lanes, by index.
    """

    def __init__(
        self,
        policies: tuple[Policy, Policy],
        prompts: Sequence[Sequence[int]],
        null_keys: Sequence[int] | None,
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
        self._waiting: dict[int, np.ndarray] = {}  # walkers by node
        self._cuts, self._accepted = [0, 0], [0, 0]  # of drafts by each model
        self._device = self._open(policies, rows)
        self._keys = self._trees.keys.to(self._device)
        self._null_keys = (
            None if null_keys is None else torch.tensor(null_keys, device=self._device)
        )

    @abstractmethod
    def _open(self, policies: tuple[Policy, Policy], rows: int) -> torch.device:
        """Make the models ready for so many rows; the device of their outputs."""

    @abstractmethod
    def run(self, walker: np.ndarray) -> None:
        """Let these walkers go on until all are done."""

    def _tensor(self, values) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self._device)

    def _enqueue(self, walker: np.ndarray) -> dict[int, np.ndarray]:
        """Note where the walkers that are not done wait; walkers by node, where none waited before."""
        walker = walker[~self._walkers.done[walker]]
        if not len(walker):
            return {}
        at = self._walkers.node[walker]
        order = np.argsort(at, kind="stable")
        nodes, starts = np.unique(at[order], return_index=True)
        found = {}
        for node, group in zip(nodes.tolist(), np.split(walker[order], starts[1:])):
            if node in self._waiting:  # others wait there already, and a lane will come
                self._waiting[node] = np.concatenate([self._waiting[node], group])
            else:
                self._waiting[node] = found[node] = group
        return found

    def _draft_paths(self, start: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The nodes ``[b, n]`` at which ``tokens`` [b, n] were drafted; -1 after a text's end."""
        paths = np.full(tokens.shape, -1)
        paths[:, 0] = start
        limit = self._sampling.max_new_tokens
        for i in range(1, tokens.shape[1]):
            on = np.flatnonzero((paths[:, i - 1] >= 0) & ~np.isin(tokens[:, i - 1], self._stops))
            on = on[self._trees.position[paths[on, i - 1]] + 1 < limit]
            paths[on, i] = self._trees.descend(paths[on, i - 1], tokens[on, i - 1])
        return paths

    def _fires_in(self, paths: np.ndarray, walker: np.ndarray, lane: np.ndarray) -> np.ndarray:
        """In which lanes ``[b]`` a walker's rule would fire on the drafts, as far as is known."""
        found = np.zeros(len(paths), bool)
        for i in range(paths.shape[1]):
            valid = paths[lane, i] >= 0
            found[lane[valid][self._walkers.fires(walker[valid], paths[lane[valid], i])]] = True
        return found

    def _update_pair(
        self,
        model: int,
        nodes: np.ndarray,
        drafted: Tensor,
        pair: PairDistributions,
        walker: np.ndarray,
        lane: np.ndarray,
        paths: np.ndarray,
    ) -> None:
        """Write all about ``nodes`` [m], where ``model`` drafted tokens, into the trees.

        The other model's token, which a switch takes, is drawn from its nucleus with the same noise;
        where walkers of these lanes switch to a token that is neither model's own, that is drawn too.
        """
        keys, positions = (
            self._noise_keys(self._keys, nodes),
            self._tensor(self._trees.position[nodes]),
        )
        other = pair.draw(pair.nuclei[1 - model], keys, positions)
        self._update(nodes, ALL_KNOWN, pair.measures(), {model: drafted, 1 - model: other}, pair)
        for source, some in self._inserted(nodes, walker, lane, paths):
            name, primary, gain = self._trees.sources[source]
            rows = self._tensor(some)
            here = pair.select(rows)
            p, q = here.nuclei[primary], here.nuclei[1 - primary]
            keys = self._noise_keys(self._null_keys if name == "own" else self._keys, nodes[some])
            inserted = here.draw(Insertion(name, gain).source(p, q), keys, positions[rows])
            self._update(nodes[some], 0, {}, {source: inserted}, here)

    def _noise_keys(self, keys: Tensor, nodes: np.ndarray) -> Tensor:
        return keys[self._tensor(self._trees.tree[nodes])]

    def _update(
        self,
        nodes: np.ndarray,
        bits: int,
        measures: dict[str, Tensor],
        drawn: dict[int, Tensor],
        pair: PairDistributions,
    ) -> None:
        logp = {
            (source, model): self._log_probs(model, nodes, tokens, pair).cpu().numpy()
            for source, tokens in drawn.items()
            for model in (BASE, TUNED)
        }
        drawn = {source: tokens.cpu().numpy() for source, tokens in drawn.items()}
        measures = {name: values.cpu().numpy() for name, values in measures.items()}
        self._trees.update(nodes, bits, measures, drawn, logp)

    def _log_probs(
        self, model: int, nodes: np.ndarray, tokens: Tensor, pair: PairDistributions
    ) -> Tensor:
        """Log-probabilities of ``tokens`` [m] at ``nodes``."""
        return pair.log_probs(model, tokens)

    def _inserted(
        self, nodes: np.ndarray, walker: np.ndarray, lane: np.ndarray, paths: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Sources of tokens that are neither model's own, by column of ``PrefixTrees.tokens``, and at
        which of ``nodes`` walkers would switch to them."""
        column = self._walkers.source_column(walker)
        for source in np.unique(column[column >= len(MODEL_SOURCES)]).tolist():
            mine = column == source
            switched = []
            for i in range(paths.shape[1]):
                at = paths[lane[mine], i]
                valid = at >= 0
                switched.append(at[valid][self._walkers.fires(walker[mine][valid], at[valid])])
            some = np.flatnonzero(np.isin(nodes, np.concatenate(switched)))
            if len(some):
                yield source, some

    def _count_accepted(self, model: int, paths: np.ndarray) -> None:
        """Note how many drafts of ``model`` along ``paths`` [b, n] walkers took."""
        accepted = (self._trees.visited[paths] & (paths >= 0)).sum(1)
        self._cuts[model] += int((accepted < paths.shape[1]).sum())
        self._accepted[model] += int(accepted.sum())
