"""The responses that the explorer shows, as records: their trees, candidates and both models' ways.

What the mixture trees hold of them is read there. What they do not hold, both models' candidates at
every place and how each goes on by itself, is computed once, and kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenshift_utils.models.policy import Policy, Sampling, stop_ids
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.pairs.walks import Walk
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.mixture_trees import name_of
from tokenshift_utils.records.requests import (
    Request,
    common_parts,
    items,
    shards_of,
    study_policy,
    verdict,
)
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.sections.explorer.trees import (
    MEASURED,
    SIDES,
    Tree,
    complete,
    score_candidates,
)
from tokenshift_utils.store import columns as records
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import Study

# The request ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExplorerResponses(Request):
    """The first responses to a benchmark that a pair mixed, with all that the explorer shows of them.

    Attributes
    ----------
    own : rollouts of base and of the tuned model, the samples that are mixed
    mixtures : those shown
    all_mixtures : all that are read off the same trees, which they grow by together
    problems, samples : the first so many are shown, of each problem the first so many samples
    """

    base: str
    tuned: str
    benchmark: str
    own: tuple[Rollouts, Rollouts]
    mixtures: tuple[CrossSampling, ...]
    all_mixtures: tuple[CrossSampling, ...]
    problems: int
    samples: int
    kinds = ("explorer", "explorer_mixtures")

    @property
    def sampling(self) -> Sampling:
        """What all of them are drawn with."""
        return self.all_mixtures[0].sampling

    def parts(self, study: Study) -> dict:
        trees = self.all_mixtures[0].underlying(study).canonical
        return common_parts(study, self.benchmark, [self.base, self.tuned], __name__) | {
            "kind": "explorer",
            "base": self.base,
            "tuned": self.tuned,
            "own": [rollouts.parts(study) for rollouts in self.own],
            "trees": trees.parts(study),
            # what any walk has left in the trees is not computed here
            "walks": sorted(map(list, set(_walks(study, self.all_mixtures)))),
            "mixtures": [list(walk) for walk in _walks(study, self.mixtures)],
            "shown": [self.problems, self.samples],
            "sampling": vars(self.sampling),
            "top_k": study.top_k,
            "batch": [study.batch.score, study.batch.rollout],
        }

    def _shards(self, study: Study) -> list[list]:
        """The problems shown, in the shards that the trees have."""
        shards = shards_of(study, self.benchmark, study.problems_per_shard)
        starts = range(0, self.problems, study.problems_per_shard)
        return [some[: self.problems - start] for start, some in zip(starts, shards)]

    def weights(self, study: Study) -> list[int]:
        read = self.samples * (len(self.own) + len(self.mixtures))
        return [len(problems) * read for problems in self._shards(study)]

    def needs(self, study: Study, shard: int) -> list[executor.Job]:
        return [executor.Job(needed, shard) for needed in (*self.own, *self.all_mixtures)]

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        policies = base, tuned = tuple(study_policy(study, m) for m in (self.base, self.tuned))
        made = items(study, base, self.benchmark, self._shards(study)[shard], self.samples)
        stops = stop_ids(base, tuned)
        trees = [Tree(item, stops, self.sampling.max_new_tokens) for item in made]
        by_key = {(item.problem.id, item.sample): tree for item, tree in zip(made, trees)}
        mixtures = self._mixtures(study, shard, by_key)
        leaves: dict[tuple, dict[int, None]] = {key: {} for key in by_key}
        for problem, sample, node in zip(*(mixtures[n] for n in ("problem", "sample", "node"))):
            leaves[problem, sample][node] = None
        stored = executor.Job(self.all_mixtures[0].underlying(study).canonical, shard)
        names = ["problem", "sample", "parent", "token", *(f"token_{s}" for s in SIDES), *MEASURED]
        table = executor.read_shard(study, stored, "mixture_trees", names).to_pandas()
        for key, rows in table.groupby(["problem", "sample"]):
            if key in by_key:
                by_key[key].add_measures(rows)
        ends = [list(some) for some in leaves.values()]
        score_candidates(trees, ends, policies, self.sampling, study.top_k, study.batch.score)
        complete(trees, policies, self.sampling, stops, study.batch.rollout)
        whose = {"base": self.base, "tuned": self.tuned, "benchmark": self.benchmark}
        return {
            "explorer": records.table("explorer", whose | _columns(trees, base)),
            "explorer_mixtures": records.table("explorer_mixtures", whose | mixtures),
        }

    def _mixtures(self, study: Study, shard: int, trees: dict[tuple, Tree]) -> dict[str, list[Any]]:
        """The columns of ``explorer_mixtures``; their responses are put into the trees."""
        rows: dict[str, list[Any]] = defaultdict(list)

        def record(walk: str, responses: pa.Table, switched: dict[tuple, list[int]]) -> None:
            columns = (responses[n].to_pylist() for n in ("problem", "sample", "response_ids"))
            for *key, ids in zip(*columns):
                if (key := tuple(key)) in trees:
                    fields = (*key, walk, trees[key].record(ids), sorted(switched.get(key, ())))
                    for name, value in zip(
                        ("problem", "sample", "walk", "node", "switched"), fields
                    ):
                        rows[name].append(value)

        for rollouts, walk in zip(self.own, OWN):
            record(walk, executor.read_shard(study, executor.Job(rollouts, shard), "rollouts"), {})
        key = executor.key_of(study, self.all_mixtures[0].underlying(study))
        for mixture, (walk, _) in zip(self.mixtures, _walks(study, self.mixtures)):
            switched: dict[tuple, list[int]] = defaultdict(list)
            switches = mixture.view(study, key, shard, "switches")
            columns = (switches[name].to_pylist() for name in ("problem", "sample", "position"))
            for problem, sample, position in zip(*columns):
                switched[problem, sample].append(position)
            record(walk, mixture.view(study, key, shard, "cross_sampling"), switched)
        return rows


# The models' own responses, forward and reverse, as ``walk`` has them: mixtures without a switch.
OWN = tuple(name_of(Walk(Rule("never"), forward)) for forward in (True, False))


def walk_of(study: Study, mixture: CrossSampling) -> str:
    """A mixture as ``walk`` has it."""
    return _walks(study, [mixture])[0][0]


def _walks(study: Study, mixtures: Iterable[CrossSampling]) -> list[tuple[str, int]]:
    """Which walks through the trees mixtures are, and of how many samples of each problem."""
    taken = (walk for mixture in mixtures for walk in mixture.underlying(study).walks)
    return [(name_of(walk), samples) for walk, samples in taken]


_JUDGED = ("finish_reason", "answer", "correct")
_LISTS = ("candidates", *(f"candidates_p_{side}" for side in SIDES), "candidates_nuclei")


def _columns(trees: Sequence[Tree], policy: Policy) -> dict[str, list[Any]]:
    """The columns of ``explorer`` that its rows do not share; ``policy`` has the tokenizer."""
    rows, owners, ends = [], [], {}
    for tree in trees:
        for node, (parent, token) in enumerate(zip(tree.parent, tree.token)):
            if node and tree.ends(node):
                ids = tree.ids(node)
                ends[len(rows)] = ids, "eos" if ids[-1] in tree.stops else "length", tree.item
            candidates, sizes = tree.candidates.get(node, ((), (None, None)))
            measured = tree.measured[node] if candidates else {}
            lists = [list(column) for column in zip(*candidates)] or [None] * len(_LISTS)
            owners.append(tree.item)
            rows.append(
                {"node": node, "parent": parent, "token": token}
                | {f"own_{side}": own.get(node) for side, own in zip(SIDES, tree.own)}
                | {name: measured.get(name) for name in MEASURED}
                | {f"nucleus_{side}": size for side, size in zip(SIDES, sizes)}
                | dict(zip(_LISTS, lists))
            )
    judged = verdict(policy, *map(list, zip(*ends.values())))
    judged["finish_reason"] = [reason for _, reason, _ in ends.values()]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name in _JUDGED:
        found = dict(zip(ends, judged[name]))
        columns[name] = [found.get(row) for row in range(len(rows))]
    columns["problem"] = [item.problem.id for item in owners]
    columns["sample"] = [item.sample for item in owners]
    return columns
