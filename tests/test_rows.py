"""Rows of people's files: read where plainly meant, else one sentence with file, line and remedy."""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.tasks.cells import text_of
from tokenshift_utils.tasks.rows import read_rows

ROW = {"problem": "Café: what is 1+2?", "answer": "3"}
LINE = json.dumps(ROW, ensure_ascii=False)


def rows(file, columns=None):
    return [row for _, row in read_rows(file, columns=columns)]


def refusal(file, columns=None) -> str:
    with pytest.raises(TokenshiftError) as error:
        rows(file, columns)
    sentence = str(error.value)
    assert file.name in sentence and "\n" not in sentence and 20 < len(sentence) < 400
    return sentence


@pytest.mark.parametrize(
    "data",
    [
        f"{LINE}\n{LINE}\n",
        f"{LINE}\n{LINE}",
        f"{LINE}\r\n{LINE}\r\n",
        f"{LINE}\r{LINE}\r",
        f"\n  \n{LINE}\n\n\t\n{LINE}\n\n",
        f"\ufeff{LINE}\n{LINE}\n",
        f"[{LINE}, {LINE}]",
        f"\ufeff\n[\n  {LINE},\n  {LINE}\n]\n",
    ],
    ids=["lines", "no end", "CRLF", "CR", "blank lines", "BOM", "array", "array over lines"],
)
def test_what_is_plainly_meant_is_read(data, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(data.encode())
    assert rows(file) == [ROW, ROW]


# Whatever JSON writers leave unescaped, and more; surrogates have no UTF-8.
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\x1e"),
    max_size=20,
)


@given(st.lists(st.dictionaries(TEXT, TEXT, max_size=3), min_size=1), st.sampled_from("\n\r"))
def test_any_text_comes_back_as_it_was(tmp_path_factory, content, end):
    file = tmp_path_factory.mktemp("rows") / "x.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in content]
    file.write_bytes(end.join(lines).encode())
    assert rows(file) == content


@given(st.binary(max_size=80))
def test_no_bytes_give_another_exception(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("bytes")
    for name, content in (
        ("x.jsonl", data),
        ("y.jsonl", LINE.encode() + data),
        ("z.parquet", data),
    ):
        (directory / name).write_bytes(content)
        try:
            assert all(isinstance(row, dict) for row in rows(directory / name))
        except TokenshiftError as error:
            assert name in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "x.jsonl is empty"),
        (b" \n\n", "x.jsonl is empty"),
        (b"[]", "x.jsonl is empty"),
        (LINE.encode("utf-16"), "is UTF-16, not plain UTF-8"),
        (LINE.encode("utf-16-be"), "NUL bytes"),
        (LINE.encode("utf-32"), "is UTF-32, not plain UTF-8"),
        (LINE.encode("latin-1"), "line 1 is not UTF-8 (byte 0xe9 after 16 others)"),
        (b'{"a": 1}\n{"a": "\xed\xa0\xbd"}', "line 2 is not UTF-8"),
        (b'{"a": 1}\n{"a": "\0"}', "line 2 holds NUL bytes"),
        (gzip.compress(LINE.encode(), mtime=0), "is gzip, not plain UTF-8 text; save, unpack or fetch"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is git-lfs's pointer to a file"),
        (b"PK\x03\x04....", "is zip"),
        (b"PAR1 and no more", "can't be read as Parquet"),
        (b"problem,answer\n1+1,2\n", "line 1 is not JSON"),
        (b'{"a": 1}\n{"a": [1, 2', "line 2 is not JSON (Expecting ',' delimiter at character 12); its"),
        (b'{"a": 1}\n{"a": [1, 2\n', "line 2 is not JSON"),
        (b'{"a": 1} {"a": 2}\n', "line 1 is not JSON (Extra data"),
        (b'[{"a": 1},\n{"a": ]', "line 2 is not JSON"),
        (b'{"a": 1}\n3\n', "line 2 is not a JSON object but a number"),
        (b'{"a": 1}\n\nnull\n', "line 3 is not a JSON object but null"),
        (b'[{"a": 1}, "x"]', "row 2 is not a JSON object but a string"),
        (b"[1]\n", "row 1 is not a JSON object but a number"),
        (b'{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n', "line 2 gives 'c' twice"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1 is nested too deep"),
        (b"[" * 100_000, "is nested too deep"),
    ],
)  # fmt: skip
def test_what_is_not_meant_is_one_sentence(data, said, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(data)
    assert said in refusal(file)


def test_files_that_cannot_be_opened(tmp_path):
    assert "there is no file" in refusal(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a directory" in refusal(tmp_path / "folder.jsonl")
    (tmp_path / "circle.jsonl").symlink_to(tmp_path / "circle.jsonl")
    refusal(tmp_path / "circle.jsonl")


def test_rows_are_named_as_the_file_shows_them(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert [name for name, _ in read_rows(file)] == ["row 1", "row 2 (line 3)"]


def test_numbers_keep_all_their_digits(tmp_path):
    file = tmp_path / "x.jsonl"
    huge = "9" * 5000
    given_ = [huge, "-" + huge, "3.14159265358979323846", "33.0", "0.1", "1e3", "-0.0"]
    file.write_text("".join(f'{{"a": {n}}}\n' for n in given_), encoding="utf-8")
    found = [text_of(row["a"], "x", "a") for row in rows(file)]
    assert found == [huge, "-" + huge, "3.14159265358979323846", "33", "0.1", "1000", "0"]
    file.write_text(
        '{"a": 1e999999999999999999999}\n{"a": 1e99999}\n{"a": NaN}\n', encoding="utf-8"
    )
    for row in rows(file):
        with pytest.raises(TokenshiftError, match="x: 'a' is "):
            text_of(row["a"], "x", "a")


# Parquet ------------------------------------------------------------------------------------------

COLUMNS = {
    "plain": pa.array(["3", "4"]),
    "large": pa.array(["3", "4"], pa.large_string()),
    "view": pa.array(["3", "4"], pa.string_view()),
    "dictionary": pa.array(["3", "4"]).dictionary_encode(),
    "binary": pa.array([b"3", b"4"]),
    "large binary": pa.array([b"3", b"4"], pa.large_binary()),
    "int8": pa.array([3, 4], pa.int8()),
    "uint64": pa.array([3, 4], pa.uint64()),
    "double": pa.array([3.0, 4.0]),
    "float32": pa.array([3.0, 4.0], pa.float32()),
    "decimal": pa.array([3, 4], pa.decimal128(20, 2)),
    "list": pa.array([["3"], ["4"]]),
    "list of numbers": pa.array([[3.0], [4.0]]),
    "ground truth": pa.array([{"ground_truth": g, "style": "rule"} for g in "34"]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_of_text_and_number_is_the_same_text(name, tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": COLUMNS[name]}), file)
    assert [text_of(row["a"], "x", "a") for row in rows(file)] == ["3", "4"]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_floats_are_the_decimals_of_their_own_precision(kind, tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": pa.array([0.1, None, 1.5], kind)}), file)
    assert [
        row["a"] if row["a"] is None else text_of(row["a"], "x", "a") for row in rows(file)
    ] == [
        "0.1",
        None,
        "1.5",
    ]


def test_a_parquet_file_is_known_by_its_content(tmp_path):
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "x.jsonl")
    assert rows(tmp_path / "x.jsonl") == [ROW]
    (tmp_path / "x.parquet").write_text(LINE, encoding="utf-8")
    assert "can't be read as Parquet" in refusal(tmp_path / "x.parquet")


def test_a_damaged_parquet_file(tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [str(i) for i in range(2000)]}), file)
    whole = file.read_bytes()
    for data in (whole[:-100], whole[:50], whole[:4] + b"\xff" * 400 + whole[404:]):
        file.write_bytes(data)
        assert "can't be read as Parquet" in refusal(file)


def test_columns_of_parquet(tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1], "b": [2]}), file)
    assert rows(file, ["b"]) == [{"b": 2}]
    assert "has no column 'c'; its columns are a, b" in refusal(file, ["a", "c"])
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), file)
    assert "the column 'a' twice" in refusal(file)
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), file)
    assert "is empty" in refusal(file)


def test_a_cell_that_pyarrow_cannot_give_matters_only_where_it_is_asked_for(tmp_path):
    file = tmp_path / "x.parquet"
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"3\xe9")]
    )
    far = pa.array([0, 2**62], pa.timestamp("ms"))
    pq.write_table(pa.table({"a": broken, "when": far, "b": ["x", "y"]}), file)
    found = rows(file)
    assert [row["b"] for row in found] == ["x", "y"] and found[0]["a"] == "3"
    for column in ("a", "when"):
        with pytest.raises(TokenshiftError, match=re.escape(f"row 2: '{column}' can't be read")):
            text_of(found[1][column], "row 2", column)
