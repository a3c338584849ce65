"""What runs of a study's ``training`` section start from: the model, the problems, a key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.checkpoints import (
    FINGERPRINTED,
    check_model,
    directory_fingerprint,
    model_ends,
)
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.prompts import prompt_parts, stop_token_ids
from tokenshift_utils.training.recipe.data import read_problems
from tokenshift_utils.training.recipe.runs import (
    Run,
    digest,
    problems_file,
    read_prepared,
    start_directory,
    work_directory,
)


def prepare(run: Run, fresh: bool = False) -> None:
    """Make what the run starts from, where it isn't there: the start model, problems, a key.

    ``fresh`` forgets what was made of the run.

    Raises
    ------
    TokenshiftError
        Where the base or the data are missing or damaged, or what is left of a stopped run is of
        other settings.
    """
    study = run.study
    write_start(study)
    _prepare_problems(study)
    if fresh:
        shutil.rmtree(run.work, ignore_errors=True)
        (run.logs / "summary.json").unlink(missing_ok=True)
    begun = run.work / "key"
    if begun.is_file() and begun.read_text() != run.key:
        raise TokenshiftError(
            f"{paths.display(run.work)} holds a run of other settings that was stopped: put those "
            "back to go on with it, or add --fresh to drop it"
        )
    if not begun.is_file() and not run.is_done():
        run.work.mkdir(parents=True, exist_ok=True)
        begun.write_text(run.key)


def write_start(study: Study) -> None:
    """Write the model that training and server start from: links to the base's files, but for

    - ``config.json``, with the study's ``max_position_embeddings``;
    - ``generation_config.json``, with nothing but the tokens that end a response, the study's
      ``stop_tokens`` among them: a server takes its other entries for defaults and limits, and
      Qwen2.5-Math-7B's ends every response at 2048 tokens.
    """
    base, spec = study.model_path(study.base), study.model(study.base)
    check_model(base, spec.trust_remote_code)
    tokenizer = load_tokenizer(base)
    config = json.loads((base / "config.json").read_text())
    if spec.max_position_embeddings is not None:
        config["max_position_embeddings"] = spec.max_position_embeddings
    ends = {*model_ends(base), *stop_token_ids(tokenizer, study.stop_tokens)}
    written = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": sorted(ends)}
        | ({} if tokenizer.pad_token_id is None else {"pad_token_id": tokenizer.pad_token_id}),
    }
    start = start_directory(study)
    start.mkdir(parents=True, exist_ok=True)
    linked = {f.name: f.resolve() for pattern in FINGERPRINTED for f in base.glob(pattern)}
    for file in start.iterdir():
        if file.name not in linked and file.name not in written:
            file.unlink()
    for name, file in linked.items():
        link = start / name
        if name not in written and not (link.is_symlink() and link.readlink() == file):
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    for name, content in written.items():
        _write(start / name, json.dumps(content, indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    """Write where it says something else: another run may be reading."""
    if file.is_symlink() or not file.is_file() or file.read_text() != text:
        draft = file.with_name(f".{file.name}.partial")
        draft.write_text(text)
        draft.replace(file)


def _prepare_problems(study: Study) -> None:
    place = study.training_data_path()
    of = digest(
        {
            "data": study.training.data.model_dump(mode="json"),
            "place": [str(place), place.stat().st_mtime_ns if place.is_file() else 0],
            "prompt": prompt_parts(study),
            "tokenizer": directory_fingerprint(study.model_path(study.base)),
        }
    )
    if read_prepared(study)["of"] == of and problems_file(study).is_file():
        return
    table, counts = read_problems(study)
    draft = problems_file(study).with_suffix(".partial")
    pq.write_table(table, draft)
    draft.replace(problems_file(study))
    known = {"of": of, "digest": digest(table.to_pydict()), "counts": counts}
    _write(work_directory(study) / "problems.json", json.dumps(known, indent=1) + "\n")
    print(f"{counts['problems']} problems to train on, of {counts['rows']} rows", flush=True)
