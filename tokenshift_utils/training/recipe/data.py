"""The problems that a study's ``training`` section trains on, as prompts with answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.study.training_schema import TrainingData
from tokenshift_utils.tasks.benchmarks import read_rows
from tokenshift_utils.tasks.prompts import prompt_text

BATCH = 10_000  # rows that are Python objects at once: DAPO-Math-17k has 1.8 million


def read_problems(study: Study) -> tuple[pa.Table, dict[str, int]]:
    """Prompts and answers to train on, and how many rows were left out, by why.

    Of a problem that comes again the first answer is kept; ``other_answer`` counts the problems
    that come with another one later.

    Raises
    ------
    TokenshiftError
        Where the data are missing, can't be read, or a row lacks its problem or answer.
    """
    spec = study.training.data
    place = study.training_data_path()
    where = f"the training data {spec.hub or paths.display(place)}"
    answers: dict[str, str] = {}
    contradicted, rows = set(), 0
    column = spec.prompt or spec.problem
    for row in _rows(place, spec, where):
        rows += 1
        text, answer = _at(row, column), _at(row, spec.answer)
        for path, value in ((column, text), (spec.answer, answer)):
            if not isinstance(value, (str, int, float)) or value == "":
                raise TokenshiftError(
                    f"{where} has no '{path}' in row {rows}; its columns are {', '.join(row)}"
                )
        if answers.setdefault(str(text), str(answer)) != str(answer):
            contradicted.add(text)
    if not answers:
        raise TokenshiftError(f"{where} has no rows")
    if spec.prompt:  # all that the user says: nothing of the study's template goes around it
        prompt = study.prompt.model_copy(update={"template": "{problem}"})
        study = study.model_copy(update={"prompt": prompt})
    table = pa.table(
        {"prompt": [prompt_text(study, text) for text in answers], "answer": list(answers.values())}
    )
    counts = {"rows": rows, "repeated": rows - len(answers), "other_answer": len(contradicted)}
    if spec.max_prompt_tokens is not None:
        tokenizer = load_tokenizer(study.model_path(study.base))
        ids = tokenizer(table["prompt"].to_pylist())["input_ids"]
        fit = [len(tokens) <= spec.max_prompt_tokens for tokens in ids]
        table, counts["too_long"] = table.filter(pa.array(fit)), fit.count(False)
        if not len(table):
            raise TokenshiftError(
                f"{where} has no prompt of at most {spec.max_prompt_tokens} tokens "
                "('training.data.max_prompt_tokens')"
            )
    return table, counts | {"problems": len(table)}


def _rows(place: Path, spec: TrainingData, where: str) -> Iterator[dict]:
    """Rows with the columns that are needed; of a .jsonl file, whole ones."""
    if spec.hub is None and place.suffix != ".parquet":
        yield from read_rows(place)
        return
    try:
        if spec.hub is None:
            data = pq.read_table(place)
        else:
            from datasets import disable_progress_bars, load_dataset

            disable_progress_bars()
            data = load_dataset(str(place), name=spec.config, split=spec.split)
    except FileNotFoundError:
        raise TokenshiftError(f"{where} is not there; correct 'training.data'") from None
    except Exception as error:
        raise TokenshiftError(f"{where} can't be read ({first_line(error)})") from error
    needed = {path.partition(".")[0] for path in (spec.prompt or spec.problem, spec.answer)}
    for name in needed - set(data.column_names):
        raise TokenshiftError(
            f"{where} has no column '{name}'; its columns are {', '.join(data.column_names)}"
        )
    if spec.hub is None:
        batches = data.select(sorted(needed)).to_batches(BATCH)
    else:
        batches = data.select_columns(sorted(needed)).with_format("arrow").iter(BATCH)
    for batch in batches:
        yield from batch.to_pylist()


def _at(row: dict, path: str) -> Any:
    """What stands at a dotted path into dicts and lists; None where there is nothing."""
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value
