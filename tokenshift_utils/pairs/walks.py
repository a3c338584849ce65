"""Walks through trees of prefixes: each is one mixture of two models.

From the root on, a walk's rule reads the node and takes one of the node's tokens, which leads to the
next. Where a node lacks what the rule reads, the walk waits until the models have been run there
(``frontier.Frontier``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenshift_utils.pairs.mixer import INTERVENTION_TOKEN, SWITCH_COLUMNS, Insertion, MixedRun
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.pairs.tree import (
    BASE,
    MODEL_KNOWN,
    NODE_VALUES,
    PAIR_KNOWN,
    TUNED,
    PrefixTrees,
    Source,
    source_of,
)

FREQUENT = 0.1  # share of positions at which a rule fires, above which both models read everything
UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Walk:
    """A way of mixing base and tuned model: forward, base writes and tuned takes over."""

    rule: Rule
    forward: bool = True
    insertion: Insertion = INTERVENTION_TOKEN

    @property
    def primary(self) -> int:
        """Which model writes, ``BASE`` or ``TUNED``."""
        return BASE if self.forward else TUNED

    @property
    def source(self) -> Source:
        """Where the token of a switched position comes from."""
        return source_of(self.insertion, self.primary)


class Walkers:
    """Some walks through some trees, each at the node that it has come to.

    Attributes
    ----------
    tree, walk, node : int64 [n], of each walker; ``walk`` is an index into ``walks``
    spent : int64 [n], how often its rule has fired
    done : bool [n]; ``final`` int64 [n] is then the response's last token, taken at ``node``
    """

    def __init__(
        self,
        trees: PrefixTrees,
        walks: Sequence[Walk],
        owners: np.ndarray,
        stops: Sequence[int],
        limit: int,
    ) -> None:
        self.trees, self.walks = trees, tuple(walks)
        self._stops, self._limit = np.array(sorted(stops), np.int64), limit
        columns = [walk.rule.kind.columns[walk.primary] for walk in walks]
        self._column = np.array([NODE_VALUES.index(name) for name in columns])
        self._threshold = np.array([walk.rule.kind.cutoff(walk.rule) for walk in walks])
        budgets = [walk.rule.budget for walk in walks]
        self._budget = np.array([UNLIMITED if b is None else int(b) for b in budgets])
        self._primary_only = np.array([not walk.rule.kind.reads_intervention for walk in walks])
        self._primary = np.array([walk.primary for walk in walks])
        self._source = np.array([trees.source(walk.source) for walk in walks])
        number = len(walks)
        # How often each walk fired, and which model's token it took where they differ: so that
        # drafts come from the model that it is likely to follow.
        self._steps, self._fired = np.ones(number), np.zeros(number)
        self._taken = np.zeros((number, 2))
        self._taken[np.arange(number), self._primary] = 4.0

        self.tree, self.walk = owners
        self.node = self.tree.copy()  # the roots come first
        self.spent = np.zeros(len(self.tree), np.int64)
        self.done = np.zeros(len(self.tree), bool)
        self.final = np.full(len(self.tree), -1)
        self._switches: list[tuple[np.ndarray, ...]] = []

    def advance(self, walker: np.ndarray) -> None:
        """Let these walkers go on until each is done or waits."""
        trees = self.trees
        while len(walker):
            node, walk = self.node[walker], self.walk[walker]
            fires, needs, token = self._decide(walker, node)
            ready = ((trees.known[node] & needs) == needs) & (token >= 0)
            walker, node, walk, fires, token = (
                x[ready] for x in (walker, node, walk, fires, token)
            )
            if not len(walker):
                return
            trees.visited[node] = True
            self.spent[walker] += fires
            self._count(walk, node, fires, token)
            if fires.any():
                self._switches.append((walker[fires], node[fires]))
            ended = np.isin(token, self._stops) | (trees.position[node] + 1 >= self._limit)
            self.done[walker[ended]], self.final[walker[ended]] = True, token[ended]
            walker = walker[~ended]
            self.node[walker] = trees.descend(node[~ended], token[~ended])

    def _decide(self, walker: np.ndarray, node: np.ndarray) -> tuple[np.ndarray, ...]:
        """(whether the rule fires, what must be known, the token taken) for walkers at ``node``."""
        trees, walk = self.trees, self.walk[walker]
        within = self.spent[walker] < self._budget[walk]
        fires = self.fires(walker, node)
        primary = self._primary[walk]
        needs = np.where(
            fires | (within & ~self._primary_only[walk]), PAIR_KNOWN, np.array(MODEL_KNOWN)[primary]
        )
        token = trees.tokens[node, np.where(fires, self._source[walk], primary)]
        return fires, needs, token

    def fires(self, walker: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Whether the walkers' rules would fire at ``node``, as far as is known."""
        walk = self.walk[walker]
        within = self.spent[walker] < self._budget[walk]
        value = self.trees.values[node, self._column[walk]]
        return within & (value > self._threshold[walk])  # NaN is not above

    def _count(self, walk, node, fires, token) -> None:
        number = len(self.walks)
        self._steps += np.bincount(walk, minlength=number)
        self._fired += np.bincount(walk[fires], minlength=number)
        both = self.trees.tokens[node]
        for model in (BASE, TUNED):
            apart = (token == both[:, model]) & (both[:, 1 - model] >= 0) & (
                token != both[:, 1 - model]
            )  # fmt: skip
            self._taken[:, model] += np.bincount(walk[apart], minlength=number)

    # For frontiers ----------------------------------------------------------------------------------

    def source_column(self, walker: np.ndarray) -> np.ndarray:
        """The column of ``PrefixTrees.tokens`` that a switch of each walker takes."""
        return self._source[self.walk[walker]]

    def choose_drafters(self, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The model that most of each group of walkers will follow, and whether it suffices alone.

        It does where they are of one primary and their rules rarely read the other model.
        """
        if not groups:
            return np.zeros(0, np.int64), np.zeros(0, bool)
        walker = np.concatenate(groups)
        starts = np.cumsum([0, *map(len, groups[:-1])])
        walk = self.walk[walker]
        primary = self._primary[walk]
        least = np.minimum.reduceat(primary, starts)
        rare = self._fired / self._steps <= FREQUENT
        alone = (self._primary_only & rare)[walk] | (self.spent[walker] >= self._budget[walk])
        alone = np.logical_and.reduceat(alone, starts)
        alone &= least == np.maximum.reduceat(primary, starts)
        lean = (self._taken[:, TUNED] - self._taken[:, BASE]) / self._taken.sum(1)
        preferred = np.where(np.add.reduceat(lean[walk], starts) > 0, TUNED, BASE)
        return np.where(alone, least, preferred), alone

    # Results ------------------------------------------------------------------------------------

    def result(self) -> tuple[list[MixedRun], dict[str, np.ndarray]]:
        """Runs, one a walker, and every switch in them by walker and position.

        The columns are those of ``cross_sample``; ``row`` is the walker.
        """
        trees = self.trees
        texts = trees.texts(self.node)
        walker = np.concatenate([w for w, _ in self._switches] or [np.zeros(0, np.int64)])
        node = np.concatenate([n for _, n in self._switches] or [np.zeros(0, np.int64)])
        order = np.lexsort((trees.position[node], walker))
        walker, node = walker[order], node[order]
        walk = self.walk[walker]
        primary, source = self._primary[walk], self._source[walk]
        switches = {
            "row": walker,
            "position": trees.position[node],
            "token_primary": trees.tokens[node, primary],
            "token_intervention": trees.tokens[node, source],
        }
        measured = {name: trees.values[node, i] for i, name in enumerate(NODE_VALUES)}
        entropies = np.stack([measured["entropy_base"], measured["entropy_tuned"]])
        rows = np.arange(len(node))
        measured |= {
            "entropy_primary": entropies[primary, rows],
            "entropy_intervention": entropies[1 - primary, rows],
        }
        sides = {"primary": primary, "intervention": 1 - primary}
        emitted = {"primary": primary, "intervention": source}
        measured |= {
            f"logp_{under}_of_{of}": trees.logp[node, token, model].astype(np.float64)
            for under, model in sides.items()
            for of, token in emitted.items()
        }
        switches |= {name: measured[name] for name in SWITCH_COLUMNS}
        changed = switches["token_primary"] != switches["token_intervention"]

        def sums(values: np.ndarray) -> list:
            return np.bincount(walker, values, len(self.tree)).tolist()

        counted = (np.ones(len(walker)), changed, switches["tv"], switches["independent"])
        runs = [
            MixedRun(
                [*text.tolist(), int(final)],
                "eos" if final in self._stops else "length",
                int(fired), int(effective), tv, independent,
            )
            for text, final, fired, effective, tv, independent in zip(
                texts, self.final, *map(sums, counted)
            )
        ]  # fmt: skip
        return runs, switches
