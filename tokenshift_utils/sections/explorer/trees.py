"""The texts of one problem and sample as a tree: the recorded ones, and how each model goes on.

A node is a prefix, and what is measured there is of the token that comes next. Recorded responses
come first; from every prefix of theirs each model's own continuation, with the same noise, is then
drawn where the records do not hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from tokenshift_utils.models.policy import Policy, Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.records.mixture_trees import SIDES
from tokenshift_utils.records.requests import Item

MEASURED = ("js", "js_full", "entropy_base", "entropy_tuned")
LEAST, MOST = 0.01, 8  # candidates shown: as probable as this under a model, at most so many of it


class Tree:
    """Prefixes of responses to one problem and sample. Node 0 is the empty one.

    Attributes
    ----------
    parent, token : of each node; -1 at node 0
    length : response tokens of each prefix
    recorded : how many nodes recorded responses have; they come first
    own : by model, of a node: the node that the model's own token leads to
    measured : of a node: ``MEASURED``, in nats
    candidates : of a node: rows of (token, probability under base and tuned or None, bits of the
        nuclei it is in), and the sizes of both nuclei
    """

    def __init__(self, item: Item, stops: Iterable[int], limit: int) -> None:
        self.item, self.stops, self.limit = item, frozenset(stops), limit
        self.parent, self.token, self.length, self.recorded = [-1], [-1], [0], 1
        self._child: dict[tuple[int, int], int] = {}
        self.own: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.measured: dict[int, dict[str, float]] = {}
        self.candidates: dict[int, tuple[list[tuple], tuple[int, int]]] = {}

    def step(self, node: int, token: int) -> int:
        """The node that a token leads to, made where there is none."""
        if (node, token) not in self._child:
            self._child[node, token] = len(self.parent)
            self.parent.append(node)
            self.token.append(token)
            self.length.append(self.length[node] + 1)
        return self._child[node, token]

    def record(self, ids: Iterable[int]) -> int:
        """Add a recorded response; the node at which it ends."""
        node = 0
        for token in ids:
            node = self.step(node, int(token))
        self.recorded = len(self.parent)
        return node

    def ends(self, node: int) -> bool:
        """Whether a response ends there."""
        return self.token[node] in self.stops or self.length[node] >= self.limit

    def path(self, node: int) -> list[int]:
        """The nodes from the first token to ``node``."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def ids(self, node: int) -> list[int]:
        """The tokens of a prefix."""
        return [self.token[n] for n in self.path(node)]

    def add_measures(self, rows: pd.DataFrame) -> None:
        """Add measures and both models' tokens from the rows of ``mixture_trees`` of this tree."""
        children = {(p, t): i for i, p, t in zip(rows.index, rows["parent"], rows["token"])}
        at = {0: rows.index[rows["parent"] < 0][0]}
        for node in range(1, self.recorded):
            row = children.get((at.get(self.parent[node]), self.token[node]))
            if row is not None:
                at[node] = row
        measured = rows[list(MEASURED)].to_dict("index")
        tokens = [rows[f"token_{side}"].to_dict() for side in SIDES]
        for node, row in at.items():
            self.measured[node] = {n: v for n, v in measured[row].items() if not np.isnan(v)}
            for own, drawn in zip(self.own, tokens):
                if drawn[row] >= 0:
                    own[node] = self.step(node, int(drawn[row]))

    def score(self, path: Sequence[int], columns: dict[str, np.ndarray]) -> None:
        """Take what ``score_pair`` measures of a response whose nodes are ``path``; records go first."""
        for i, position in enumerate(columns["position"]):
            node = self.parent[path[position]]
            if node in self.candidates:
                continue
            known = self.measured.setdefault(node, {})
            for name in MEASURED:
                known.setdefault(name, float(columns[name][i]))
            self.candidates[node] = _candidates({name: c[i] for name, c in columns.items()})

    def follow(self, side: int, node: int, ids: Iterable[int]) -> None:
        """Have a model's own way lead from ``node`` through ``ids``, as far as none is known."""
        for token in ids:
            child = self.step(node, int(token))
            if self.own[side].setdefault(node, child) != child:
                return
            node = child

    def unfinished(self, side: int) -> list[int]:
        """Where a model's ways from recorded nodes break off.

        Nodes below one whose own token is not known wait: its continuation may come by them.
        """
        own, found, waiting = self.own[side], set(), set()
        for node in range(self.recorded):
            if self.parent[node] in waiting:
                waiting.add(node)
            elif node not in own and not self.ends(node):
                waiting.add(node)
                found.add(node)
        for node in range(self.recorded):
            if node in own and own[node] not in own and not self.ends(own[node]):
                found.add(own[node])
        return sorted(found)


def _candidates(at: dict) -> tuple[list[tuple], tuple[int, int]]:
    """Both models' most probable tokens at a position, the surest of either first."""
    sizes = tuple(int(at[f"nucleus_{side}"]) for side in SIDES)
    listed = []
    for side in SIDES:
        ids, logp = at[f"top_ids_{side}"].tolist(), np.exp(at[f"top_logp_{side}"]).tolist()
        listed.append(dict(zip(ids, logp)))
    shown = [
        token
        for size, probs in zip(sizes, listed)
        for rank, (token, p) in enumerate(probs.items())
        if rank == 0 or (rank < MOST and (p >= LEAST or rank < size))
    ]
    inside = [list(probs)[:size] for size, probs in zip(sizes, listed)]
    rows = [
        (
            token,
            *(probs.get(token) for probs in listed),
            sum(1 << i for i, nucleus in enumerate(inside) if token in nucleus),
        )
        for token in dict.fromkeys(shown)
    ]
    return sorted(rows, key=lambda row: -max(p or 0.0 for p in row[1:3])), sizes


def score_candidates(
    trees: Sequence[Tree],
    leaves: Sequence[Sequence[int]],
    policies: tuple[Policy, Policy],
    sampling: Sampling,
    top_k: int,
    batch: int,
) -> None:
    """Have both models read the responses that end at ``leaves``, by tree, for their candidates."""
    paths = [(tree, tree.path(leaf)) for tree, own in zip(trees, leaves) for leaf in own]
    prompts = [list(tree.item.prompt_ids) for tree, _ in paths]
    responses = [[tree.token[node] for node in path] for tree, path in paths]
    for owner, columns in score_pair(*policies, prompts, responses, sampling, top_k, batch):
        for row in np.unique(owner):
            tree, path = paths[row]
            tree.score(path, {name: column[owner == row] for name, column in columns.items()})


def complete(
    trees: Sequence[Tree],
    policies: tuple[Policy, Policy],
    sampling: Sampling,
    stops: Sequence[int],
    batch: int,
) -> None:
    """Draw each model's own continuation, with the trees' noise, from every recorded node."""
    for side, policy in enumerate(policies):
        while places := [(tree, node) for tree in trees for node in tree.unfinished(side)]:
            made = policy.sample(
                [[*tree.item.prompt_ids, *tree.ids(node)] for tree, node in places],
                [tree.item.key for tree, _ in places],
                sampling,
                stops,
                batch,
                first=[tree.length[node] for tree, node in places],
            )
            for (tree, node), continuation in zip(places, made):
                tree.follow(side, node, continuation.ids)
