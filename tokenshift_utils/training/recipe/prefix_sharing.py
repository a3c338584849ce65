"""Log-probabilities of responses whose prompts, and often first words, are the same.

All prompts of a study begin with the same worked examples, and a group of responses has one prompt:
of a micro-batch's tokens most are read many times. Here each is read once, as one sequence that
holds the tree of the rows' prefixes, in which a token sees what stands before it in its own rows.
"""

from __future__ import annotations

import os.path
from typing import NamedTuple

import torch
from torch import Tensor
from trl import GRPOTrainer

ROWS = 16  # of a micro-batch
NODES = 700  # of a tree, about: with more, its square mask costs more than the tokens it saves


class PrefixTree(NamedTuple):
    """The distinct prefixes of some rows, one node each, a parent before its children.

    Attributes
    ----------
    tokens, positions
        int64 [nodes]: a prefix's last token, and how many stand before it.
    seen
        bool [nodes, nodes]: which nodes each sees: its ancestors and itself.
    paths
        The nodes of each row, one a token.
    """

    tokens: Tensor
    positions: Tensor
    seen: Tensor
    paths: list[list[int]]


def prefix_tree(rows: list[list[int]]) -> PrefixTree:
    """The tree of some rows of token ids."""
    nodes: dict[tuple[int, int], int] = {}
    paths, positions = [], []
    for row in rows:
        path, node = [], -1
        for position, token in enumerate(row):
            node = nodes.setdefault((node, token), len(nodes))
            if node == len(positions):
                positions.append(position)
            path.append(node)
        paths.append(path)
    seen = torch.eye(len(nodes), dtype=torch.bool)
    for (parent, _), node in nodes.items():
        if parent >= 0:
            seen[node] |= seen[parent]
    tokens = torch.tensor([token for _, token in nodes])
    return PrefixTree(tokens, torch.tensor(positions), seen, paths)


class ReadsPrefixesOnce(GRPOTrainer):
    """GRPOTrainer that reads the tree of a batch's prefixes where TRL reads every row whole.

    The values are TRL's but for rounding. What stands at padding means nothing, and is 0.
    """

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        *args,
        compute_entropy=False,
        **kwargs,
    ):
        start = input_ids.shape[1] - logits_to_keep
        rows = [ids[kept].tolist() for ids, kept in zip(input_ids, attention_mask.bool())]
        lengths = attention_mask[:, start:].sum(1).tolist()
        logps = input_ids.new_zeros(len(rows), logits_to_keep, dtype=torch.float32)
        entropies = torch.zeros_like(logps) if compute_entropy else None
        for chosen in lots_by_prefix(rows):
            own = [rows[row] for row in chosen], [lengths[row] for row in chosen]
            found, entropy = self._read(model, *own, compute_entropy)
            at = [
                torch.tensor([row for row in chosen for _ in range(lengths[row])]),
                torch.tensor([place for row in chosen for place in range(lengths[row])]),
            ]
            at = tuple(index.to(logps.device) for index in at)
            logps = logps.index_put(at, found)
            if compute_entropy:
                entropies[at] = entropy
        return logps, entropies, None

    def _read(
        self, model, rows: list[list[int]], lengths: list[int], compute_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability and entropy, nats, of the last ``lengths`` tokens of each row, in a line."""
        tree, device = prefix_tree(rows), self.accelerator.device
        own = [(path, row, len(row) - n) for path, row, n in zip(tree.paths, rows, lengths)]
        heads = torch.tensor([node for path, _, at in own for node in path[at - 1 : -1]])
        heads, back = heads.to(device).unique(return_inverse=True)
        tokens = torch.tensor([token for _, row, at in own for token in row[at:]]).to(device)
        with self.accelerator.autocast():
            dtype = torch.bfloat16 if self.args.bf16 else torch.float32
            mask = torch.zeros(tree.seen.shape, dtype=dtype).masked_fill(~tree.seen, -torch.inf)
            logits = model(
                input_ids=tree.tokens[None].to(device),
                attention_mask=mask[None, None].to(device),
                position_ids=tree.positions[None].to(device),
                logits_to_keep=heads,
                use_cache=False,
            ).logits[0]
        logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        total, entropy = logits.logsumexp(-1), None
        if compute_entropy:
            with torch.no_grad():
                centred = logits - total[:, None]
                entropy = -torch.linalg.vecdot(centred.exp(), centred)[back]
        return logits[back, tokens] - total[back], entropy


def lots_by_prefix(rows: list[list[int]]) -> list[list[int]]:
    """The rows' numbers, those that begin alike together, in lots whose trees are about ``NODES``."""
    lots, nodes, last = [], NODES, []
    for row in sorted(range(len(rows)), key=rows.__getitem__):
        nodes += len(rows[row]) - len(os.path.commonprefix([last, rows[row]]))
        last = rows[row]
        if nodes > NODES:
            lots.append([])
            nodes = len(last)
        lots[-1].append(row)
    return lots
