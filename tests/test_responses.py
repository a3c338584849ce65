"""Responses of people's own files: what a row may hold, and what is said of the rest."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WORDS

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.records.responses import read_responses
from tokenshift_utils.study.tokenizers import load_tokenizer

TEXT = {"prompt": "question: what is 1+2?\n", "response": " so \\boxed{3}"}
IDS = {"prompt_ids": [4, 2], "response_ids": [8, 1]}


@pytest.fixture
def read(tiny_pair, tmp_path):
    tokenizer = load_tokenizer(tiny_pair.base)

    def read(*rows):
        file = tmp_path / "r.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_responses(file, tokenizer, len(WORDS))

    read.tokenizer = tokenizer
    return read


def test_samples_of_a_problem_are_numbered_where_they_have_none(read):
    frame = read(TEXT | {"problem": "a"}, TEXT | {"problem": "b", "sample": None},
                 TEXT | {"problem": "a"}, TEXT)  # fmt: skip
    assert list(zip(frame["problem"], frame["sample"])) == [("a", 0), ("b", 0), ("a", 1), ("3", 0)]
    assert set(frame["benchmark"]) == {"r"}


def test_a_row_without_a_problem_is_never_a_sample_of_a_named_one(read):
    assert list(read(TEXT | {"problem": "a"}, TEXT)["problem"]) == ["a", "1"]
    for rows in ([TEXT | {"problem": "1"}, TEXT], [TEXT, TEXT | {"problem": 0}]):
        with pytest.raises(TokenshiftError, match="row 2.*: a row without 'problem' is named"):
            read(*rows)


def test_numbers_as_pandas_writes_them(read):
    row = {"prompt_ids": [4.0, 2.0], "response_ids": [8, 1.0], "sample": 1.0, "problem": 7.0}
    frame = read(row)
    assert frame.to_dict("records") == [
        IDS | {"benchmark": "r", "problem": "7", "sample": 1},
    ]


def test_parquet_and_bytes(read, tmp_path):
    expected = read(TEXT, TEXT)
    table = {name: pa.array([text.encode()] * 2) for name, text in TEXT.items()}
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    found = read_responses(tmp_path / "r.parquet", read.tokenizer, len(WORDS))
    assert found.equals(expected)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (TEXT | {"sample": "x"}, "'sample' is no whole number from 0"),
        (TEXT | {"sample": -1}, "'sample' is no whole number from 0"),
        (TEXT | {"sample": 2**40}, "'sample' is no whole number from 0"),
        (TEXT | {"sample": True}, "'sample' is no whole number from 0"),
        (TEXT | {"problem": ["a", "b"]}, "'problem' is a list of 2"),
        (TEXT | {"benchmark": True}, "'benchmark' is true or false"),
        (TEXT | {"response": "\ud83d"}, "'response' holds half a character"),
        (TEXT | {"response": 3}, "'response' is a number; give text"),
        (TEXT | {"response": ["x"]}, "'response' is a list; give text"),
        (TEXT | {"response": None}, "'response' is empty; fill it"),
        (TEXT | {"response": ""}, "has a response without tokens"),
        (TEXT | {"prompt": [{"role": "user", "content": "x"}]}, "apply the models' chat template"),
        ({"prompt": "x", "completion": "y"}, "its columns are prompt, completion"),
        (IDS | {"prompt_ids": 5}, "'prompt_ids' is a number; give a list"),
        (IDS | {"prompt_ids": "5"}, "'prompt_ids' is text; give a list"),
        (IDS | {"response_ids": [3, -100]}, "outside 0 to 35; give ids .* without padding"),
        (IDS | {"response_ids": [3, 36]}, "outside 0 to 35"),
        (IDS | {"response_ids": [3.5]}, "outside 0 to 35"),
        (IDS | {"response_ids": [True]}, "outside 0 to 35"),
        (IDS | {"response_ids": ["3"]}, "outside 0 to 35"),
        (IDS | {"response_ids": [[3]]}, "outside 0 to 35"),
        (IDS | {"response_ids": []}, "has a response without tokens"),
        (TEXT | {"problem": "a", "sample": 0}, "repeats sample 0 of problem 'a' of row 1"),
    ],
)
def test_a_row_is_refused_by_its_number_and_column(row, said, read):
    with pytest.raises(TokenshiftError, match=r"r.jsonl, row 2\b.*" + said):
        read(TEXT | {"problem": "a", "sample": 0}, row)
