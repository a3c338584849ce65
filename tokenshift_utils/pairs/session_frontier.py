"""Running two models where walks wait: many trees at once, each by one or several lanes.

A lane is a row of both models' sessions that holds the text of one path from the root. It expands the
deepest node on its path at which walks wait, and keeps the others for later: so going on to the next
is rewinding the row, and no prefix is read twice. A lane without work takes the shallowest node of
another, with a copy of its row.

A round, for all lanes at once:
1. In each, the model that most of the walks follow drafts up to K tokens.
2. The other reads all drafts in one forward, so that all is known at each. Where the rules read one
   model only, it reads when one of them switches.
3. All walks of these lanes go on, along the drafts and off them; where they stop are the next nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import Nucleus
from tokenshift_utils.models.decoding import REFILL_AT
from tokenshift_utils.models.policy import Policy
from tokenshift_utils.pairs.frontier import ENTROPY, Frontier, PairDistributions
from tokenshift_utils.pairs.mixer import BLOCKS, COMPARED_LOGITS, best_block, catch_up
from tokenshift_utils.pairs.tree import BASE, MODEL_KNOWN, TUNED

IDLE = 2  # in place of the model that drafts


class SessionFrontier(Frontier):
    """Expands nodes in rows of two cached sessions."""

    def _open(self, policies: tuple[Policy, Policy], rows: int) -> torch.device:
        self._sessions = tuple(policy.open(rows) for policy in policies)
        device = self._sessions[0].device
        columns = max(map(len, self._prompts)) + self._sampling.max_new_tokens + BLOCKS[-1]
        self._text = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self._node = np.full(rows, -1)  # that each lane expands; -1: idle
        self._tree = np.full(rows, -1)  # of the text that it holds
        self._later: list[list[int]] = [[] for _ in range(rows)]  # nodes on its path, deepest last
        self._unassigned: dict[int, list[int]] = {}  # nodes that no lane has, by tree
        self._drafter = np.full(rows, IDLE)
        self._alone = np.zeros(rows, bool)  # whether the other model need not read
        self._length = np.zeros(rows, np.int64)  # tokens of a lane's prefix
        self._lane_of = np.zeros(len(self._walkers.tree), np.int64)
        return device

    def run(self, walker: np.ndarray) -> None:
        self._walkers.advance(walker)
        self._enqueue(walker)
        nodes = np.array(list(self._waiting), np.int64)
        texts = [tuple(text) for text in self._trees.texts(nodes)]
        for i in sorted(range(len(nodes)), key=lambda i: (self._trees.tree[nodes[i]], texts[i])):
            self._unassigned.setdefault(int(self._trees.tree[nodes[i]]), []).append(int(nodes[i]))
        while self._schedule():
            self._round()

    # Lanes --------------------------------------------------------------------------------------

    def _schedule(self) -> bool:
        """Assign nodes to idle lanes and put lanes of one kind together; False when all is done."""
        for lane in np.flatnonzero(self._node < 0).tolist():
            if self._later[lane]:
                self._node[lane] = self._later[lane].pop()
        idle = np.flatnonzero(self._node < 0).tolist()
        if len(idle) == len(self._node) and not self._unassigned:
            return False
        entering = {}
        if self._unassigned and len(idle) >= max(1, int(REFILL_AT * len(self._node))):
            entering = self._enter(idle)
        source = np.arange(len(self._node))
        if not self._unassigned:
            self._split([lane for lane in idle if self._node[lane] < 0], source)
        order = _grouped(self._choose_drafters())
        target = np.argsort(order)  # where each lane goes
        for name in ("_node", "_tree", "_drafter", "_alone", "_length"):
            setattr(self, name, getattr(self, name)[order])
        self._later = [self._later[lane] for lane in order]
        rows = source[order]
        if (rows != np.arange(len(rows))).any():
            rows = torch.from_numpy(rows).to(self._device)
            self._text = self._text[rows]
            for session in self._sessions:
                session.keep(rows)
        self._load({int(target[lane]): fresh for lane, fresh in entering.items()})
        return True

    def _enter(self, idle: list[int]) -> dict[int, bool]:
        """Give idle lanes nodes that no lane has, those of their own trees first.

        Returns the lanes that got one, and whether their text is of another tree.
        """
        entering = {}
        own = [lane for lane in idle if int(self._tree[lane]) in self._unassigned]
        for lane in (*own, *(lane for lane in idle if lane not in own)):
            tree = int(self._tree[lane])
            if tree not in self._unassigned:
                tree = next(iter(self._unassigned), None)
                if tree is None:
                    break
            nodes = self._unassigned[tree]
            self._node[lane] = nodes.pop(0)
            if not nodes:
                del self._unassigned[tree]
            entering[lane] = self._tree[lane] != tree
            self._tree[lane] = tree
        return entering

    def _split(self, idle: list[int], source: np.ndarray) -> None:
        """Give idle lanes the shallowest nodes of busy ones, whose rows are their ``source``."""
        busiest = [lane for lane, later in enumerate(self._later) if later]
        busiest.sort(key=lambda lane: -len(self._later[lane]))
        for lane, other in zip(idle, busiest):
            self._node[lane], self._tree[lane] = self._later[other].pop(0), self._tree[other]
            source[lane] = other

    def _choose_drafters(self) -> np.ndarray:
        """Find which model drafts in each lane, whether it suffices alone, and the prefix's length.

        Returns the order of lanes: those of equal numbers stand together.
        """
        busy = np.flatnonzero(self._node >= 0)
        nodes = self._node[busy]
        self._drafter[:], self._alone[:], self._length[:] = IDLE, False, 0
        self._drafter[busy], self._alone[busy] = self._walkers.choose_drafters(
            [self._waiting[node] for node in nodes.tolist()]
        )
        prompts = [len(self._prompts[tree]) for tree in self._tree[busy]]
        self._length[busy] = self._trees.position[nodes] + prompts
        # base alone, base drafts, tuned drafts, tuned alone: so that what a model reads is one slice
        return np.where(self._drafter == BASE, 1 - self._alone, 2 * self._drafter + self._alone)

    def _load(self, entering: dict[int, bool]) -> None:
        """Put the texts of all lanes' nodes into ``_text``, and let the sessions read them but for
        their last tokens. ``entering`` lanes hold other texts yet; of another tree where True."""
        busy = np.flatnonzero(self._node >= 0)
        last = self._length - 1
        known = np.maximum(last, 0)  # how far the rows' old texts are right
        started = busy[self._trees.position[self._node[busy]] > 0]
        rows, columns = self._tensor(started), self._tensor(last[started])
        self._text[rows, columns] = self._tensor(self._trees.token[self._node[started]])
        for lane, fresh in entering.items():
            written = self._trees.texts(self._node[[lane]])[0].tolist()
            text = [*self._prompts[self._tree[lane]], *written]
            old = self._text[lane, : len(text) - 1].tolist()
            differ = (i for i, (a, b) in enumerate(zip(text, old)) if a != b)
            known[lane] = 0 if fresh else next(differ, len(text) - 1)
            self._text[lane, : len(text)] = self._tensor(text)
        fresh = [lane for lane, fresh in entering.items() if fresh]
        for model, session in enumerate(self._sessions):
            session.rewind(torch.minimum(session.length, self._tensor(known)))
            reads = (self._drafter == model) | ((self._drafter == 1 - model) & ~self._alone)
            some = [lane for lane in fresh if reads[lane]]
            if some:  # one prompt of several lanes is read once
                prompts = [self._prompts[tree][:-1] for tree in self._tree[some]]
                session.enter(self._tensor(some), prompts)
            lagging = np.flatnonzero(reads & (last > session.length.cpu().numpy()))
            if len(lagging):
                catch_up(session, self._text, self._tensor(lagging), self._tensor(last[lagging]))

    # A round ------------------------------------------------------------------------------------

    def _round(self) -> None:
        groups = [self._waiting.pop(node) for node in self._node[self._node >= 0].tolist()]
        walker = np.concatenate(groups)
        lane = np.repeat(np.flatnonzero(self._node >= 0), [len(group) for group in groups])
        drafted = []  # by model: its lanes, and the paths of their drafts
        for model in (BASE, TUNED):
            lanes = np.flatnonzero(self._drafter == model)
            if len(lanes):
                rows = slice(int(lanes[0]), int(lanes[-1]) + 1)
                mine = (lane >= rows.start) & (lane < rows.stop)
                drafted.append((model, lanes, self._expand(model, rows, walker[mine], lane[mine])))
        self._walkers.advance(walker)
        for model, _, paths in drafted:
            self._count_accepted(model, paths)
        self._node[:] = -1
        self._lane_of[walker] = lane
        self._assign(self._enqueue(walker), drafted)

    def _assign(self, found: dict[int, np.ndarray], drafted: list) -> None:
        """Let lanes keep the new nodes on their paths; others, in older parts of trees, wait for any
        lane."""
        nodes = np.array(list(found), np.int64)
        lanes = self._lane_of[[group[0] for group in found.values()]]
        trees, rows = self._trees, len(self._node)
        # (node, lane) pairs as single numbers, for one look-up of all
        on = [(paths * rows + lane[:, None])[paths >= 0] for _, lane, paths in drafted]
        on_path = np.isin(trees.parent[nodes] * rows + lanes, np.concatenate(on))
        on_path |= np.isin(nodes * rows + lanes, np.concatenate(on))
        order = np.lexsort(([len(group) for group in found.values()], trees.position[nodes]))
        for node, lane, mine in zip(nodes[order], lanes[order], on_path[order]):
            if mine:
                self._later[lane].append(int(node))
            else:
                self._unassigned.setdefault(int(trees.tree[node]), []).append(int(node))

    def _expand(self, model: int, rows: slice, walker: np.ndarray, lane: np.ndarray) -> np.ndarray:
        """Draft and read in the lanes ``rows``, whose drafts come from ``model``.

        Returns the nodes ``[b, n]`` at which tokens were drafted, -1 after a text's end.
        """
        position = self._trees.position[self._node[rows]]
        n = self._block or best_block(self._cuts[model], self._accepted[model])
        n = min(n, self._sampling.max_new_tokens - int(position.min()))
        keys, positions = self._keys[self._tensor(self._tree[rows])], self._tensor(position)
        drafts, nuclei = self._draft(model, rows, n, keys, positions)
        tokens = drafts.cpu().numpy()
        paths = self._draft_paths(self._node[rows], tokens)
        reads, fired = ~self._alone[rows], np.zeros(len(paths), bool)
        if not reads.all():
            some = np.flatnonzero(~reads)
            self._update_one(model, paths[some], tokens[some], nuclei, some)
            fired = self._fires_in(paths, walker, lane - rows.start) & ~reads
        for some in (np.flatnonzero(reads), np.flatnonzero(fired)):
            if len(some):
                self._verify(model, rows.start, some, drafts, nuclei, paths, walker, lane)
        return paths

    def _draft(
        self, model: int, rows: slice, n: int, keys: Tensor, positions: Tensor
    ) -> tuple[Tensor, list[Nucleus]]:
        """n tokens a lane ``[b, n]``, and the nuclei ``[b, V]`` that they come from."""
        columns = self._tensor(self._length[rows])[:, None] - 1
        token = self._text[rows].gather(1, columns).squeeze(1)
        tokens, nuclei = [], []
        for i in range(n):
            nuclei.append(
                self._sampling.nucleus(self._sessions[model].read(token[:, None], rows)[:, 0])
            )
            token = nuclei[-1].draw(keys, positions + i)
            tokens.append(token)
        drafts = torch.stack(tokens, dim=1)
        columns = columns + 1 + torch.arange(n, device=self._device)
        self._text[rows] = self._text[rows].scatter(1, columns, drafts)
        return drafts, nuclei

    def _update_one(
        self, model: int, paths: np.ndarray, tokens: np.ndarray, nuclei: list[Nucleus], some
    ) -> None:
        """Write what follows from ``model`` alone along ``paths``, of the lanes ``some``."""
        rows = self._tensor(some)
        for i, nucleus in enumerate(nuclei):
            logp = nucleus.logp[rows]
            drawn = logp.gather(1, self._tensor(tokens[:, i])[:, None]).squeeze(1)
            valid = paths[:, i] >= 0
            self._trees.update(
                paths[valid, i],
                MODEL_KNOWN[model],
                {ENTROPY[model]: divergences.entropy(logp).cpu().numpy()[valid]},
                {model: tokens[valid, i]},
                {(model, model): drawn.cpu().numpy()[valid]},
            )

    def _verify(
        self,
        model: int,
        first: int,
        some: np.ndarray,
        drafts: Tensor,
        nuclei: list[Nucleus],
        paths: np.ndarray,
        walker: np.ndarray,
        lane: np.ndarray,
    ) -> None:
        """Let the other model read the drafts of the lanes ``first + some``; write all about them."""
        other, n = 1 - model, drafts.shape[1]
        session, lanes, chosen = (
            self._sessions[other],
            self._tensor(first + some),
            self._tensor(some),
        )
        before = self._tensor(self._length)[lanes] - 1
        lagging = (before > session.length[lanes]).nonzero().squeeze(-1)
        if len(lagging):
            catch_up(session, self._text, lanes[lagging], before[lagging])
        columns = before[:, None] + torch.arange(n, device=self._device)
        read = self._text[lanes].gather(1, columns)
        if len(some) == some[-1] - some[0] + 1:
            logits = session.read(read, slice(first + int(some[0]), first + int(some[-1]) + 1))
        else:
            logits = session.read(read, lanes)
        together = max(1, COMPARED_LOGITS // (n * logits.shape[-1]))
        for start in range(0, len(some), together):
            group = slice(start, start + together)
            ours = Nucleus.stack([_of_rows(p, chosen[group]) for p in nuclei])
            theirs = logits[group].flatten(0, 1)
            nodes = paths[some[group]].reshape(-1)
            valid = self._tensor(np.flatnonzero(nodes >= 0))
            if len(valid) < len(nodes):
                theirs = theirs[valid]
            both = _of_rows(ours, valid), self._sampling.nucleus(theirs)
            mine = np.isin(lane, first + some[group])
            self._update_pair(
                model,
                nodes[nodes >= 0],
                drafts[chosen[group]].flatten()[valid],
                PairDistributions(both if model == BASE else both[::-1]),
                walker[mine],
                lane[mine] - first,
                paths,
            )


def _of_rows(nucleus: Nucleus, rows: Tensor) -> Nucleus:
    """The nucleus of some different rows, in their order: of all without a copy."""
    return nucleus if len(rows) == len(nucleus.size) else nucleus.select(rows)


def _grouped(kind: np.ndarray) -> np.ndarray:
    """An order in which those of each kind stand together, and as few as possible are moved."""
    target = np.sort(kind)
    order = np.where(kind == target, np.arange(len(kind)), -1)
    away = np.flatnonzero(order < 0)
    order[away] = away[np.argsort(kind[away], kind="stable")]
    return order
