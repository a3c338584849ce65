"""Shifts between any two model directories, on responses of a file, without a study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import write_bytes
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.records.responses import read_responses
from tokenshift_utils.records.shifts import shift_table
from tokenshift_utils.store.progress import Progress
from tokenshift_utils.study.checkpoints import is_adapter
from tokenshift_utils.study.positions import alike_up_to, made_for
from tokenshift_utils.study.tokenizers import check_same_tokenizer

if TYPE_CHECKING:
    from tokenshift_utils.models.huggingface import HFPolicy


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

    ``tuned_dir`` may hold a PEFT adapter on the base.
    ``sampling`` gives the temperature and top-p of the distributions compared, the paper's 1 and
    0.7 where None. The file appears only when it is whole. Returns the number of positions.
    """
    # Imported late: loading transformers takes seconds, which readers of records need not wait.
    from tokenshift_utils.models.adapters import load_adapter
    from tokenshift_utils.models.huggingface import HFPolicy

    sampling = sampling or Sampling(temperature=1.0, top_p=0.7)
    base_dir, tuned_dir, out = Path(base_dir), Path(tuned_dir), Path(out_parquet)
    if out.is_dir():
        raise TokenshiftError(f"{out} is a directory; give --out a file to write in it")
    if not out.absolute().parent.is_dir():
        raise TokenshiftError(
            f"there is no directory {out.absolute().parent} to write {out.name} in: make it first"
        )
    base = HFPolicy.load(base_dir, base_dir.name, dtype)
    if is_adapter(tuned_dir):
        tuned = load_adapter(base, tuned_dir, tuned_dir.name)
    else:
        tuned = HFPolicy.load(tuned_dir, tuned_dir.name, dtype)
    if not is_adapter(tuned_dir) or (tuned_dir / "tokenizer.json").is_file():
        check_same_tokenizer(base_dir, tuned_dir)
    size = min(base.vocab_size, tuned.vocab_size)
    trajectories = read_responses(Path(responses_jsonl), base.tokenizer, size)
    _tell_lengths((base, base_dir), (tuned, tuned_dir), trajectories, Path(responses_jsonl).name)
    total = int(trajectories["response_ids"].map(len).sum())
    with Progress(total, "position", "shifts") as progress:
        table = shift_table(
            base, tuned, "given", trajectories, sampling, top_k, batch_size, progress.advance
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(out, sink.getvalue().to_pybytes())
    return table.num_rows


def _tell_lengths(
    base: tuple[HFPolicy, Path], tuned: tuple[HFPolicy, Path], trajectories: pd.DataFrame, file: str
) -> None:
    """Say on stderr where a row is longer than a model was made for; refuse what it cannot read."""
    lengths = trajectories["prompt_ids"].map(len) + trajectories["response_ids"].map(len)
    row, passed = lengths.idxmax(), []
    for policy, directory in (base, tuned):
        room = alike_up_to(policy.model.config)
        if room is not None and lengths[row] > room:
            raise TokenshiftError(
                f"{file}, row {row + 1} has {lengths[row]} tokens, prompt and response, more than "
                f"the {room} up to which the model in {directory} reads a text alike in any batch, "
                "by its RoPE scaling: shorten the row or leave it out"
            )
        room = policy.positions or made_for(policy.model.config)
        if room is not None and lengths[row] > room:
            passed.append((policy.positions is None, room, directory))
    if not passed:
        return
    soft, room, directory = min(passed, key=lambda context: context[:2])
    sentence = (
        f"{file}, row {row + 1} has {lengths[row]} tokens, prompt and response "
        f"({int((lengths > room).sum())} rows are too long), more than the {room} that the model in "
        f"{directory} "
    )
    if not soft:
        raise TokenshiftError(f"{sentence}has positions for: shorten the row or leave it out")
    print(
        f"warning: {sentence}was made for, so that shifts beyond say little about it: shorten the "
        "row or leave it out",
        file=sys.stderr,
    )
