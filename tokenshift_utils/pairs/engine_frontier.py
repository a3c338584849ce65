"""Running two engines where walks wait, in rounds of requests. ``frontier`` says what for.

A place is served by three requests at most: the model that most walks follow drafts a block behind
its text, the other reads the block behind the same text, and where one draws a token that is on no
list of the other, that one is asked about it. Engines keep the texts that they have read, so that
places of one tree are served together, and the first trees before the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenshift_utils.measures.nucleus import truncate
from tokenshift_utils.measures.top_logprobs import Listed, align, join
from tokenshift_utils.models.policy import Engine
from tokenshift_utils.pairs.engine_mixer import best_request, check_engines
from tokenshift_utils.pairs.frontier import Frontier, Pair
from tokenshift_utils.pairs.mixer import COMPARED_LOGITS
from tokenshift_utils.pairs.tree import BASE, HALF, TUNED

ENTROPY = ("entropy_base", "entropy_tuned")


class EngineFrontier(Frontier):
    """The requests that serve some walkers, at most ``rows`` places a round.

    Raises ``TokenshiftError`` where a walk's rule, or the sampling, takes full distributions and
    an engine lists the most probable tokens only.
    """

    def _open(self, policies: tuple[Engine, Engine], rows: int) -> torch.device:
        for walk in self._walkers.walks:
            check_engines(policies, self._sampling, walk.rule, walk.insertion)
        for engine in policies:
            engine.forget()
        self._engines, self._rows = policies, rows
        self._texts: dict[int, np.ndarray] = {}  # responses up to the places reached last
        return torch.device("cpu")

    def run(self, who: np.ndarray) -> None:
        self._walkers.advance(who)
        self._wait(who)
        while self._waiting:
            self._round()

    def _round(self) -> None:
        nodes = np.array(list(self._waiting), np.int64)
        order = np.lexsort((self._trees.position[nodes], self._trees.tree[nodes]))
        nodes = nodes[order][: self._rows]
        texts = self._written_before(nodes)
        groups = [self._waiting.pop(node) for node in nodes.tolist()]
        who = np.concatenate(groups)
        lane = np.repeat(np.arange(len(nodes)), [len(group) for group in groups])
        drafter, alone = self._walkers.followed(groups)
        paths = []
        for model in (BASE, TUNED):
            some = np.flatnonzero(drafter == model)
            if len(some):
                mine = np.isin(lane, some)
                at = np.searchsorted(some, lane[mine])
                given = [texts[i] for i in some]
                paths.append(
                    (model, self._serve(model, nodes[some], given, alone[some], who[mine], at))
                )
        self._walkers.advance(who)
        for model, drafted in paths:
            self._count_kept(model, drafted)
        found = self._wait(who)
        served = {int(w): i for w, i in zip(who, lane)}
        self._texts = {
            place: self._longer(texts[served[int(group[0])]], place)
            for place, group in found.items()
        }

    # Texts --------------------------------------------------------------------------------------

    def _written_before(self, nodes: np.ndarray) -> list[np.ndarray]:
        """The response tokens before each of some places."""
        away = np.array([node for node in nodes.tolist() if node not in self._texts], np.int64)
        texts = self._texts | dict(zip(away.tolist(), self._trees.texts(away)))
        return [texts[node] for node in nodes.tolist()]

    def _longer(self, text: np.ndarray, place: int) -> np.ndarray:
        """The response tokens before ``place``, which ``text`` begins with."""
        more = []
        while self._trees.position[place] > len(text):
            more.append(self._trees.token[place])
            place = self._trees.parent[place]
        return np.concatenate([text, np.array(more[::-1], np.int64)])

    def _prompted(self, nodes: np.ndarray, texts: Sequence[np.ndarray]) -> list[list[int]]:
        trees = self._trees.tree[nodes]
        return [[*self._prompts[t], *text.tolist()] for t, text in zip(trees, texts)]

    # Requests -----------------------------------------------------------------------------------

    def _serve(
        self,
        model: int,
        start: np.ndarray,
        written: list[np.ndarray],
        alone: np.ndarray,
        who: np.ndarray,
        lane: np.ndarray,
    ) -> np.ndarray:
        """Draft behind ``start`` [b] with ``model``, let the other read, and learn what they say.

        Returns the nodes ``[b, n]`` at which tokens were drafted, -1 behind a text's end.
        """
        position = self._trees.position[start]
        n = self._block or best_request(self._cuts[model], self._written[model])
        counts = np.minimum(n, self._sampling.max_new_tokens - position).tolist()
        keys = self._keys[self._tensor(self._trees.tree[start])].tolist()
        texts = self._prompted(start, written)
        drafts = self._engines[model].draft(
            texts, keys, position.tolist(), counts, self._sampling, self._stops.tolist()
        )
        tokens = np.full((len(start), max(counts)), -1)
        for row, (ids, _) in enumerate(drafts):
            tokens[row, : len(ids)] = ids
        nodes = self._chain(start, tokens)
        lists = [found for _, found in drafts]
        for row in np.flatnonzero(alone):
            self._learn_alone(model, nodes[row], tokens[row], lists[row])
        fired = self._firing(nodes, who, lane) & alone
        read = np.flatnonzero(~alone | fired)
        if len(read):
            given = [drafts[row][0] for row in read]
            behind = [texts[row] for row in read]
            theirs = join(self._engines[1 - model].read(behind, given, self._sampling.top_p))
            ours, inside = join([lists[row] for row in read]), nodes[read] >= 0
            places, drafted = nodes[read][inside], tokens[read][inside]
            mine = np.isin(lane, read)
            width = ours.ids.shape[1] + theirs.ids.shape[1]
            together = max(1, COMPARED_LOGITS // width)
            for first in range(0, len(places), together):
                some = slice(first, first + together)
                both = ours.select(some), theirs.select(some)
                listed = align(*(both if model == BASE else both[::-1]), self._sampling.temperature)
                nuclei = (truncate(p, self._sampling.top_p) for p in (listed.p, listed.q))
                pair, tokens_here = Pair(tuple(nuclei), listed), self._tensor(drafted[some])
                self._learn_pair(
                    model, places[some], tokens_here, pair, who[mine], lane[mine], nodes
                )
        return nodes

    def _learn_alone(
        self, model: int, nodes: np.ndarray, tokens: np.ndarray, lists: Listed
    ) -> None:
        """What ``model`` alone says at the ``nodes`` [n] of a draft that its ``lists`` are of."""
        nodes, tokens = nodes[nodes >= 0], self._tensor(tokens[nodes >= 0])
        own = align(lists, lists, self._sampling.temperature)
        logp = own.p.gather(1, own.columns(tokens)[:, None]).squeeze(1)
        self._trees.learn(
            nodes,
            HALF[model],
            {ENTROPY[model]: own.full_measures()["entropy_p"].numpy()},
            {model: tokens.numpy()},
            {(model, model): logp.numpy()},
        )

    def _log_probs(self, model: int, places: np.ndarray, tokens: Tensor, pair: Pair) -> Tensor:
        logp = super()._log_probs(model, places, tokens, pair)
        lacking = torch.isneginf(logp).nonzero().squeeze(-1)
        if pair.listed.partial and len(lacking):  # on no list of the model, which is asked
            nodes = places[lacking.numpy()]
            texts = self._prompted(nodes, self._trees.texts(nodes))
            given = [[token] for token in tokens[lacking].tolist()]
            logp[lacking] = join(self._engines[model].read(texts, given, None, 1)).logp[:, 0]
        return logp
