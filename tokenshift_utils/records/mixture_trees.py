"""Mixture trees of a study: every mixture of a pair on a benchmark, from one set of records.

What the store holds of a pair, benchmark and sampling is the tree of each problem and sample
(``pairs.tree``), every distinct response that was mixed, judged once, and for each mixture and
sample which response it is. It grows: a mixture that is asked for later is walked through what is
there, and only what it meets anew is computed. Rows are only ever appended to those that are
there, so that a reader beside a writer sees one state or the next.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.policy import Policy, Sampling, stop_ids
from tokenshift_utils.pairs.grow import grow
from tokenshift_utils.pairs.tree import (
    BASE,
    MODEL_SOURCES,
    NODE_MEASURES,
    TUNED,
    PrefixTrees,
    Source,
)
from tokenshift_utils.pairs.walks import Walk, Walkers
from tokenshift_utils.records.requests import (
    Item,
    Request,
    common_parts,
    items,
    outcome,
    study_policy,
    verdict,
)
from tokenshift_utils.store import columns as records
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import Study

OWN_STREAM = 1  # noise stream of the null control's own tokens
SIDES = ("base", "tuned")
CACHED = 4  # shards whose trees are kept in memory, for the next mixture that is looked up


@dataclass(frozen=True)
class MixtureTrees(Request):
    """The trees of one pair on one benchmark, grown for some walks.

    ``walks`` are (walk, samples): each is taken for the first so many samples of every problem. They
    are no part of the key: the same records hold all.
    """

    base: str
    tuned: str
    benchmark: str
    samples: int
    sampling: Sampling
    walks: tuple[tuple[Walk, int], ...] = ()
    kinds = ("mixture_walks", "mixture_responses", "mixture_trees")

    def parts(self, study: Study) -> dict:
        return common_parts(study, self.benchmark, [self.base, self.tuned], __name__) | {
            "kind": "mixture_trees",
            "base": self.base,
            "tuned": self.tuned,
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "batch": study.batch.cross_sampling,
        }

    @property
    def canonical(self) -> MixtureTrees:
        """The trees of the same key of which no walk is asked."""
        return replace(self, walks=())

    def merge(self, other: MixtureTrees) -> MixtureTrees:
        """The trees that both ask for, with the walks of both."""
        wanted = dict(self.walks)
        for walk, samples in other.walks:
            wanted[walk] = max(samples, wanted.get(walk, 0))
        return replace(self, walks=tuple(wanted.items()))

    def weights(self, study: Study) -> list[int]:
        each = sum(samples for _, samples in self.walks)
        return [len(problems) * each for problems in self._shards(study)]

    def covers(self, study: Study, shard: int) -> bool:
        """Whether a shard that is in the store holds all walks."""
        there = _walked(*self._at(study, executor.key_of(study, self), shard))
        return all(there.get(name_of(walk), 0) >= samples for walk, samples in self.walks)

    def _at(self, study: Study, key: str, shard: int) -> tuple[executor.Store, str, int, str]:
        """Where a shard is, and what its newest bytes are."""
        files = executor.store(study)
        return files, key, shard, files.checksum(self.kinds[0], key, shard)

    # Growing ------------------------------------------------------------------------------------

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        base, tuned = study_policy(study, self.base), study_policy(study, self.tuned)
        made = items(study, base, self.benchmark, self._shards(study)[shard], self.samples)
        trees, there, old = PrefixTrees([item.key for item in made]), {}, None
        if executor.is_done(study, executor.Job(self.canonical, shard)):
            at = self._at(study, executor.key_of(study, self), shard)
            # (never what is kept for readers: whoever is stopped here must find it as it was)
            trees, there = _trees.__wrapped__(*at), _walked(*at)
            old = {kind: at[0].read(kind, *at[1:3]) for kind in self.kinds}
        new = [(w, n) for w, n in self.walks if there.get(name_of(w), 0) < n]
        wanted = [
            [i for i, (w, n) in enumerate(new) if there.get(name_of(w), 0) <= item.sample < n]
            for item in made
        ]
        walkers = grow(
            base,
            tuned,
            [item.prompt_ids for item in made],
            [item.key for item in made],
            [walk for walk, _ in new],
            self.sampling,
            study.batch.cross_sampling,
            null_keys=[
                row_key(study.seed, self.benchmark, item.problem.id, item.sample, OWN_STREAM)
                for item in made
            ],
            trees=trees,
            wanted=wanted,
        )
        return self._tables(study, base, made, walkers, old)

    def _tables(
        self,
        study: Study,
        policy: Policy,
        made: list[Item],
        walkers: Walkers,
        old: dict[str, pa.Table] | None,
    ) -> dict[str, pa.Table]:
        nodes, index = _nodes(walkers.trees, made, self)
        runs, _ = walkers.result()
        ends = {}  # distinct responses, by where they end
        if old is not None:
            columns = old["mixture_responses"].select(["node", "response_ids"]).to_pydict()
            ends = {
                (n, ids[-1]): i
                for i, (n, ids) in enumerate(zip(columns["node"], columns["response_ids"]))
            }
        before, fresh, which = len(ends), [], []
        for walker, (node, final) in enumerate(zip(index[walkers.node], walkers.final)):
            end = int(node), int(final)
            if end not in ends:
                ends[end] = len(ends)
                fresh.append(walker)
            which.append(ends[end])
        tables = {"mixture_trees": nodes}
        own = [made[walkers.tree[walker]] for walker in fresh]
        ids = [runs[walker].ids for walker in fresh]
        reasons = [runs[walker].finish_reason for walker in fresh]
        if fresh:
            tables["mixture_responses"] = records.table(
                "mixture_responses",
                {
                    "study": study.name,
                    "base": self.base,
                    "tuned": self.tuned,
                    "benchmark": self.benchmark,
                    "response": list(range(before, len(ends))),
                    "node": [end[0] for end in list(ends)[before:]],
                    **outcome(own, ids, reasons),
                    **verdict(policy, ids, reasons, own),
                },
            )
        walks = [walkers.walks[i] for i in walkers.walk]
        owners = [made[i] for i in walkers.tree]
        tables["mixture_walks"] = records.table(
            "mixture_walks",
            {
                "walk": [name_of(walk) for walk in walks],
                "benchmark": self.benchmark,
                "problem": [item.problem.id for item in owners],
                "sample": [item.sample for item in owners],
                "tree": walkers.tree,
                "response": which,
                **{
                    name: [getattr(run, name) for run in runs]
                    for name in ("n_switched", "n_effective", "sum_tv", "sum_independent")
                },
            },
        )
        for kind in ("mixture_walks", "mixture_responses"):
            some = [t for t in ((old or {}).get(kind), tables.get(kind)) if t is not None]
            tables[kind] = pa.concat_tables(some)
        return tables

    # Reading ------------------------------------------------------------------------------------

    def runs(
        self, study: Study, key: str, shard: int, walk: Walk, samples: int
    ) -> dict[str, pa.Array]:
        """The responses of a walk, one row each by problem and sample: the columns of
        ``mixture_responses``, and what ``mixture_walks`` counts."""
        at = self._at(study, key, shard)
        walks = _table(*at, "mixture_walks")
        mine = pc.equal(walks["walk"], name_of(walk))
        mine = walks.filter(pc.and_(mine, pc.less(walks["sample"], samples))).sort_by("tree")
        responses = _table(*at, "mixture_responses").take(mine["response"])
        counted = mine.select(["n_switched", "n_effective", "sum_tv", "sum_independent"])
        tables = (responses, counted)
        return {name: t[name].combine_chunks() for t in tables for name in t.column_names}

    def switches(
        self, study: Study, key: str, shard: int, walk: Walk, samples: int
    ) -> dict[str, np.ndarray]:
        """The switches of a walk by problem, sample and position.

        The columns of ``cross_sample``; ``row`` is the response's number in ``runs``.
        """
        trees = _trees(*self._at(study, key, shard))
        policies = study_policy(study, self.base), study_policy(study, self.tuned)
        trees.add_source(walk.source)
        mine = np.array([t for t in range(len(trees.keys)) if t % self.samples < samples])
        walkers = Walkers(
            *(trees, [walk], (mine, np.zeros_like(mine)), stop_ids(*policies)),
            self.sampling.max_new_tokens,
        )
        walkers.advance(np.arange(len(mine)))
        return walkers.result()[1]


def name_of(walk: Walk) -> str:
    """A walk in words that tell it from all others, as ``mixture_walks`` has it."""
    parts = {"direction": "forward" if walk.forward else "reverse"}
    parts |= vars(walk.rule) | {"insert": walk.insertion.name, "gain": walk.insertion.gain}
    return json.dumps({k: v for k, v in parts.items() if v is not None})


# What is in the store, read once ------------------------------------------------------------------


@lru_cache(maxsize=256)
def _walked(files: executor.Store, key: str, shard: int, checksum: str) -> dict[str, int]:
    """How many samples each walk of a shard was taken for."""
    table = files.read("mixture_walks", key, shard, ["walk", "sample"])
    most = table.group_by("walk").aggregate([("sample", "max")]).to_pydict()
    return {walk: sample + 1 for walk, sample in zip(most["walk"], most["sample_max"])}


@lru_cache(maxsize=64)
def _table(files: executor.Store, key: str, shard: int, checksum: str, kind: str) -> pa.Table:
    return files.read(kind, key, shard)


@lru_cache(maxsize=CACHED)
def _trees(files: executor.Store, key: str, shard: int, checksum: str) -> PrefixTrees:
    """The trees of a shard."""
    table = files.read("mixture_trees", key, shard)
    column = {
        name: table[name].to_numpy(zero_copy_only=False)
        for name in (*NODE_MEASURES, *_INDICES, "key", *_TOKENS, *_LOGP)
    }
    roots = column["parent"] < 0
    trees = PrefixTrees(column["key"][roots].tolist())
    nodes = np.arange(roots.sum(), len(roots))
    trees.add(*(column[name][nodes].astype(np.int64) for name in _INDICES[:4]))
    all_nodes = np.arange(len(roots))
    for name in NODE_MEASURES:
        trees.update(all_nodes, 0, {name: column[name]}, {}, {})
    for i, name in enumerate(_TOKENS):
        trees.tokens[:, i] = column[name]
    for (source, model), name in zip(((s, m) for s in range(2) for m in range(2)), _LOGP):
        trees.logp[:, source, model] = column[name]
    trees.known[:] = column["known"]
    trees.visited[:] = column["known"] > 0
    lists = {name: table[name].combine_chunks() for name in _DRAWN}
    owner = np.repeat(all_nodes, lists["drawn_by"].value_lengths().to_numpy())
    flat = {name: values.flatten() for name, values in lists.items()}
    by = np.array(flat["drawn_by"].to_pylist(), object)
    for label in dict.fromkeys(by.tolist()):
        source = _source(label)
        trees.add_source(source)
        mine, at = by == label, trees.source(source)
        trees.tokens[owner[mine], at] = flat["drawn_token"].to_numpy()[mine]
        for model, side in enumerate(SIDES):
            trees.logp[owner[mine], at, model] = flat[f"drawn_logp_{side}"].to_numpy()[mine]
    trees.derive(all_nodes)
    return trees


_INDICES = ("tree", "parent", "token", "position", "known")
_TOKENS = tuple(f"token_{side}" for side in SIDES)
_LOGP = tuple(f"logp_{under}_of_{of}" for of in SIDES for under in SIDES)
_DRAWN = ("drawn_by", "drawn_token", "drawn_logp_base", "drawn_logp_tuned")


def _label(source: Source) -> str:
    name, primary, gain = source
    return json.dumps([name, SIDES[primary], gain])


def _source(label: str) -> Source:
    name, side, gain = json.loads(label)
    return name, SIDES.index(side), gain


def _nodes(trees: PrefixTrees, made: list[Item], of: MixtureTrees) -> tuple[pa.Table, np.ndarray]:
    """The table of the nodes that walks have visited, and where each node stands in it."""
    keep = trees.visited.copy()
    keep[: len(made)] = True  # the roots
    index = np.where(keep, np.cumsum(keep) - 1, -1)
    rows = np.flatnonzero(keep)
    tree, parent = trees.tree[rows], trees.parent[rows]
    some = trees.tokens[rows, len(MODEL_SOURCES) :] >= 0
    labels = np.array([_label(source) for source in trees.sources[len(MODEL_SOURCES) :]], object)
    node, source = np.nonzero(some)
    ends = np.concatenate([[0], np.cumsum(some.sum(1))]).astype(np.int32)

    def listed(values) -> pa.Array:
        return pa.ListArray.from_arrays(ends, pa.array(values))

    drawn = rows[node], source + len(MODEL_SOURCES)
    problems = np.array([item.problem.id for item in made], object)
    samples = np.array([item.sample for item in made])
    measured = {name: trees.values[rows, i] for i, name in enumerate(NODE_MEASURES)}
    tokens = {name: trees.tokens[rows, i] for i, name in enumerate(_TOKENS)}
    logps = {
        name: trees.logp[rows, source, model]
        for (source, model), name in zip(((s, m) for s in range(2) for m in range(2)), _LOGP)
    }
    columns = {
        "base": of.base,
        "tuned": of.tuned,
        "benchmark": of.benchmark,
        "problem": problems[tree],
        "sample": samples[tree],
        "key": trees.keys.numpy()[tree],
        "tree": tree,
        "parent": np.where(parent >= 0, index[parent], -1),
        "token": trees.token[rows],
        "position": trees.position[rows],
        "known": trees.known[rows].astype(np.int32),
        **measured,
        **tokens,
        **logps,
        "drawn_by": listed(labels[source] if len(source) else np.array([], object).astype(str)),
        "drawn_token": listed(trees.tokens[drawn]),
        "drawn_logp_base": listed(trees.logp[(*drawn, BASE)]),
        "drawn_logp_tuned": listed(trees.logp[(*drawn, TUNED)]),
    }
    return records.table("mixture_trees", columns), index
