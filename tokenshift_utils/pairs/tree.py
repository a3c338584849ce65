"""Trees of prefixes: two models' distributions at each, computed once.

Noise depends on the position only, so mixtures of one problem and sample are one text until they
take different tokens, whatever their rule, threshold or direction. A node is a prefix, prompt and
beginning of a response; its children are the prefixes one token longer that some mixture took.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tokenshift_utils.measures.noise import uniform
from tokenshift_utils.pairs.mixer import Insertion

BASE, TUNED = 0, 1
MODEL_KNOWN = (1, 2)  # bits of ``known``: what follows from one model's distribution
PAIR_KNOWN = 4  # and what compares the two
ALL_KNOWN = MODEL_KNOWN[BASE] | MODEL_KNOWN[TUNED] | PAIR_KNOWN

NODE_MEASURES = (
    *("js", "js_full", "kl_base_tuned", "kl_tuned_base", "entropy_base", "entropy_tuned"),
    *("tv", "independent", "unknown_mass"),
)
# What rules compare beside measures; derived from other columns, so that records need not hold them.
DERIVED_VALUES = (
    *("signed_logp_forward", "signed_logp_reverse", "minus_uniform", "minus_position", "zero"),
)
NODE_VALUES = (*NODE_MEASURES, *DERIVED_VALUES)

Source = tuple[str, int, float | None]  # insertion's name, the primary's side, gain
MODEL_SOURCES: tuple[Source, ...] = (("model", BASE, None), ("model", TUNED, None))


def source_of(insertion: Insertion, primary: int) -> Source:
    """Where the token of a switched position comes from, if ``primary`` writes."""
    if insertion.name == "intervention":
        return MODEL_SOURCES[1 - primary]
    return (insertion.name, primary, insertion.gain)


class PrefixTrees:
    """The nodes of some trees, one a problem and sample, in the order in which they were made.

    Attributes
    ----------
    tree, parent, token, position : int64 [n]; the parent's index (-1: a root), the token that leads
        from it here (-1), and the response position of the token that comes next
    known : uint8 [n], bits of ``MODEL_KNOWN`` and ``PAIR_KNOWN``; 0 where no model has read the prefix
    visited : bool [n], whether a walk took a token here
    values : float64 [n, len(NODE_VALUES)], of float32 precision but for ``minus_uniform``; NaN: not known
    tokens : int64 [n, sources], what each source draws here, -1: not known
    logp : float32 [n, sources, 2], log-probability of these under base and tuned, full
    """

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys = torch.tensor(keys, dtype=torch.long)
        self.sources: tuple[Source, ...] = MODEL_SOURCES
        self._size = 0
        self._columns = {
            "tree": np.zeros(0, np.int64),
            "parent": np.zeros(0, np.int64),
            "token": np.zeros(0, np.int64),
            "position": np.zeros(0, np.int64),
            "known": np.zeros(0, np.uint8),
            "visited": np.zeros(0, bool),
            "values": np.zeros((0, len(NODE_VALUES))),
            "tokens": np.zeros((0, len(self.sources)), np.int64),
            "logp": np.zeros((0, len(self.sources), 2), np.float32),
            "_first": np.zeros(0, np.int64),  # a node's child made last, and that made before it
            "_sibling": np.zeros(0, np.int64),
        }
        roots = np.full(len(keys), -1)
        self.add(np.arange(len(keys)), roots, roots, np.zeros(len(keys), np.int64))

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> np.ndarray:
        columns = self.__dict__.get("_columns", {})
        if name not in columns:
            raise AttributeError(name)
        return columns[name][: self._size]

    @property
    def row_bytes(self) -> int:
        """Bytes that a node takes in memory."""
        return sum(c.itemsize * c[0].size for c in self._columns.values())

    def source(self, source: Source) -> int:
        """The column of a source in ``tokens``."""
        return self.sources.index(source)

    def add_source(self, source: Source) -> None:
        """Make room for the tokens of a source, unless there is some."""
        if source in self.sources:
            return
        self.sources = (*self.sources, source)
        for name, missing in (("tokens", -1), ("logp", np.nan)):
            old = self._columns[name]
            more = np.full((len(old), 1, *old.shape[2:]), missing, old.dtype)
            self._columns[name] = np.concatenate([old, more], axis=1)

    def add(
        self, tree: np.ndarray, parent: np.ndarray, token: np.ndarray, position: np.ndarray
    ) -> np.ndarray:
        """New nodes of which nothing is known; their indices. None may be there already."""
        start, end = self._size, self._size + len(tree)
        for name, old in self._columns.items():
            if end > len(old):
                room = np.zeros((max(end, 2 * len(old), 1024), *old.shape[1:]), old.dtype)
                room[:start] = old[:start]
                self._columns[name] = room
        self._size = end
        made = np.arange(start, end)
        self.tree[made], self.parent[made], self.token[made] = tree, parent, token
        self.position[made] = position
        self.values[made], self.tokens[made], self.logp[made] = np.nan, -1, np.nan
        noise = uniform(self.keys[torch.from_numpy(tree)], torch.from_numpy(position))
        # (negative, since rules fire above a threshold)
        self.values[made, NODE_VALUES.index("minus_uniform")] = -noise.numpy()
        self.values[made, NODE_VALUES.index("minus_position")] = -position
        self.values[made, NODE_VALUES.index("zero")] = 0.0
        self._first[made] = -1
        self._link(made)
        return made

    def _link(self, made: np.ndarray) -> None:
        """Link new nodes to their parents, of which several may share one."""
        made = made[self.parent[made] >= 0]
        order = np.argsort(self.parent[made], kind="stable")
        made = made[order]
        parents = self.parent[made]
        first = np.ones(len(made), bool)
        first[1:] = parents[1:] != parents[:-1]
        before = np.concatenate([[-1], made[:-1]])[: len(made)]
        self._sibling[made] = np.where(first, self._first[parents], before)
        last = np.ones(len(made), bool)
        last[:-1] = first[1:]
        self._first[parents[last]] = made[last]

    def child(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        """The nodes that ``token`` leads to from ``node``, -1 where there is none."""
        found = self._first[node].copy()
        off = np.flatnonzero((found >= 0) & (self.token[found] != token))
        while len(off):
            found[off] = self._sibling[found[off]]
            there = found[off]
            off = off[(there >= 0) & (self.token[there] != token[off])]
        return found

    def descend(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        """The nodes that ``token`` leads to, made where there are none."""
        found = self.child(node, token)
        absent = np.flatnonzero(found < 0)
        if len(absent):
            most = int(token[absent].max()) + 1
            edges, which = np.unique(node[absent] * most + token[absent], return_inverse=True)
            parent, token = np.divmod(edges, most)
            found[absent] = self.add(self.tree[parent], parent, token, self.position[parent] + 1)[
                which
            ]
        return found

    def update(
        self,
        nodes: np.ndarray,
        bits: int,
        measures: dict[str, np.ndarray],
        tokens: dict[int, np.ndarray],
        logp: dict[tuple[int, int], np.ndarray],
    ) -> None:
        """Write what was measured at ``nodes`` [m].

        ``tokens`` are by column of ``sources``, ``logp`` by source and model. NaN and -1 stand for
        what was not measured, and leave what was known before.
        """
        for name, column in measures.items():
            values = column.astype(np.float32)  # as precise as records are, so that both agree
            some = ~np.isnan(values)
            self.values[nodes[some], NODE_VALUES.index(name)] = values[some]
        for source, column in tokens.items():
            some = column >= 0
            self.tokens[nodes[some], source] = column[some]
        for (source, model), column in logp.items():
            some = ~np.isnan(column)
            self.logp[nodes[some], source, model] = column[some]
        self.known[nodes] |= np.uint8(bits)
        self.derive(nodes)

    def derive(self, nodes: np.ndarray) -> None:
        """Compute the ``DERIVED_VALUES`` that follow from log-probabilities."""
        own = self.logp[nodes].astype(np.float64)
        self.values[nodes, NODE_VALUES.index("signed_logp_forward")] = (
            own[:, BASE, 0] - own[:, BASE, 1]
        )
        self.values[nodes, NODE_VALUES.index("signed_logp_reverse")] = (
            own[:, TUNED, 1] - own[:, TUNED, 0]
        )

    def texts(self, last: np.ndarray) -> list[np.ndarray]:
        """The response tokens that lead to each of some nodes."""
        lengths = self.position[last]
        ids = np.zeros((len(last), int(lengths.max(initial=0))), np.int64)
        node, rows = last.copy(), np.arange(len(last))
        while len(rows):
            some = self.parent[node] >= 0
            node, rows = node[some], rows[some]
            ids[rows, self.position[node] - 1] = self.token[node]
            node = self.parent[node]
        return [ids[row, :length] for row, length in enumerate(lengths)]
