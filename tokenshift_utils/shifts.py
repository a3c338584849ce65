"""Shifts: how two models' next-token distributions differ at every position of given responses.

One row a position. Both models read the same token ids (the prompt's and the response's, never
decoded and encoded again) by teacher forcing; the row at position t compares the distributions that
emit token t. Whose responses they are is the ``source``: the tuned model's own, as in the paper,
another model's, or mixed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from tokenshift_utils import executor, measures, records
from tokenshift_utils.benchmarks import read_rows
from tokenshift_utils.cross_sampling import CrossSampling, cross_sampling_artefacts
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.memory import halving, positions_at_once
from tokenshift_utils.nucleus import log_softmax32, on_supports, truncate
from tokenshift_utils.policy import KeepsStates, Policy, Sampling
from tokenshift_utils.rollouts import (
    SAMPLER,
    Rollouts,
    benchmark_names,
    common_parts,
    rollout_artefacts,
    shards_of,
    study_policy,
    study_sampling,
)
from tokenshift_utils.store import code_version
from tokenshift_utils.study import Study
from tokenshift_utils.tokenizer_checks import check_same_tokenizer
from tokenshift_utils.verify import answer_opening

MODULES = (*SAMPLER, "memory", "records", "shifts")


def compare(logp_base: Tensor, logp_tuned: Tensor, tokens: Tensor, top_p: float, k: int) -> dict:
    """Every measured column of ``shifts`` at n positions.

    Parameters
    ----------
    logp_base, logp_tuned : full log-probabilities ``[n, V]`` at the sampling temperature
    tokens : the tokens that stand there, int64 ``[n]``
    top_p : nucleus mass
    k : length of the lists of most probable tokens

    Returns
    -------
    dict of numpy arrays ``[n]``, lists ``[n, min(k, V)]``
    """
    full = measures.pair(logp_base, logp_tuned)
    nuclei = truncate(logp_base, top_p), truncate(logp_tuned, top_p)
    js, tv = full.js.clone(), full.tv.clone()
    if top_p < 1.0:
        for rows, *inside in on_supports(*nuclei):
            js[rows], tv[rows] = measures.js(*inside), measures.total_variation(*inside)
    tops = [measures.top_k(logp, k) for logp in (logp_base, logp_tuned)]
    best_tuned = tops[1][0][:, 0]

    def of(logp: Tensor, ids: Tensor) -> Tensor:
        return logp.gather(-1, ids[:, None]).squeeze(-1)

    columns = {
        "token": tokens,
        "js": js,
        "js_full": full.js,
        "kl_base_tuned": full.kl_pq,
        "kl_tuned_base": full.kl_qp,
        "entropy_base": full.entropy_p,
        "entropy_tuned": full.entropy_q,
        "logp_base": of(logp_base, tokens),
        "logp_tuned": of(logp_tuned, tokens),
        "tv": tv,
        "tv_full": full.tv,
        "nucleus_base": nuclei[0].size,
        "nucleus_tuned": nuclei[1].size,
        "rank_base_of_tuned_top1": _rank(logp_base, tops[0][0], best_tuned),
        "logp_base_of_tuned_top1": of(logp_base, best_tuned),
        "top_ids_base": tops[0][0],
        "top_logp_base": tops[0][1],
        "top_ids_tuned": tops[1][0],
        "top_logp_tuned": tops[1][1],
        "gain_in_base_topk": measures.mass_gained(logp_base, logp_tuned, tops[0][0]),
        "unknown_mass": torch.zeros(len(tokens), device=tokens.device),  # both are whole
    }
    return _arrays(columns)


def _arrays(columns: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Columns ``[n]`` and ``[n, m]`` as arrays, fetched from a device all at once."""
    arrays = {}
    for dtype in {column.dtype for column in columns.values()}:
        some = {name: column for name, column in columns.items() if column.dtype == dtype}
        wide = [column.reshape(len(column), -1) for column in some.values()]
        ends = np.cumsum([column.shape[1] for column in wide])
        together = torch.cat(wide, dim=1).cpu().numpy()
        for (name, column), end in zip(some.items(), ends):
            part = together[:, end - column[0].numel() : end]
            arrays[name] = part if column.dim() > 1 else part[:, 0]
    return arrays


def _rank(logp: Tensor, ranked: Tensor, ids: Tensor) -> Tensor:
    """``measures.rank_of``, read off the most probable tokens ``ranked`` [n, k] where they hold it."""
    same = ranked == ids[:, None]
    rank = 1 + same.int().argmax(-1)
    beyond = (~same.any(-1)).nonzero().squeeze(-1)
    if len(beyond):
        rank[beyond] = measures.rank_of(logp[beyond], ids[beyond])
    return rank


Read = Callable[[Tensor, Tensor], Tensor]  # rows [n], positions [n] -> logits [n, V]


def _readers(
    policies: Sequence[Policy], prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> Iterator[tuple[slice, list[Read]]]:
    """Stretches of positions, and what reads each policy's logits there.

    All positions are one stretch where the policies keep hidden states, so that no more logits need
    to be held than are compared at once; else stretches are the blocks of ``Policy.score``.
    """
    readers = []
    for policy in policies:
        reader = policy.scorer(prompts, responses) if isinstance(policy, KeepsStates) else None
        if reader is None:
            break
        readers.append(reader)
    else:
        yield slice(0, max(map(len, responses))), readers
        return
    for parts in zip(*(policy.score(prompts, responses) for policy in policies), strict=True):
        where, *others = (part for part, _ in parts)
        if any(part != where for part in others):
            raise ValueError("two policies score in blocks that differ")

        def reader(logits: Tensor, first: int = where.start) -> Read:
            return lambda rows, positions: logits[
                rows.to(logits.device), positions.to(logits.device) - first
            ]

        yield where, [reader(logits) for _, logits in parts]


@torch.inference_mode()
def score_pair(
    base: Policy,
    tuned: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampling: Sampling,
    top_k: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, dict]]:
    """Compare two policies on given responses, a few positions of a batch of rows at a time.

    Yields ``(rows, columns)``: the index of the response that each position belongs to, and the
    columns of ``compare`` with ``position`` beside them. Rows of like length share a batch; within
    a response, positions come in order. How many positions are compared at once follows the memory
    there is, and changes no result by more than rounding.
    """
    if base.vocab_size != tuned.vocab_size:
        raise TokenshiftError(
            f"{base.name} and {tuned.name} have vocabularies of different sizes "
            f"({base.vocab_size} and {tuned.vocab_size}); compare models that share one"
        )
    order = sorted(range(len(prompts)), key=lambda i: (len(responses[i]), len(prompts[i])))
    for start in range(0, len(order), batch_size):
        rows = [i for i in order[start : start + batch_size] if len(responses[i])]
        if rows:
            some = [prompts[i] for i in rows], [responses[i] for i in rows]
            for owner, columns in _score_batch((base, tuned), *some, sampling, top_k):
                yield np.array(rows)[owner], columns


def _score_batch(
    policies: Sequence[Policy],
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    sampling: Sampling,
    top_k: int,
) -> Iterator[tuple[np.ndarray, dict]]:
    """``score_pair`` on rows that are read together; what the models keep of them goes with it."""
    lengths = torch.tensor([len(response) for response in responses])
    tokens = torch.zeros(len(responses), int(lengths.max()), dtype=torch.long)
    for row, response in zip(tokens, responses):
        row[: len(response)] = torch.tensor(response)
    for where, readers in _readers(policies, prompts, responses):
        real = torch.arange(where.start, where.stop) < lengths[:, None]
        row, position = real.nonzero(as_tuple=True)
        places = row, position + where.start
        for part, columns in _compared(readers, places, tokens, sampling, top_k):
            yield row[part].numpy(), columns


def _compared(
    readers: Sequence[Read],
    places: tuple[Tensor, Tensor],
    tokens: Tensor,
    sampling: Sampling,
    top_k: int,
) -> Iterator[tuple[slice, dict]]:
    """The columns of ``score_pair`` at rows and positions [n], as many at once as memory allows."""
    row, position = places
    one = readers[0](row[:1], position[:1])
    size = min(len(row), positions_at_once(one.shape[-1], one.dtype, one.device))
    rooms: dict[Read, Tensor] = {}  # for log-probabilities; new memory takes time on a CPU

    def log_probs(read: Read, at: tuple[Tensor, Tensor]) -> Tensor:
        logits = read(*at)
        room = rooms.get(read)
        if room is None or len(room) < len(logits):
            dtype = torch.promote_types(logits.dtype, torch.float32)
            room = rooms[read] = torch.empty_like(logits, dtype=dtype)
        return log_softmax32(logits, sampling.temperature, room[: len(logits)]).to(one.device)

    def compared(start: int, stop: int) -> dict:
        at = row[start:stop], position[start:stop]
        logp = [log_probs(read, at) for read in readers]
        return compare(*logp, tokens[at].to(one.device), sampling.top_p, top_k)

    for start, stop, columns in halving(len(row), size, compared):
        columns["position"] = position[start:stop].numpy()
        yield slice(start, stop), columns


def answer_start(tokenizer: Any, ids: Sequence[int], verifier: str = "boxed") -> int | None:
    """Position of the token with which the final answer of a response opens, or None."""
    start = answer_opening(tokenizer.decode(list(ids), skip_special_tokens=True), verifier)
    if start is None:
        return None
    low, high = 0, len(ids) - 1  # the first position whose prefix reaches beyond `start`
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(list(ids[: middle + 1]), skip_special_tokens=True)) > start:
            high = middle
        else:
            low = middle + 1
    return low


def shift_table(
    base: Policy,
    tuned: Policy,
    source: str,
    trajectories: pd.DataFrame,
    sampling: Sampling,
    top_k: int,
    batch_size: int,
    progress: Any = None,
    verifier: str = "boxed",
) -> pa.Table:
    """Shifts of all trajectories, ordered as they are.

    ``trajectories`` has columns benchmark, problem, sample, prompt_ids and response_ids.
    ``progress`` is called with the number of positions of each block done; ``verifier`` is the rule
    by which a response's final answer is found.
    """
    prompts = [list(map(int, ids)) for ids in trajectories["prompt_ids"]]
    responses = [list(map(int, ids)) for ids in trajectories["response_ids"]]
    scored = score_pair
    if getattr(base, "top_logprobs", -1) != -1:
        from tokenshift_utils.vllm_scoring import score_pair as scored
    owners, blocks = [], []
    for owner, columns in scored(base, tuned, prompts, responses, sampling, top_k, batch_size):
        owners.append(owner)
        blocks.append(columns)
        if progress is not None:
            progress(len(owner))
    if not blocks:
        raise TokenshiftError("no response has a token; there is nothing to compare")
    owner = np.concatenate(owners)
    measured = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    by_row = np.lexsort((measured["position"], owner))
    owner = owner[by_row]
    columns = {name: values[by_row] for name, values in measured.items()}
    columns |= {"base": base.name, "tuned": tuned.name, "source": source}
    for name in ("benchmark", "problem", "sample"):
        columns[name] = trajectories[name].to_numpy()[owner]
    columns["n_tokens"] = np.array([len(r) for r in responses])[owner]
    starts = [answer_start(base.tokenizer, ids, verifier) for ids in responses]
    columns["answer_start"] = [starts[i] for i in owner]
    return records.table("shifts", columns)


# Records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """Mixed trajectories as a source of shifts: the arguments of ``get_cross_sampling``."""

    primary: str
    intervention: str
    rule: str = "js"
    threshold: float | None = 0.1
    rate: float | None = None


@dataclass(frozen=True)
class Shifts:
    """Shifts of one tuned model against the base on one benchmark's trajectories of a source."""

    tuned: str
    trajectories: Rollouts | CrossSampling
    samples: int
    sampling: Sampling
    kinds = ("shifts",)

    @property
    def source(self) -> str:
        """The source's name in the records."""
        made = self.trajectories
        return made.model if isinstance(made, Rollouts) else made.source

    def parts(self, study: Study) -> dict:
        return common_parts(study, self.trajectories.benchmark, [study.base, self.tuned]) | {
            "kind": "shifts",
            "tuned": self.tuned,
            "trajectories": self.trajectories.parts(study),
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "top_k": study.top_k,
            "batch": study.batch.score,
            "code": code_version(MODULES),
        }

    def weights(self, study: Study) -> list[int]:
        problems = shards_of(study, self.trajectories.benchmark, study.problems_per_shard)
        return [len(some) * self.samples for some in problems]

    def _sources(self, study: Study, shard: int) -> list[executor.Job]:
        # Shards of trajectories may hold more problems than ours.
        done = sum(self.weights(study)[:shard]) // self.samples
        here = self.weights(study)[shard] // self.samples
        jobs, first = [], 0
        for number, weight in enumerate(self.trajectories.weights(study)):
            last = first + weight // self.trajectories.samples
            if first < done + here and last > done:
                jobs.append(executor.Job(self.trajectories, number))
            first = last
        return jobs

    def needs(self, study: Study, shard: int) -> list[executor.Job]:
        return self._sources(study, shard)

    def policies(self, study: Study) -> Sequence[Policy]:
        """The two that are compared."""
        return study_policy(study, study.base), study_policy(study, self.tuned)

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        kind = self.trajectories.kinds[0]
        names = ["benchmark", "problem", "sample", "prompt_ids", "response_ids"]
        found = pa.concat_tables(
            [executor.read_shard(study, job, kind, names) for job in self._sources(study, shard)]
        ).to_pandas()
        benchmark = self.trajectories.benchmark
        problems = shards_of(study, benchmark, study.problems_per_shard)[shard]
        mine = found["problem"].isin({p.id for p in problems}) & (found["sample"] < self.samples)
        table = shift_table(
            *self.policies(study),
            self.source,
            found[mine].reset_index(drop=True),
            self.sampling,
            study.top_k,
            study.batch.score,
            verifier=study.verifier,
        )
        return {"shifts": table}


def shift_artefacts(
    study: Study,
    tuned: str,
    source: str | Mixed | None = None,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> list[Shifts]:
    """The artefacts behind ``get_shifts``, for ``prefetch``."""
    study.model(tuned)
    if samples is None:
        samples = study.samples.checkpoints if "@" in tuned else study.samples.shifts
    chosen = study_sampling(study, sampling)
    source = tuned if source is None else source
    names = benchmark_names(study, benchmarks)
    if isinstance(source, Mixed):
        number = max(samples, study.samples.cross_sampling)
        made = cross_sampling_artefacts(
            study, **vars(source), benchmarks=names, samples=number, sampling=sampling
        )
    else:
        made = rollout_artefacts(study, source, names, samples, sampling)
    return [Shifts(tuned, trajectories, samples, chosen) for trajectories in made]


def get_shifts(
    study: Study,
    tuned: str,
    source: str | Mixed | None = None,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    columns: Sequence[str] | None = None,
    sampling: Any = None,
) -> pd.DataFrame:
    """Shifts from the study's base to ``tuned``, computed where the store lacks them.

    Parameters
    ----------
    tuned : a model, or a checkpoint as ``dapo@12``
    source : whose trajectories: a model's name, or ``Mixed``; None for the tuned model's own
    samples : the first so many responses a problem; None for the study's
    columns : names to read; None for all (the lists of most probable tokens are large)
    sampling : what differs from the study's sampling, for the trajectories and the measures alike

    Returns
    -------
    DataFrame with the columns of ``records.describe("shifts")``, one row a position.
    """
    artefacts = shift_artefacts(study, tuned, source, benchmarks, samples, sampling)
    return computed_shifts(study, artefacts, columns)


def computed_shifts(
    study: Study, artefacts: Sequence[Shifts], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Some columns of shifts, or all of them, computed where the store lacks them."""
    executor.run(study, artefacts)
    tables = [executor.read(study, artefact, "shifts", columns) for artefact in artefacts]
    frame = pa.concat_tables(tables).to_pandas()
    if "answer_start" in frame:
        frame["answer_start"] = frame["answer_start"].astype("Int32")
    return frame


# Any pair of checkpoints ------------------------------------------------------------------------


def _ids(row: dict, what: str, tokenizer: Any, vocab_size: int, where: str) -> list[int]:
    """A prompt or response of a row as token ids: ``what_ids`` as they are, or ``what`` encoded."""
    given = row.get(f"{what}_ids")
    if given is not None:
        if not all(isinstance(i, int) and 0 <= i < vocab_size for i in given):
            raise TokenshiftError(
                f"{where} has {what}_ids outside 0 to {vocab_size - 1}; "
                "give ids of the models' own tokenizer"
            )
        ids = list(given)
    elif isinstance(row.get(what), str):
        ids = tokenizer.encode(row[what], add_special_tokens=False)
    else:
        raise TokenshiftError(f"{where} has neither '{what}' (text) nor '{what}_ids' (token ids)")
    if not ids:
        raise TokenshiftError(f"{where} has a {what} without tokens; remove the row or fill it")
    return ids


def read_responses(file: Path, tokenizer: Any, vocab_size: int) -> pd.DataFrame:
    """Trajectories of a .jsonl file.

    Rows have ``prompt`` or ``prompt_ids``, ``response`` or ``response_ids``, and may have
    ``benchmark`` (else the file's name), ``problem`` (else the row's number from 0) and ``sample``
    (else 0). Text is encoded without special tokens.
    """
    found = []
    for number, row in enumerate(read_rows(file)):
        where = f"{file.name}, row {number + 1}"
        found.append(
            {
                "benchmark": str(row.get("benchmark", file.stem)),
                "problem": str(row.get("problem", number)),
                "sample": int(row.get("sample", 0)),
                "prompt_ids": _ids(row, "prompt", tokenizer, vocab_size, where),
                "response_ids": _ids(row, "response", tokenizer, vocab_size, where),
            }
        )
    return pd.DataFrame(found)


def shifts_of_files(
    base_dir: str | Path,
    tuned_dir: str | Path,
    responses_jsonl: str | Path,
    out_parquet: str | Path,
    sampling: Sampling | None = None,
    top_k: int = 10,
    batch_size: int = 16,
    dtype: str = "float32",
) -> int:
    """Write the shifts of any two checkpoints on any responses; no answers needed.

    ``sampling`` gives the temperature and top-p of the distributions compared, the paper's 1 and
    0.7 where None. The file appears only when it is whole. Returns the number of positions.
    """
    # Imported late: loading transformers takes seconds, which readers of records need not wait.
    from tokenshift_utils.hf_policy import HFPolicy

    sampling = sampling or Sampling(temperature=1.0, top_p=0.7)
    base_dir, tuned_dir, out = Path(base_dir), Path(tuned_dir), Path(out_parquet)
    if not out.absolute().parent.is_dir():
        raise TokenshiftError(
            f"there is no directory {out.absolute().parent} to write {out.name} in"
        )
    base = HFPolicy.load(base_dir, base_dir.name, dtype)
    tuned = HFPolicy.load(tuned_dir, tuned_dir.name, dtype)
    check_same_tokenizer(base_dir, tuned_dir)
    size = min(base.vocab_size, tuned.vocab_size)
    trajectories = read_responses(Path(responses_jsonl), base.tokenizer, size)
    total = int(trajectories["response_ids"].map(len).sum())
    with tqdm(total=total, unit="position", desc="shifts") as bar:
        table = shift_table(
            base, tuned, "given", trajectories, sampling, top_k, batch_size, bar.update
        )
    temporary = out.with_name(f"{out.name}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return table.num_rows
