"""Responses of people's own files, as trajectories whose shifts can be measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.tasks.cells import as_integer, plain_text, text_of, type_name
from tokenshift_utils.tasks.rows import read_rows

LARGEST_SAMPLE = 2**31 - 1  # what the records hold


def read_responses(file: Path, tokenizer: Any, vocab_size: int) -> pd.DataFrame:
    """Trajectories of a file of JSON lines or Parquet.

    Rows have ``prompt`` or ``prompt_ids``, ``response`` or ``response_ids``, and may have
    ``benchmark`` (else the file's name), ``problem`` (else the row's number from 0) and ``sample``
    (else rows of one problem are numbered from 0). Text is encoded without special tokens.

    Raises
    ------
    TokenshiftError
        Where the file can't be read, a cell is not what its column holds, or a sample is repeated.
    """
    found, seen, named = [], {}, {}
    counts: Counter = Counter()
    for number, (name, row) in enumerate(read_rows(file)):
        where = f"{file.name}, {name}"
        benchmark = _label(row, "benchmark", where, file.stem)
        problem = _label(row, "problem", where, str(number))
        is_named = row.get("problem") is not None
        if named.setdefault((benchmark, problem), is_named) != is_named:
            raise TokenshiftError(
                f"{where}: a row without 'problem' is named by its number, and "
                f"problem '{problem}' is named so in another row; give every row its problem, or none"
            )
        sample = _sample(row, where, counts[benchmark, problem])
        counts[benchmark, problem] += 1
        first = seen.setdefault((benchmark, problem, sample), name)
        if first != name:
            raise TokenshiftError(
                f"{where} repeats sample {sample} of problem '{problem}' of {first}; number them"
            )
        texts = (_ids(row, what, tokenizer, vocab_size, where) for what in ("prompt", "response"))
        found.append((benchmark, problem, sample, *texts))
    names = ["benchmark", "problem", "sample", "prompt_ids", "response_ids"]
    return pd.DataFrame(found, columns=names)


def _label(row: dict, column: str, where: str, default: str) -> str:
    value = row.get(column)
    return default if value is None else text_of(value, where, column)


def _sample(row: dict, where: str, default: int) -> int:
    value = row.get("sample")
    number = default if value is None else as_integer(value)
    if number is None or not 0 <= number <= LARGEST_SAMPLE:
        raise TokenshiftError(
            f"{where}: 'sample' is no whole number from 0; number a problem's responses, or "
            "leave the column out"
        )
    return number


def _ids(row: dict, what: str, tokenizer: Any, vocab_size: int, where: str) -> list[int]:
    """A prompt or response of a row as token ids: ``what_ids`` as they are, or ``what`` encoded."""
    given = row.get(f"{what}_ids")
    if given is not None:
        if not isinstance(given, list):
            raise TokenshiftError(
                f"{where}: '{what}_ids' is {type_name(given)}; give a list of token ids"
            )
        ids = [as_integer(i) if not isinstance(i, str) else None for i in given]
        if not all(i is not None and 0 <= i < vocab_size for i in ids):
            raise TokenshiftError(
                f"{where} has {what}_ids outside 0 to {vocab_size - 1}; "
                "give ids of the models' own tokenizer, without padding"
            )
    elif row.get(what) is not None:
        text = plain_text(row[what], where, what)
        ids = tokenizer.encode(text, add_special_tokens=False)
    elif what in row:
        raise TokenshiftError(f"{where}: '{what}' is empty; fill it or leave the row out")
    else:
        raise TokenshiftError(
            f"{where} has neither '{what}' (text) nor '{what}_ids' (token ids); its columns are "
            f"{', '.join(row)}"
        )
    if not ids:
        raise TokenshiftError(f"{where} has a {what} without tokens; remove the row or fill it")
    return ids
