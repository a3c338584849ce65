"""The cross-sampling engine: one policy writes, another takes over where a rule fires.

At every position the token comes from the intervention where the rule fires and from the primary
elsewhere (paper section 3). Decoding is block-verified: the primary drafts up to K tokens a row,
the intervention reads all of them in one forward, and each row keeps its drafts up to the first
position where the rule fires, takes the intervention's token there and forgets the rest. Noise
depends on the position only, so the tokens are those of K = 1, which is lockstep: both policies
look at every prefix before the next token is drawn. Under a rule that looks at the primary only,
the intervention reads nothing until a row switches, and then catches up in one go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import Nucleus, truncate
from tokenshift_utils.models.decoding import Lanes
from tokenshift_utils.models.policy import Session, stop_ids
from tokenshift_utils.pairs.rules import Positions

BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # what an adaptive block may be
CATCH_UP = (16, 64, 256)  # a lagging intervention reads rows together that miss about as much
COMPARED_LOGITS = 2**25  # logits of a block that are compared at once (128 MiB in float32)


@dataclass(frozen=True)
class Insertion:
    """What stands at a switched position.

    - ``intervention``: its token, drawn with the noise that the primary would have used.
    - ``own``: the primary's own token by the noise of another stream, a null control; the
      intervention only serves the rule.
    - ``extrapolated``: drawn from ``intervention^(1 + gain) / primary^gain``, formed on the full
      distributions, normalised and then truncated (Huang et al. 2026).
    """

    name: Literal["intervention", "own", "extrapolated"] = "intervention"
    gain: float | None = None

    def __post_init__(self) -> None:
        if self.name not in ("intervention", "own", "extrapolated"):
            raise TokenshiftError(
                f"unknown insertion '{self.name}'; give intervention, own or extrapolated"
            )
        if self.name == "extrapolated":
            if self.gain is None or not math.isfinite(self.gain):
                raise TokenshiftError(f"an extrapolated token needs a finite gain, not {self.gain}")
        elif self.gain is not None:
            object.__setattr__(self, "gain", None)

    @property
    def label(self) -> str:
        """The insertion in a few characters, "" for the intervention's token."""
        if self.name == "intervention":
            return ""
        return self.name if self.gain is None else f"{self.name}:{self.gain:g}"

    def source(self, p: Nucleus, q: Nucleus) -> Nucleus:
        """The distributions that inserted tokens are drawn from."""
        if self.name == "extrapolated":
            mixed = (1.0 + self.gain) * q.logp - self.gain * p.logp
            return truncate(torch.log_softmax(mixed, dim=-1), q.top_p)
        return p if self.name == "own" else q


INTERVENTION_TOKEN = Insertion()


@dataclass(frozen=True)
class MixedRun:
    """One mixed response: its tokens, why it ended, and its sums over switched positions."""

    ids: list[int]
    finish_reason: Literal["eos", "length"]
    n_switched: int
    n_effective: int
    sum_tv: float
    sum_independent: float


SWITCH_COLUMNS = (
    "js",
    "js_full",
    "entropy_primary",
    "entropy_intervention",
    "logp_primary_of_primary",
    "logp_primary_of_intervention",
    "logp_intervention_of_primary",
    "logp_intervention_of_intervention",
    "tv",
    "independent",
    "unknown_mass",
)


def describe_switch(p: Nucleus, q: Nucleus, token_p: Tensor, token_q: Tensor) -> Tensor:
    """``SWITCH_COLUMNS`` of some places, float64 ``[n, columns]``."""
    inside_p, inside_q = p.log_probs(), q.log_probs()

    def at(logp: Tensor, token: Tensor) -> Tensor:
        return logp.gather(-1, token[:, None]).squeeze(-1)

    values = [
        divergences.js(inside_p, inside_q),
        divergences.js(p.logp, q.logp),
        divergences.entropy(p.logp),
        divergences.entropy(q.logp),
        at(p.logp, token_p),
        at(p.logp, token_q),
        at(q.logp, token_p),
        at(q.logp, token_q),
        divergences.total_variation(inside_p, inside_q),
        divergences.independent_disagreement(inside_p, inside_q),
        torch.zeros_like(p.logp[:, 0]),  # (no mass is unknown)
    ]
    return torch.stack(values, dim=-1).to(torch.float64)


class Mixer:
    """The state of one ``cross_sample``: two sessions, the lanes, and the switches found.

    ``engine_mixer.EngineMixer``, whose engines write and read blocks themselves, replaces ``_draft``,
    ``_verify``, ``_switch`` and ``adaptive_block``; what these give each other is their own business.
    """

    def __init__(
        self, primary, intervention, prompts, row_keys, rule, sampling, batch_size, insertion
    ):
        rows = min(batch_size, len(prompts))
        self.sessions: tuple[Session, Session] = primary.open(rows), intervention.open(rows)
        self.rule, self.sampling, self.insertion = rule, sampling, insertion
        self.stops = stop_ids(primary, intervention)
        device = self.sessions[0].device
        self.lanes = Lanes(
            prompts, row_keys, None, sampling.max_new_tokens, self.stops, rows, device
        )
        self.null_keys = self.lanes.all_keys
        self.spent = torch.zeros(len(prompts), dtype=torch.long, device=device)  # firings a text
        self.found: list[tuple[Tensor, ...]] = []
        self.cuts, self.written = 0, 0

    def refill(self) -> bool:
        """Make the sessions and lanes ready for a round; False when all texts are finished."""
        both = self.sessions
        lagging = () if self.rule.kind.reads_intervention else both[1:]
        return self.lanes.refill(both[:1] if lagging else both, lagging)

    def adaptive_block(self) -> int:
        """The block that suits the cuts seen so far: a round is one where the rule fires or a text
        ends."""
        return best_block(self.cuts, self.written)

    def round(self, block: int) -> None:
        """Draft a block in every lane, find the first firing of each, and keep what stands."""
        lanes = self.lanes
        busy = lanes.busy
        active = busy.clone()
        if self.rule.budget is not None:
            active &= self.spent[lanes.item] < self.rule.budget
        tokens, nuclei, fired = self._draft(min(block, lanes.room), active)
        n = tokens.shape[1]
        logits = None
        if self.rule.kind.reads_intervention and bool(active.any()):
            logits, fired = self._verify(tokens, nuclei, active)
        end = _first(torch.isin(tokens, torch.tensor(self.stops, device=tokens.device)))
        fire = _first(fired & active[:, None])
        switch = (fire <= end) & (fire < n)
        counts = torch.where(switch, fire, end.clamp_max(n - 1)) + 1
        rows = switch.nonzero().squeeze(-1)
        if len(rows):
            at, order = torch.sort(fire[rows], stable=True)
            tokens = self._switch(tokens, nuclei, logits, rows[order], at)
        finished = lanes.advance(tokens, counts)
        self.cuts += len(rows) + finished
        self.written += int(counts[busy].sum())

    def _draft(self, n: int, active: Tensor) -> tuple[Tensor, list[Nucleus], Tensor]:
        """Up to n tokens a lane ``[B, n]``, the nuclei ``[B, V]`` they come from, the rule's firings."""
        lanes, rule = self.lanes, self.rule
        token, position = lanes.pending, lanes.position
        tokens, nuclei, fired = [], [], []
        open_rows = lanes.busy
        for i in range(n):
            logits = self.sessions[0].read(token[:, None])[:, 0]
            p = self.sampling.nucleus(logits)
            token = p.draw(lanes.keys, position + i)
            tokens.append(token)
            nuclei.append(p)
            if rule.kind.reads_intervention:
                fired.append(torch.zeros_like(active))
                continue
            fired.append(rule.fires(Positions(p, None, token, lanes.keys, position + i)))
            open_rows = open_rows & ~(fired[-1] & active)
            if not bool(open_rows.any()):
                break  # every lane waits for the intervention
        return torch.stack(tokens, dim=1), nuclei, torch.stack(fired, dim=1)

    def _verify(
        self, tokens: Tensor, nuclei: list[Nucleus], active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The intervention's logits ``[B, n, V]`` at the drafts of active lanes, and the firings."""
        lanes, (rows, n) = self.lanes, tokens.shape
        read = torch.cat([lanes.pending[:, None], tokens[:, :-1]], dim=1)
        chosen = torch.arange(rows, device=tokens.device)
        # Idle lanes are read along with the others: leaving them out costs more than their share.
        some = bool((lanes.busy & ~active).any())
        if some:
            chosen = active.nonzero().squeeze(-1)
        made = self.sessions[1].read(read[chosen], chosen if some else None)
        place = torch.zeros(rows, dtype=torch.long, device=tokens.device)
        place[chosen] = torch.arange(len(chosen), device=tokens.device)
        fired = torch.zeros_like(tokens, dtype=torch.bool)
        together = max(1, COMPARED_LOGITS // (n * made.shape[-1]))
        for start in range(0, len(chosen), together):
            group = chosen[start : start + together]
            q = self.sampling.nucleus(made[start : start + together].flatten(0, 1))
            positions = lanes.position[group, None] + torch.arange(n, device=tokens.device)
            keys = lanes.keys[group, None].expand(-1, n)
            p = Nucleus.stack([p.select(group) if len(group) < rows else p for p in nuclei])
            at = Positions(p, q, tokens[group].flatten(), keys.flatten(), positions.flatten())
            fired[group] = self.rule.fires(at).view(-1, n)
        return made[place] if some else made, fired

    def _switch(
        self, tokens: Tensor, nuclei: list[Nucleus], logits: Tensor | None, rows: Tensor, at: Tensor
    ) -> Tensor:
        """Tokens with those of the insertion at the draft places ``at`` of ``rows``, ascending."""
        lanes = self.lanes
        logits = self._catch_up(tokens, rows, at) if logits is None else logits[rows, at]
        q = self.sampling.nucleus(logits)
        p = Nucleus.concat([nuclei[i].select(rows[at == i]) for i in at.unique().tolist()])
        items, positions, token_p = lanes.item[rows], lanes.position[rows] + at, tokens[rows, at]
        token_q = self.insertion.source(p, q).draw(self._insertion_keys(rows), positions)
        values = describe_switch(p, q, token_p, token_q)
        self.found.append((items, positions, token_p, token_q, values))
        self.spent[items] += 1
        tokens = tokens.clone()
        tokens[rows, at] = token_q
        return tokens

    def _insertion_keys(self, rows: Tensor) -> Tensor:
        lanes = self.lanes
        return (
            self.null_keys[lanes.item[rows]] if self.insertion.name == "own" else lanes.keys[rows]
        )

    def _catch_up(self, tokens: Tensor, rows: Tensor, at: Tensor) -> Tensor:
        """Let the intervention read all before the draft places; its logits there ``[n, V]``."""
        lanes = self.lanes
        lanes.write(tokens)
        return catch_up(self.sessions[1], lanes.text, rows, lanes.size[rows] + at)

    def result(self) -> tuple[list[MixedRun], dict[str, Tensor]]:
        """Runs, and switch columns by row and position."""
        none = torch.empty(0, dtype=torch.long)
        values = torch.empty(0, len(SWITCH_COLUMNS), dtype=torch.float64)
        empty = (none, none, none, none, values)
        joined = [torch.cat(part).cpu() for part in zip(*self.found)] if self.found else list(empty)
        order = torch.argsort(joined[0] * self.sampling.max_new_tokens + joined[1])
        joined = [part[order] for part in joined]
        names = ("row", "position", "token_primary", "token_intervention")
        switches = dict(zip(names, joined))
        switches |= {name: joined[4][:, i] for i, name in enumerate(SWITCH_COLUMNS)}
        changed = switches["token_primary"] != switches["token_intervention"]
        number = len(self.lanes.ids)

        def per_row(values: Tensor) -> list:
            sums = torch.zeros(number, dtype=torch.float64)
            return sums.index_add(0, switches["row"], values.to(torch.float64)).tolist()

        columns = [
            per_row(values)
            for values in (
                torch.ones_like(switches["row"]), changed, switches["tv"], switches["independent"]
            )
        ]  # fmt: skip
        made = zip(self.lanes.ids, self.lanes.reasons(), *columns)
        runs = [MixedRun(i, reason, int(s), int(e), tv, d) for i, reason, s, e, tv, d in made]
        return runs, switches


def best_block(cuts: int, written: int) -> int:
    """The block that promises the least work a token, where ``cuts`` rounds were cut in ``written``.

    Work is counted in steps of the model that drafts: one a draft, and for the other's block about
    as much as a step and a tenth more a token. The rate starts from one cut in 16 tokens, as if
    seen over as many.
    """
    rate = min(1.0, (cuts + 1) / (written + 16))

    def work(k: int) -> float:
        kept = (1.0 - (1.0 - rate) ** k) / rate
        return (k + 1.0 + 0.1 * k) / kept

    return min(BLOCKS, key=work)


def catch_up(session: Session, text: Tensor, rows: Tensor, sizes: Tensor) -> Tensor:
    """Let ``rows`` [n] of a session read their ``text`` [B, columns] up to ``sizes`` [n].

    Each must lack a token at least. Returns the logits after the last, ``[n, V]``.
    """

    def unread(some: Tensor, counts: Tensor) -> Tensor:
        columns = session.length[some, None] + torch.arange(int(counts.max()), device=some.device)
        return text[some].gather(1, columns.clamp_max(text.shape[1] - 1))

    missing = sizes - session.length[rows]
    while int(missing.max()) > CATCH_UP[-1]:
        far = (missing > CATCH_UP[-1]).nonzero().squeeze(-1)
        counts = (missing[far] - CATCH_UP[-1]).clamp_max(CATCH_UP[-1])
        session.read(unread(rows[far], counts), rows[far], counts, last=True)
        missing[far] -= counts
    logits = None
    for low, high in zip((0, *CATCH_UP), CATCH_UP):
        some = ((missing > low) & (missing <= high)).nonzero().squeeze(-1)
        if len(some):
            counts = missing[some]
            made = session.read(unread(rows[some], counts), rows[some], counts, last=True)
            if logits is None:
                logits = made.new_empty(len(rows), made.shape[-1])
            logits[some] = made[:, 0]
    return logits


def _first(mask: Tensor) -> Tensor:
    """Index of the first True in each row of ``mask`` [B, n]; n where there is none."""
    n = mask.shape[1]
    return torch.where(mask.any(1), mask.to(torch.int8).argmax(1), n)
