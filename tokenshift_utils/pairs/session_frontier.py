"""Running two models where walks wait: many trees at once, each by one or several lanes.

A lane is a row of both models' sessions that holds the text of one path. It serves the deepest
place on its path at which walks wait, and keeps the others for later: so going on to the next is
forgetting the end of the row, and no prefix is read twice. A lane without work takes the
shallowest place of another, with a copy of its row.

A round, for all lanes at once:
1. In each, the model that most of the walks follow drafts up to K tokens.
2. The other reads all drafts in one forward, so that each is a node about which all is known. Where
   the walks look at one model only, it reads when one of them switches.
3. All walks of these lanes go on, through the drafts and off them; where they come to a stand are
   the next places.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import Nucleus, log_softmax32, truncate
from tokenshift_utils.models.policy import Policy
from tokenshift_utils.pairs.frontier import Frontier, Pair
from tokenshift_utils.pairs.mixer import BLOCKS, COMPARED_LOGITS, best_block, catch_up
from tokenshift_utils.pairs.tree import BASE, HALF, TUNED

ENTER_AT = 1 / 16  # share of lanes that must be idle before new texts enter: entering costs a read
IDLE = 2  # in place of the model that drafts


class SessionFrontier(Frontier):
    """Runs both models at the places where walkers wait, as rows of two cached sessions."""

    def _open(self, policies: tuple[Policy, Policy], rows: int) -> torch.device:
        self._sessions = tuple(policy.open(rows) for policy in policies)
        device = self._sessions[0].device
        columns = max(map(len, self._prompts)) + self._sampling.max_new_tokens + BLOCKS[-1]
        self._text = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self._node = np.full(rows, -1)  # the place that each lane serves; -1: idle
        self._tree = np.full(rows, -1)  # whose text it holds
        self._later: list[list[int]] = [[] for _ in range(rows)]  # places on its path, deepest last
        self._places: dict[int, list[int]] = {}  # places that no lane has, by tree
        self._drafter = np.full(rows, IDLE)
        self._alone = np.zeros(rows, bool)  # whether the drafter suffices
        self._length = np.zeros(rows, np.int64)  # tokens of a lane's prefix
        self._lane_of = np.zeros(len(self._walkers.tree), np.int64)
        return device

    def run(self, who: np.ndarray) -> None:
        self._walkers.advance(who)
        self._wait(who)
        nodes = np.array(list(self._waiting), np.int64)
        texts = [tuple(text) for text in self._trees.texts(nodes)]
        for i in sorted(range(len(nodes)), key=lambda i: (self._trees.tree[nodes[i]], texts[i])):
            self._places.setdefault(int(self._trees.tree[nodes[i]]), []).append(int(nodes[i]))
        while self._settle():
            self._round()

    # Lanes --------------------------------------------------------------------------------------

    def _settle(self) -> bool:
        """Give lanes something to do and put those of a kind together; False when all is done."""
        for lane in np.flatnonzero(self._node < 0).tolist():
            if self._later[lane]:
                self._node[lane] = self._later[lane].pop()
        idle = np.flatnonzero(self._node < 0).tolist()
        if len(idle) == len(self._node) and not self._places:
            return False
        entering = {}
        if self._places and len(idle) >= max(1, int(ENTER_AT * len(self._node))):
            entering = self._enter(idle)
        source = np.arange(len(self._node))
        if not self._places:
            self._share([lane for lane in idle if self._node[lane] < 0], source)
        order = _arranged(self._assess())
        place = np.argsort(order)  # where each lane goes
        for name in ("_node", "_tree", "_drafter", "_alone", "_length"):
            setattr(self, name, getattr(self, name)[order])
        self._later = [self._later[lane] for lane in order]
        rows = source[order]
        if (rows != np.arange(len(rows))).any():
            rows = torch.from_numpy(rows).to(self._device)
            self._text = self._text[rows]
            for session in self._sessions:
                session.keep(rows)
        self._load({int(place[lane]): fresh for lane, fresh in entering.items()})
        return True

    def _enter(self, idle: list[int]) -> dict[int, bool]:
        """Give idle lanes places that no lane has, those of their own trees first.

        Returns the lanes that got one, and whether their text is of another tree.
        """
        entering = {}
        own = [lane for lane in idle if int(self._tree[lane]) in self._places]
        for lane in (*own, *(lane for lane in idle if lane not in own)):
            tree = int(self._tree[lane])
            if tree not in self._places:
                tree = next(iter(self._places), None)
                if tree is None:
                    break
            places = self._places[tree]
            self._node[lane] = places.pop(0)
            if not places:
                del self._places[tree]
            entering[lane] = self._tree[lane] != tree
            self._tree[lane] = tree
        return entering

    def _share(self, idle: list[int], source: np.ndarray) -> None:
        """Give idle lanes the shallowest places of busy ones, whose rows are their ``source``."""
        rich = [lane for lane, later in enumerate(self._later) if later]
        rich.sort(key=lambda lane: -len(self._later[lane]))
        for lane, other in zip(idle, rich):
            self._node[lane], self._tree[lane] = self._later[other].pop(0), self._tree[other]
            source[lane] = other

    def _assess(self) -> np.ndarray:
        """Find who drafts in each lane, whether that suffices, and how long its prefix is.

        Returns the order of lanes: those of equal numbers stand together.
        """
        busy = np.flatnonzero(self._node >= 0)
        nodes = self._node[busy]
        self._drafter[:], self._alone[:], self._length[:] = IDLE, False, 0
        self._drafter[busy], self._alone[busy] = self._walkers.followed(
            [self._waiting[node] for node in nodes.tolist()]
        )
        prompts = [len(self._prompts[tree]) for tree in self._tree[busy]]
        self._length[busy] = self._trees.position[nodes] + prompts
        # base alone, base drafts, tuned drafts, tuned alone: so that what a model reads is one slice
        return np.where(self._drafter == BASE, 1 - self._alone, 2 * self._drafter + self._alone)

    def _load(self, entering: dict[int, bool]) -> None:
        """Put the texts of all lanes' places into ``_text``, and let the sessions read them but for
        their last tokens. ``entering`` lanes have no such text yet."""
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
            behind = np.flatnonzero(reads & (last > session.length.cpu().numpy()))
            if len(behind):
                catch_up(session, self._text, self._tensor(behind), self._tensor(last[behind]))

    # A round ------------------------------------------------------------------------------------

    def _round(self) -> None:
        groups = [self._waiting.pop(node) for node in self._node[self._node >= 0].tolist()]
        who = np.concatenate(groups)
        lane = np.repeat(np.flatnonzero(self._node >= 0), [len(group) for group in groups])
        paths = []  # lanes and nodes of the drafts
        for model in (BASE, TUNED):
            lanes = np.flatnonzero(self._drafter == model)
            if len(lanes):
                rows = slice(int(lanes[0]), int(lanes[-1]) + 1)
                mine = (lane >= rows.start) & (lane < rows.stop)
                paths.append((model, lanes, self._serve(model, rows, who[mine], lane[mine])))
        self._walkers.advance(who)
        for model, _, nodes in paths:
            self._count_kept(model, nodes)
        self._node[:] = -1
        self._lane_of[who] = lane
        self._hand_out(self._wait(who), paths)

    def _hand_out(self, found: dict[int, np.ndarray], paths: list) -> None:
        """Let lanes keep the new places on their paths; others, met in older parts of trees, wait
        for any lane."""
        places = np.array(list(found), np.int64)
        lanes = self._lane_of[[group[0] for group in found.values()]]
        trees, rows = self._trees, len(self._node)
        # (node, lane) pairs as single numbers, for one look-up of all
        drafted = [(nodes * rows + lane[:, None])[nodes >= 0] for _, lane, nodes in paths]
        on_path = np.isin(trees.parent[places] * rows + lanes, np.concatenate(drafted))
        on_path |= np.isin(places * rows + lanes, np.concatenate(drafted))
        order = np.lexsort(([len(group) for group in found.values()], trees.position[places]))
        for place, lane, mine in zip(places[order], lanes[order], on_path[order]):
            if mine:
                self._later[lane].append(int(place))
            else:
                self._places.setdefault(int(trees.tree[place]), []).append(int(place))

    def _serve(self, model: int, rows: slice, who: np.ndarray, lane: np.ndarray) -> np.ndarray:
        """Draft and read in the lanes ``rows``, whose drafts come from ``model``.

        Returns the nodes ``[b, n]`` at which tokens were drafted, -1 behind a text's end.
        """
        position = self._trees.position[self._node[rows]]
        n = self._block or best_block(self._cuts[model], self._written[model])
        n = min(n, self._sampling.max_new_tokens - int(position.min()))
        keys, positions = self._keys[self._tensor(self._tree[rows])], self._tensor(position)
        drafts, nuclei = self._draft(model, rows, n, keys, positions)
        tokens = drafts.cpu().numpy()
        nodes = self._chain(self._node[rows], tokens)
        reads, fired = ~self._alone[rows], np.zeros(len(nodes), bool)
        if not reads.all():
            some = np.flatnonzero(~reads)
            self._learn_alone(model, nodes[some], tokens[some], nuclei, some)
            fired = self._firing(nodes, who, lane - rows.start) & ~reads
        for some in (np.flatnonzero(reads), np.flatnonzero(fired)):
            if len(some):
                self._verify(model, rows.start, some, drafts, nuclei, nodes, who, lane)
        return nodes

    def _draft(
        self, model: int, rows: slice, n: int, keys: Tensor, positions: Tensor
    ) -> tuple[Tensor, list[Nucleus]]:
        """n tokens a lane ``[b, n]``, and the nuclei ``[b, V]`` that they come from."""
        columns = self._tensor(self._length[rows])[:, None] - 1
        token = self._text[rows].gather(1, columns).squeeze(1)
        tokens, nuclei = [], []
        for i in range(n):
            nuclei.append(self._nucleus(self._sessions[model].read(token[:, None], rows)[:, 0]))
            token = nuclei[-1].draw(keys, positions + i)
            tokens.append(token)
        drafts = torch.stack(tokens, dim=1)
        columns = columns + 1 + torch.arange(n, device=self._device)
        self._text[rows] = self._text[rows].scatter(1, columns, drafts)
        return drafts, nuclei

    def _nucleus(self, logits: Tensor) -> Nucleus:
        return truncate(log_softmax32(logits, self._sampling.temperature), self._sampling.top_p)

    def _learn_alone(
        self, model: int, nodes: np.ndarray, tokens: np.ndarray, nuclei: list[Nucleus], some
    ) -> None:
        """What ``model`` alone says at ``nodes`` [b, n], the lanes ``some`` of its drafts."""
        name = ("entropy_base", "entropy_tuned")[model]
        rows = self._tensor(some)
        for i, nucleus in enumerate(nuclei):
            logp = nucleus.logp[rows]
            drawn = logp.gather(1, self._tensor(tokens[:, i])[:, None]).squeeze(1)
            there = nodes[:, i] >= 0
            self._trees.learn(
                nodes[there, i],
                HALF[model],
                {name: divergences.entropy(logp).cpu().numpy()[there]},
                {model: tokens[there, i]},
                {(model, model): drawn.cpu().numpy()[there]},
            )

    def _verify(
        self,
        model: int,
        first: int,
        some: np.ndarray,
        drafts: Tensor,
        nuclei: list[Nucleus],
        nodes: np.ndarray,
        who: np.ndarray,
        lane: np.ndarray,
    ) -> None:
        """Let the other model read the drafts of the lanes ``first + some``; learn all about them."""
        other, n = 1 - model, drafts.shape[1]
        session, lanes, chosen = (
            self._sessions[other],
            self._tensor(first + some),
            self._tensor(some),
        )
        before = self._tensor(self._length)[lanes] - 1
        behind = (before > session.length[lanes]).nonzero().squeeze(-1)
        if len(behind):
            catch_up(session, self._text, lanes[behind], before[behind])
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
            places = nodes[some[group]].reshape(-1)
            there = self._tensor(np.flatnonzero(places >= 0))
            if len(there) < len(places):
                theirs = theirs[there]
            both = _of_rows(ours, there), self._nucleus(theirs)
            mine = np.isin(lane, first + some[group])
            self._learn_pair(
                model,
                places[places >= 0],
                drafts[chosen[group]].flatten()[there],
                Pair(both if model == BASE else both[::-1]),
                who[mine],
                lane[mine] - first,
                nodes,
            )


def _of_rows(nucleus: Nucleus, rows: Tensor) -> Nucleus:
    """The nucleus of some different rows, in their order: of all without a copy."""
    return nucleus if len(rows) == len(nucleus.size) else nucleus.select(rows)


def _arranged(kind: np.ndarray) -> np.ndarray:
    """An order in which those of each kind stand together, and as few as possible are moved."""
    target = np.sort(kind)
    order = np.where(kind == target, np.arange(len(kind)), -1)
    away = np.flatnonzero(order < 0)
    order[away] = away[np.argsort(kind[away], kind="stable")]
    return order
