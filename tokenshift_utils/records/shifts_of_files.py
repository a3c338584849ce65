"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from tqdm import tqdm

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.records.shifts import shift_table
from tokenshift_utils.study.tokenizers import check_same_tokenizer
from tokenshift_utils.tasks.benchmarks import read_rows


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
    from tokenshift_utils.models.huggingface import HFPolicy

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
