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

from tokenshift_utils.measures import noise
from tokenshift_utils.measures.nucleus import truncate
from tokenshift_utils.measures.top_logprobs import Aligned, Listed, align, join
from tokenshift_utils.models.policy import Engine, Sampling
from tokenshift_utils.pairs.engine_mixer import best_request, check_engines
from tokenshift_utils.pairs.frontier import Frontier, compare
from tokenshift_utils.pairs.mixer import COMPARED_LOGITS, Insertion
from tokenshift_utils.pairs.tree import BASE, HALF, TUNED, WHOLE
from tokenshift_utils.pairs.walks import Walkers

ENTROPY = ("entropy_base", "entropy_tuned")


class EngineFrontier(Frontier):
    """The requests that serve some walkers, at most ``rows`` places a round.

    Raises ``TokenshiftError`` where a walk's rule, or the sampling, takes whole distributions and
    an engine lists the most probable tokens only.
    """

    def __init__(
        self,
        engines: tuple[Engine, Engine],
        prompts: Sequence[Sequence[int]],
        own_keys: Sequence[int] | None,
        walkers: Walkers,
        sampling: Sampling,
        stops: Sequence[int],
        rows: int,
        block: int | None = None,
    ) -> None:
        cpu = torch.device("cpu")  # where engines' answers are
        super().__init__(prompts, own_keys, walkers, sampling, stops, cpu, block)
        for walk in walkers.walks:
            check_engines(engines, sampling, walk.rule, walk.insertion)
        for engine in engines:
            engine.forget()
        self._engines, self._rows = engines, rows
        self._texts: dict[int, np.ndarray] = {}  # responses up to the places reached last

    def run(self, who: np.ndarray) -> None:
        """Let the walkers ``who`` go on until all are done."""
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
                self._compare(
                    model, places[some], drafted[some], both, who[mine], lane[mine], nodes
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
            {ENTROPY[model]: own.whole_measures()["entropy_p"].numpy()},
            {model: tokens.numpy()},
            {(model, model): logp.numpy()},
        )

    def _compare(
        self,
        model: int,
        places: np.ndarray,
        drafted: np.ndarray,
        both: tuple[Listed, Listed],
        who: np.ndarray,
        lane: np.ndarray,
        nodes: np.ndarray,
    ) -> None:
        """Learn all about ``places`` [m], where ``model`` drafted tokens, from its lists and the other's."""
        pair = align(*(both if model == BASE else both[::-1]), self._sampling.temperature)
        nuclei = [truncate(logp, self._sampling.top_p) for logp in (pair.p, pair.q)]
        keys = self._keys[self._tensor(self._trees.tree[places])]
        positions = self._tensor(self._trees.position[places])
        other = noise.draw(nuclei[1 - model].log_probs(), keys, positions, pair.names)
        found = compare(*nuclei)
        if pair.partial:
            whole = pair.whole_measures()
            found |= {
                "js_full": whole["js"],
                "kl_base_tuned": whole["kl_pq"],
                "kl_tuned_base": whole["kl_qp"],
                "entropy_base": whole["entropy_p"],
                "entropy_tuned": whole["entropy_q"],
                "unknown_mass": pair.unknown_mass,
            }
        self._learn(places, WHOLE, found, {model: self._tensor(drafted), 1 - model: other}, pair)
        for source, some in self._wanted(places, who, lane, nodes):
            name, primary, gain = self._trees.sources[source]
            rows = self._tensor(some)
            p, q = (nuclei[side].select(rows) for side in (primary, 1 - primary))
            luck = keys[rows]
            if name == "own":
                luck = self._own_keys[self._tensor(self._trees.tree[places[some]])]
            probabilities = Insertion(name, gain).source(p, q).log_probs()
            drawn = noise.draw(probabilities, luck, positions[rows], pair.names[rows])
            self._learn(places[some], 0, {}, {source: drawn}, pair.select(rows))

    def _learn(
        self,
        places: np.ndarray,
        bits: int,
        found: dict[str, Tensor],
        drawn: dict[int, Tensor],
        pair: Aligned,
    ) -> None:
        logp = {
            (source, model): self._log_prob(model, places, tokens, pair)
            for source, tokens in drawn.items()
            for model in (BASE, TUNED)
        }
        drawn = {source: tokens.numpy() for source, tokens in drawn.items()}
        found = {name: values.numpy() for name, values in found.items()}
        self._trees.learn(places, bits, found, drawn, logp)

    def _log_prob(
        self, model: int, places: np.ndarray, tokens: Tensor, pair: Aligned
    ) -> np.ndarray:
        """Log-probabilities of ``tokens`` [m] at ``places``: where a list lacks one it is asked for."""
        under = (pair.p, pair.q)[model]
        logp = under.gather(1, pair.columns(tokens)[:, None]).squeeze(1)
        lacking = torch.isneginf(logp).nonzero().squeeze(-1)
        if pair.partial and len(lacking):
            nodes = places[lacking.numpy()]
            texts = self._prompted(nodes, self._trees.texts(nodes))
            given = [[token] for token in tokens[lacking].tolist()]
            logp[lacking] = join(self._engines[model].read(texts, given, None, 1)).logp[:, 0]
        return logp.numpy()
