"""Running two engines where walks wait, in rounds of requests; see ``frontier``.

A node is expanded by three requests at most: the model that most walks follow drafts a block from its
text on, the other reads the block after the same text, and where one draws a token that is on no list
of the other, that one is asked about it. Engines cache the prefixes that they have read, so that nodes
of one tree are expanded together, and the first trees before the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenshift_utils.measures.nucleus import truncate
from tokenshift_utils.measures.top_logprobs import Listed, align, join
from tokenshift_utils.models.policy import Engine, list_tokens
from tokenshift_utils.pairs.engine_mixer import best_request, check_engines
from tokenshift_utils.pairs.frontier import ENTROPY, Frontier, PairDistributions
from tokenshift_utils.pairs.mixer import COMPARED_LOGITS
from tokenshift_utils.pairs.tree import BASE, MODEL_KNOWN, TUNED


class EngineFrontier(Frontier):
    """Expands nodes by requests to two engines, at most ``rows`` nodes a round.

    Raises ``TokenshiftError`` where a walk's rule, or the sampling, takes full distributions and
    an engine lists the most probable tokens only.
    """

    def _open(self, policies: tuple[Engine, Engine], rows: int) -> torch.device:
        for walk in self._walkers.walks:
            check_engines(policies, self._sampling, walk.rule, walk.insertion)
        for engine in policies:
            engine.forget()
        self._engines, self._rows = policies, rows
        self._texts: dict[int, np.ndarray] = {}  # responses up to the nodes that wait, by node
        return torch.device("cpu")

    def run(self, walker: np.ndarray) -> None:
        self._walkers.advance(walker)
        self._enqueue(walker)
        while self._waiting:
            self._round()

    def _round(self) -> None:
        nodes = np.array(list(self._waiting), np.int64)
        order = np.lexsort((self._trees.position[nodes], self._trees.tree[nodes]))
        nodes = nodes[order][: self._rows]
        texts = self._responses(nodes)
        groups = [self._waiting.pop(node) for node in nodes.tolist()]
        walker = np.concatenate(groups)
        lane = np.repeat(np.arange(len(nodes)), [len(group) for group in groups])
        drafter, alone = self._walkers.choose_drafters(groups)
        drafted = []
        for model in (BASE, TUNED):
            some = np.flatnonzero(drafter == model)
            if len(some):
                mine = np.isin(lane, some)
                at = np.searchsorted(some, lane[mine])
                given = [texts[i] for i in some]
                drafted.append(
                    (model, self._expand(model, nodes[some], given, alone[some], walker[mine], at))
                )
        self._walkers.advance(walker)
        for model, paths in drafted:
            self._count_accepted(model, paths)
        found = self._enqueue(walker)
        served = {int(w): i for w, i in zip(walker, lane)}
        self._texts = {
            node: self._extend(texts[served[int(group[0])]], node) for node, group in found.items()
        }

    # Texts --------------------------------------------------------------------------------------

    def _responses(self, nodes: np.ndarray) -> list[np.ndarray]:
        """The response tokens up to each of some nodes."""
        away = np.array([node for node in nodes.tolist() if node not in self._texts], np.int64)
        texts = self._texts | dict(zip(away.tolist(), self._trees.texts(away)))
        return [texts[node] for node in nodes.tolist()]

    def _extend(self, text: np.ndarray, node: int) -> np.ndarray:
        """The response tokens up to ``node``, which begin with ``text``."""
        more = []
        while self._trees.position[node] > len(text):
            more.append(self._trees.token[node])
            node = self._trees.parent[node]
        return np.concatenate([text, np.array(more[::-1], np.int64)])

    def _prompted(self, nodes: np.ndarray, texts: Sequence[np.ndarray]) -> list[list[int]]:
        trees = self._trees.tree[nodes]
        return [[*self._prompts[t], *text.tolist()] for t, text in zip(trees, texts)]

    # Requests -----------------------------------------------------------------------------------

    def _expand(
        self,
        model: int,
        start: np.ndarray,
        written: list[np.ndarray],
        alone: np.ndarray,
        walker: np.ndarray,
        lane: np.ndarray,
    ) -> np.ndarray:
        """Draft from ``start`` [b] on with ``model``, let the other read, and update the trees.

        Returns the nodes ``[b, n]`` at which tokens were drafted, -1 after a text's end.
        """
        position = self._trees.position[start]
        n = self._block or best_request(self._cuts[model], self._accepted[model])
        counts = np.minimum(n, self._sampling.max_new_tokens - position).tolist()
        keys = self._keys[self._tensor(self._trees.tree[start])].tolist()
        texts = self._prompted(start, written)
        drafts = self._engines[model].draft(
            texts, keys, position.tolist(), counts, self._sampling, self._stops.tolist()
        )
        tokens = np.full((len(start), max(counts)), -1)
        for row, (ids, _) in enumerate(drafts):
            tokens[row, : len(ids)] = ids
        paths = self._draft_paths(start, tokens)
        lists = [found for _, found in drafts]
        for row in np.flatnonzero(alone):
            self._update_one(model, paths[row], tokens[row], lists[row])
        fired = self._fires_in(paths, walker, lane) & alone
        read = np.flatnonzero(~alone | fired)
        if len(read):
            given = [drafts[row][0] for row in read]
            contexts = [texts[row] for row in read]
            theirs = join(self._engines[1 - model].read(contexts, given, self._sampling.top_p))
            ours, valid = join([lists[row] for row in read]), paths[read] >= 0
            nodes, drafted = paths[read][valid], tokens[read][valid]
            mine = np.isin(lane, read)
            width = ours.ids.shape[1] + theirs.ids.shape[1]
            together = max(1, COMPARED_LOGITS // width)
            for first in range(0, len(nodes), together):
                some = slice(first, first + together)
                both = ours.select(some), theirs.select(some)
                listed = align(*(both if model == BASE else both[::-1]), self._sampling.temperature)
                nuclei = (truncate(p, self._sampling.top_p) for p in (listed.p, listed.q))
                pair, drawn = PairDistributions(tuple(nuclei), listed), self._tensor(drafted[some])
                self._update_pair(model, nodes[some], drawn, pair, walker[mine], lane[mine], paths)
        return paths

    def _update_one(self, model: int, path: np.ndarray, tokens: np.ndarray, lists: Listed) -> None:
        """Write what follows from ``model`` alone along the ``path`` [n] that its ``lists`` are of."""
        nodes, tokens = path[path >= 0], self._tensor(tokens[path >= 0])
        own = align(lists, lists, self._sampling.temperature)
        logp = own.p.gather(1, own.columns(tokens)[:, None]).squeeze(1)
        self._trees.update(
            nodes,
            MODEL_KNOWN[model],
            {ENTROPY[model]: own.full_measures()["entropy_p"].numpy()},
            {model: tokens.numpy()},
            {(model, model): logp.numpy()},
        )

    def _log_probs(
        self, model: int, nodes: np.ndarray, tokens: Tensor, pair: PairDistributions
    ) -> Tensor:
        logp = super()._log_probs(model, nodes, tokens, pair)
        lacking = torch.isneginf(logp).nonzero().squeeze(-1)
        if pair.listed.partial and len(lacking):  # on no list of the model, which is asked
            asked = nodes[lacking.numpy()]
            texts = self._prompted(asked, self._trees.texts(asked))
            logp[lacking] = list_tokens(self._engines[model], texts, tokens[lacking]).logp[:, 0]
        return logp
