"""Rows of people's data files: JSON lines, a JSON array, Parquet, or a data set of the hub.

What a file plainly means is read: a byte order mark, any line ending, U+2028 and the like inside
strings. Anything else is refused with the file, the line and what to do. What a row's cells mean is
``cells``' matter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenshift_utils.study.schema import DataSet

ROWS_AT_ONCE = 10_000  # rows that are Python objects at once: DAPO-Math-17k has 1.8 million

# How files begin that are not UTF-8 text. The longer mark of UTF-32 comes before UTF-16's.
_FOREIGN = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"version https://git-lfs": "git-lfs's pointer to a file",
}
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Unreadable:
    """Stands for a cell that its file's own reader can't make a value of."""

    reason: str


def read_rows(
    place: Path, spec: DataSet | None = None, columns: Collection[str] | None = None
) -> Iterator[tuple[str, dict]]:
    """Rows one by one, each with the name that it has in a sentence, as ``row 7``.

    Parameters
    ----------
    place : a file of JSON lines or a JSON array, a Parquet file (known by its first bytes), or the
        directory of a data set of the hub, of which no script is run
    spec : of a data set of the hub, which config and split
    columns : read only these of a Parquet file or data set; refuse one that lacks them

    Raises
    ------
    TokenshiftError
        Where the file is missing, empty or can't be read, while the rows are gone through.
    """
    if spec is not None and spec.hub is not None:
        found = _of_data_set(place, spec, columns)
        where = f"the data set {spec.hub}"
    else:
        found, where = _of_file(place, columns), paths.display(place)
    first = next(found, None)
    if first is None:
        raise TokenshiftError(f"{where} is empty; give at least one row")
    yield from chain([first], found)


def _of_file(file: Path, columns: Collection[str] | None) -> Iterator[tuple[str, dict]]:
    where = paths.display(file)
    try:
        if file.is_dir():
            raise TokenshiftError(f"{where} is a directory; give a file in it")
        if not file.exists():
            raise TokenshiftError(f"there is no file {where}; correct the path")
        with file.open("rb") as stream:
            start = stream.peek(64)
            for mark, kind in _FOREIGN.items():
                if start.startswith(mark):
                    raise TokenshiftError(
                        f"{where} is {kind}, not plain UTF-8 text; save, unpack or fetch it as a "
                        "UTF-8 file"
                    )
            if start.startswith(_PARQUET) or file.suffix == ".parquet":
                yield from _of_parquet(file, where, columns)
                return
            if start.startswith(_BOM):
                stream.read(len(_BOM))
            if stream.peek(64).lstrip()[:1] == b"[":
                yield from _of_array(stream.read(), where)
            else:
                yield from _of_lines(stream, where)
    except OSError as error:
        raise TokenshiftError(
            f"{where} can't be read ({error.strerror or error}); see that it is there and yours to "
            "read"
        ) from None


def _of_lines(stream: Any, where: str) -> Iterator[tuple[str, dict]]:
    # bytes split at \n, \r\n and \r only, none of which can stand in a JSON string; text would
    # also split at U+2028, U+2029 and U+0085, which can.
    lines = (line for part in stream for line in part.splitlines(keepends=True))
    row = 0
    for number, line in enumerate(lines, start=1):
        text = _decoded(line, f"{where}, line {number}")
        if not text.strip(" \t\r\n"):
            continue
        row += 1
        complete = line.endswith((b"\n", b"\r"))
        content = _parsed(
            text, where, number, "" if complete else "; its last line may be cut short"
        )
        yield _row(content, where, row, f"line {number}")


def _of_array(data: bytes, where: str) -> Iterator[tuple[str, dict]]:
    for row, item in enumerate(_parsed(_decoded(data, where), where, None, ""), start=1):
        yield _row(item, where, row, f"row {row}")


def _row(content: Any, where: str, row: int, at: str) -> tuple[str, dict]:
    if not isinstance(content, dict):
        raise TokenshiftError(
            f"{where}, {at} is not a JSON object but {_kind(content)}; give one object a line"
        )
    name = f"row {row}"
    return (name if at in (name, f"line {row}") else f"{name} ({at})"), content


def _kind(content: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(content), "a number")


def _decoded(data: bytes, at: str) -> str:
    if b"\0" in data:
        raise TokenshiftError(
            f"{at} holds NUL bytes, as UTF-16 or a damaged file does; save the file as UTF-8"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenshiftError(
            f"{at} is not UTF-8 (byte 0x{data[error.start]:02x} after {error.start} others); save "
            "the file as UTF-8"
        ) from None


def _parsed(text: str, where: str, line: int | None, hint: str) -> Any:
    """A line's JSON, or (``line`` None) a whole file's."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal)
    except json.JSONDecodeError as error:
        at = line or error.lineno
        raise TokenshiftError(
            f"{where}, line {at} is not JSON ({error.msg} at character {error.colno}){hint}; "
            "give one JSON object a line"
        ) from None
    except RecursionError:
        reason = "is nested too deep"
    except _RepeatedKey as error:
        reason = f"gives '{error}' twice"
    at = f"{where}, line {line}" if line else where
    raise TokenshiftError(f"{at} {reason}; correct it or leave the row out")


class _RepeatedKey(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        raise _RepeatedKey(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return content


def _integer(text: str) -> int | str:
    """An integer; one of more digits than Python converts stays the text that it is."""
    limit = sys.get_int_max_str_digits()
    return int(text) if not limit or len(text) <= limit else text


def _decimal(text: str) -> Decimal | float:
    """All digits that were given: a float would keep 17."""
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all
        return float(text)


def _of_parquet(
    file: Path, where: str, columns: Collection[str] | None
) -> Iterator[tuple[str, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as data:
            names = _chosen(data.schema_arrow.names, columns, where)
            yield from _of_batches(data.iter_batches(ROWS_AT_ONCE, columns=names))
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise TokenshiftError(
            f"{where} can't be read as Parquet ({first_line(error)}); fetch or write it again"
        ) from None


def _of_data_set(
    directory: Path, spec: DataSet, columns: Collection[str] | None
) -> Iterator[tuple[str, dict]]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        data = load_dataset(str(directory), name=spec.config, split=spec.split)
    except Exception as error:
        raise TokenshiftError(
            f"the data set {spec.hub} in {directory} can't be read ({first_line(error)}); see that "
            "'config' and 'split' are its own, or download it again"
        ) from error
    names = _chosen(data.column_names, columns, f"the data set {spec.hub}")
    data = data if names is None else data.select_columns(names)
    tables = data.with_format("arrow").iter(ROWS_AT_ONCE)
    yield from _of_batches(batch for table in tables for batch in table.to_batches())


def _chosen(there: list[str], columns: Collection[str] | None, where: str) -> list[str] | None:
    repeated = next((name for name in there if there.count(name) > 1), None)
    if repeated is not None:
        raise TokenshiftError(f"{where} has the column '{repeated}' twice; rename one of them")
    for name in columns or ():
        if name not in there:
            raise TokenshiftError(
                f"{where} has no column '{name}'; its columns are {', '.join(there)}"
            )
    return None if columns is None else sorted(columns)


def _of_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, dict]]:
    number = 0
    for batch in batches:
        names, cells = batch.schema.names, [_values(column) for column in batch.columns]
        for row in zip(*cells, strict=True):
            number += 1
            yield f"row {number}", dict(zip(names, row))


def _values(column: pa.Array) -> list:
    """A column as Python objects; what can't become one is ``Unreadable``."""
    import pyarrow as pa

    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        # The shortest decimal of its own precision: 0.1 is 0.1, not 0.10000000149011612.
        floats = column.to_numpy(zero_copy_only=False)
        return [v if v is None else Decimal(str(f)) for v, f in zip(column.to_pylist(), floats)]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, ArithmeticError, pa.ArrowException):
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    import pyarrow as pa

    try:
        return cell.as_py()
    except (ValueError, OverflowError, ArithmeticError, pa.ArrowException) as error:
        return Unreadable(first_line(error))
