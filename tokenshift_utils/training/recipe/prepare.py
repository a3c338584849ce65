"""What runs of a study's own data start from: the model and the problems."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock

from tokenshift_utils.files import read_json, write_text
from tokenshift_utils.study.checkpoints import FINGERPRINTED, directory_fingerprint
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer, model_ends
from tokenshift_utils.study.weights import check_model
from tokenshift_utils.tasks.prompts import prompt_parts, stop_token_ids
from tokenshift_utils.training.recipe.data import read_problems
from tokenshift_utils.training.recipe.runs import problems_file, read_prepared, start_directory
from tokenshift_utils.training.runs import digest, work_directory


def prepare(study: Study) -> None:
    """Make what runs start from, where it isn't there: the start model and the problems.

    Raises
    ------
    TokenshiftError
        Where the base or the data are missing or damaged.
    """
    work_directory(study).mkdir(parents=True, exist_ok=True)
    with FileLock(work_directory(study) / "prepare.lock"):  # commands may begin together
        write_start(study)
        _prepare_problems(study)


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
    config = read_json(base / "config.json", "fetch the model again")
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
    if file.is_symlink() or not file.is_file() or file.read_bytes() != text.encode():
        write_text(file, text)


def _prepare_problems(study: Study) -> None:
    place = study.training_data_path()
    of = digest(
        {
            "data": study.training.data.model_dump(mode="json"),
            "solutions": sorted({a.solution or "" for a in study.training.arms.values()}),
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
    several = f"; {counts['other_answer']} come with several answers, of which the first is kept"
    print(
        f"{counts['problems']} problems to train on, of {counts['rows']} rows"
        f"{several if counts['other_answer'] else ''}",
        flush=True,
    )
