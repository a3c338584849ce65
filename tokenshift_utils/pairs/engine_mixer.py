"""Cross-sampling of two vLLM engines, block by block, with the rules and records of ``mixer``.

The primary drafts a block in one request a row, and its log-probs come with the tokens. The
intervention reads the drafts in one request a row, behind a text that it has cached. Both draw with
the noise of the position inside their engines or, at a switch, from the intervention's nucleus
here: so a mixed response is the one that the transformers policy would give, up to rounding, and the
primary's token at a switch is what it would have emitted there with the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import noise
from tokenshift_utils.measures.nucleus import truncate
from tokenshift_utils.measures.top_logprobs import Aligned, Listed, align, join
from tokenshift_utils.models.policy import Engine, Sampling, list_tokens
from tokenshift_utils.pairs.mixer import BLOCKS, SWITCH_COLUMNS, Insertion, Mixer, describe_switch
from tokenshift_utils.pairs.rules import Positions, Rule

REQUEST = 2.0  # what a round's two requests a row cost beside their tokens, in steps


@dataclass(frozen=True)
class Block:
    """Lists of the places of a block: row r of ``lists`` is that of lane and draft where ``place``
    [B, n] is r; -1: none."""

    lists: Listed
    place: Tensor


class EngineMixer(Mixer):
    """``mixer.Mixer`` on two policies that draw inside."""

    def __init__(self, primary: Engine, intervention: Engine, *others) -> None:
        super().__init__(primary, intervention, *others)
        self.engines = primary, intervention
        check_engines(self.engines, self.sampling, self.rule, self.insertion)
        for policy in self.engines:
            policy.forget()

    def adaptive_block(self) -> int:
        """The block that suits the cuts seen so far."""
        return best_request(self.cuts, self.written)

    def _texts(self, rows: list[int]) -> list[list[int]]:
        lanes = self.lanes
        return [lanes.text[row, : int(lanes.size[row])].tolist() for row in rows]

    def _draft(self, n: int, active: Tensor) -> tuple[Tensor, Block, Tensor]:
        """Up to n tokens a lane ``[B, n]``, their lists, and the firings of a primary-only rule."""
        lanes = self.lanes
        rows = lanes.busy.nonzero().squeeze(-1)
        keys, positions = lanes.keys[rows].tolist(), lanes.position[rows].tolist()
        drafts = self.engines[0].draft(
            self._texts(rows.tolist()), keys, positions, [n] * len(rows), self.sampling, self.stops
        )
        tokens = torch.zeros(len(lanes), n, dtype=torch.long)
        place = torch.full_like(tokens, -1)
        block = Block(join([lists for _, lists in drafts]), place)
        made = 0
        for row, (ids, _) in zip(rows.tolist(), drafts):
            tokens[row, : len(ids)] = torch.tensor(ids)
            place[row, : len(ids)] = torch.arange(made, made + len(ids))
            made += len(ids)
        fired = torch.zeros_like(tokens, dtype=torch.bool)
        if not self.rule.kind.reads_intervention:
            where = (place >= 0).nonzero()
            both = align(block.lists, block.lists, self.sampling.temperature)
            fired[place >= 0] = self._fires(both, where, tokens)
        return tokens, block, fired

    def _fires(self, pair: Aligned, where: Tensor, tokens: Tensor) -> Tensor:
        """Whether the rule fires at the lanes and drafts ``where`` [m, 2] that ``pair`` is of."""
        row, at = where.T
        p, q = (truncate(logp, self.sampling.top_p) for logp in (pair.p, pair.q))
        drafted, lanes = pair.columns(tokens[row, at]), self.lanes
        return self.rule.fires(Positions(p, q, drafted, lanes.keys[row], lanes.position[row] + at))

    def _verify(self, tokens: Tensor, block: Block, active: Tensor) -> tuple[Block, Tensor]:
        """The intervention's lists at the drafts of active lanes, and the firings."""
        read = block.place >= 0
        read &= active[:, None]
        rows = read.any(1).nonzero().squeeze(-1).tolist()
        given = [tokens[row][read[row]].tolist() for row in rows]
        lists = join(self.engines[1].read(self._texts(rows), given, self.sampling.top_p))
        made = torch.full_like(block.place, -1)
        made[read] = torch.arange(len(lists))
        fired = torch.zeros_like(read)
        pair = align(block.lists.select(block.place[read]), lists, self.sampling.temperature)
        fired[read] = self._fires(pair, read.nonzero(), tokens)
        return Block(lists, made), fired

    def _switch(
        self, tokens: Tensor, block: Block, made: Block | None, rows: Tensor, at: Tensor
    ) -> Tensor:
        """Tokens with those of the insertion at the draft places ``at`` of ``rows``, ascending."""
        lanes = self.lanes
        token_p = tokens[rows, at]
        texts = self._texts(rows.tolist())
        before = [t + tokens[row, :i].tolist() for t, row, i in zip(texts, rows, at)]
        if made is None:
            given = token_p[:, None].tolist()
            theirs = join(self.engines[1].read(before, given, self.sampling.top_p))
        else:
            theirs = made.lists.select(made.place[rows, at])
        ours = block.lists.select(block.place[rows, at])
        pair = align(ours, theirs, self.sampling.temperature)
        p, q = (truncate(logp, self.sampling.top_p) for logp in (pair.p, pair.q))
        items, positions = lanes.item[rows], lanes.position[rows] + at
        token_q = noise.draw(
            self.insertion.source(p, q).log_probs(),
            self._insertion_keys(rows),
            positions,
            pair.names,
        )
        columns = pair.columns(token_p), pair.columns(token_q)
        values = describe_switch(p, q, *columns)
        if pair.partial:
            self._fill_full(values, pair, before, token_q, columns[1])
        self.found.append((items, positions, token_p, token_q, values))
        self.spent[items] += 1
        tokens = tokens.clone()
        tokens[rows, at] = token_q
        return tokens

    def _fill_full(
        self, values: Tensor, pair: Aligned, before: list, token_q: Tensor, column: Tensor
    ) -> None:
        """Put what is known of full distributions in the place of what was taken from lists."""
        full = pair.full_measures()
        found = {
            "js_full": full["js"],
            "entropy_primary": full["entropy_p"],
            "entropy_intervention": full["entropy_q"],
            "unknown_mass": pair.unknown_mass,
        }
        for name, value in found.items():
            values[:, SWITCH_COLUMNS.index(name)] = value.to(torch.float64)
        # A token that one model draws may be on no list of the other, which is asked about it then.
        sides = ("primary", self.engines[0], pair.p), ("intervention", self.engines[1], pair.q)
        for name, policy, logp in sides:
            known = logp.gather(-1, column[:, None]).squeeze(-1) > -torch.inf
            unknown = (~known).nonzero().squeeze(-1).tolist()
            if unknown:
                listed = list_tokens(policy, [before[i] for i in unknown], token_q[unknown])
                under = SWITCH_COLUMNS.index(f"logp_{name}_of_intervention")
                values[unknown, under] = listed.logp[:, 0].to(torch.float64)


def check_engines(
    engines: tuple[Engine, Engine], sampling: Sampling, rule: Rule, insertion: Insertion
) -> None:
    """Refuse what takes full distributions where an engine lists the most probable tokens only."""
    for engine in engines:
        engine.check(sampling)
    listed = [engine.top_logprobs for engine in engines if engine.top_logprobs != -1]
    full = [rule.name] if rule.kind.reads_full else []
    full += ["extrapolated"] if insertion.name == "extrapolated" else []
    if listed and full:
        raise TokenshiftError(
            f"'{full[0]}' takes full distributions, and vllm returns {listed[0]} log-probs: set "
            "vllm.top_logprobs to -1"
        )


def best_request(cuts: int, written: int) -> int:
    """The block that promises the least work a token at the rate of cuts seen so far."""
    rate = min(1.0, (cuts + 8) / (written + 64))
    return min(BLOCKS, key=lambda k: (2 * k + REQUEST) * rate / (1.0 - (1.0 - rate) ** k))
