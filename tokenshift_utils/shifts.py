"""Shifts: how two models' next-token distributions differ at every position of given responses.

One row a position. Both models read the same token ids (the prompt's and the response's, never
decoded and encoded again) by teacher forcing; the row at position t compares the distributions that
emit token t. Whose responses they are is the ``source``: the tuned model's own, as in the paper,
another model's, or mixed ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from tokenshift_utils.nucleus import log_softmax32, truncate
from tokenshift_utils.policy import Policy, Sampling
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
from tokenshift_utils.verify import BOX

MODULES = (*SAMPLER, "records", "shifts")


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
    nuclei = truncate(logp_base, top_p), truncate(logp_tuned, top_p)
    inside = [nucleus.log_probs() for nucleus in nuclei]
    tops = [measures.top_k(logp, k) for logp in (logp_base, logp_tuned)]
    best_tuned = tops[1][0][:, 0]
    gain, _ = measures.mass_moved(logp_base, logp_tuned, range(1, tops[0][0].shape[-1] + 1))

    def of(logp: Tensor, ids: Tensor) -> Tensor:
        return logp.gather(-1, ids[:, None]).squeeze(-1)

    columns = {
        "token": tokens,
        "js": measures.js(*inside),
        "js_full": measures.js(logp_base, logp_tuned),
        "kl_base_tuned": measures.kl(logp_base, logp_tuned),
        "kl_tuned_base": measures.kl(logp_tuned, logp_base),
        "entropy_base": measures.entropy(logp_base),
        "entropy_tuned": measures.entropy(logp_tuned),
        "logp_base": of(logp_base, tokens),
        "logp_tuned": of(logp_tuned, tokens),
        "tv": measures.total_variation(*inside),
        "tv_full": measures.total_variation(logp_base, logp_tuned),
        "nucleus_base": nuclei[0].size,
        "nucleus_tuned": nuclei[1].size,
        "rank_base_of_tuned_top1": measures.rank_of(logp_base, best_tuned),
        "logp_base_of_tuned_top1": of(logp_base, best_tuned),
        "top_ids_base": tops[0][0],
        "top_logp_base": tops[0][1],
        "top_ids_tuned": tops[1][0],
        "top_logp_tuned": tops[1][1],
        "gain_in_base_topk": gain,
        "unknown_mass": torch.zeros(len(tokens)),  # both are whole
    }
    return {name: column.cpu().numpy() for name, column in columns.items()}


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
    """Compare two policies on given responses, a block of positions of a batch of rows at a time.

    Yields ``(rows, columns)``: the index of the response that each position belongs to, and the
    columns of ``compare`` with ``position`` beside them. Rows of like length share a batch; within
    a response, positions come in order.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(responses[i]), len(prompts[i])))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        some = [prompts[i] for i in rows], [responses[i] for i in rows]
        lengths = torch.tensor([len(r) for r in some[1]])
        for (where, a), (where_tuned, b) in zip(base.score(*some), tuned.score(*some), strict=True):
            if where != where_tuned:
                raise TokenshiftError(
                    f"{base.name} and {tuned.name} have vocabularies of different sizes "
                    f"({base.vocab_size} and {tuned.vocab_size}); compare models that share one"
                )
            positions = torch.arange(where.start, where.stop).expand(len(rows), -1)
            real = positions < lengths[:, None]
            tokens = [r[where] + [0] * (where.stop - max(len(r), where.start)) for r in some[1]]
            tokens = torch.tensor([t[: where.stop - where.start] for t in tokens], dtype=torch.long)
            columns = compare(
                log_softmax32(a[real], sampling.temperature),
                log_softmax32(b[real], sampling.temperature),
                tokens[real].to(a.device),
                sampling.top_p,
                top_k,
            )
            columns["position"] = positions[real].numpy()
            owner = torch.tensor(rows)[:, None].expand_as(real)[real]
            yield owner.numpy(), columns


def answer_start(tokenizer: Any, ids: Sequence[int]) -> int | None:
    """Position of the token with which the last ``\\boxed{`` of a response opens, or None."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    start = text.rfind(BOX)
    if start < 0:
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
) -> pa.Table:
    """Shifts of all trajectories, ordered as they are.

    ``trajectories`` has columns benchmark, problem, sample, prompt_ids and response_ids.
    ``progress`` is called with the number of positions of each block done.
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
    starts = [answer_start(base.tokenizer, ids) for ids in responses]
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
            study_policy(study, study.base),
            study_policy(study, self.tuned),
            self.source,
            found[mine].reset_index(drop=True),
            self.sampling,
            study.top_k,
            study.batch.score,
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
