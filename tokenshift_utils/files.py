"""Whole files: text is UTF-8 whatever the locale, and a file is replaced as a whole or not at all."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError, damaged


def read_text(file: Path, remedy: str = "save it as UTF-8") -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises
    ------
    TokenshiftError
        Where it is not UTF-8: names the file and says the remedy.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeError as error:
        raise unusable(file, error, remedy) from None


def read_json(file: Path, remedy: str) -> Any:
    """The content of a JSON file; a TokenshiftError that names it and says the remedy if it is none."""
    try:
        return json.loads(read_text(file, remedy))
    except (json.JSONDecodeError, RecursionError) as error:
        raise unusable(file, error, remedy) from None


def texts_in(content: Any) -> Iterator[str]:
    """All texts in what JSON or YAML holds: nested lists and dicts, whose keys count too."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from texts_in([*content.keys(), *content.values()])
    elif isinstance(content, (list, tuple)):
        for part in content:
            yield from texts_in(part)


def read_csv(file: Path, remedy: str, **options):
    """A table that this package wrote; a TokenshiftError that names the file where it is damaged."""
    import pandas as pd

    try:
        return pd.read_csv(file, encoding="utf-8", **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError, ValueError) as error:
        raise unusable(file, error, remedy) from None


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A draft to fill, that then takes the place of a directory: whole, or not at all."""
    draft = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    shutil.rmtree(directory, ignore_errors=True)
    draft.rename(directory)


SUMS = "SHA256SUMS"  # as sha256sum writes it, and checks it with -c


def write_sums(directory: Path) -> None:
    """Write the checksums of a directory's files beside them, once all are there."""
    files = sorted(file for file in directory.iterdir() if file.is_file() and file.name != SUMS)
    write_text(directory / SUMS, "".join(f"{checksum(file)}  {file.name}\n" for file in files))


def check_sums(directory: Path, remedy: str) -> None:
    """Refuse a directory with a file that is not as `write_sums` found it; one without sums passes."""
    sums = directory / SUMS
    if not sums.is_file():
        return
    for line in read_text(sums, remedy).splitlines():
        expected, _, name = line.partition("  ")
        file = directory / name
        if not name or "/" in name:
            raise unusable(sums, ValueError("it lists no checksums"), remedy)
        if not file.is_file() or checksum(file) != expected:
            raise unusable(file, ValueError(f"it is not what {SUMS} says"), remedy)


def checksum(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_checksum(file: Path) -> str:
    """`checksum`, read off the file only where its size or time has changed since last asked for."""
    status = file.stat()
    return _checksum_as_of(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _checksum_as_of(file: Path, size: int, modified_ns: int) -> str:
    return checksum(file)


def unusable(file: Path, error: BaseException, remedy: str) -> TokenshiftError:
    """The sentence for a file whose content cannot be used."""
    return TokenshiftError(f"{paths.display(file)} is damaged ({damaged(error)}): {remedy}")


def write_text(file: Path, text: str) -> None:
    """Put a text in UTF-8, line ends as they are, in the place of a file; see `write_bytes`."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, data: bytes) -> None:
    """Put data in the place of a file: a reader, or a crash, sees all of it or what was before.

    Of a symbolic link it is the file that it leads to. Devices and pipes, which a file would take the
    place of, are refused.
    """
    file = file.resolve() if file.is_symlink() else file
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise TokenshiftError(
            f"{paths.display(file)} is a device or a pipe, which no file takes the place of: give a "
            "file to write"
        )
    # not the process id: other machines have the same ones
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        error.filename, error.filename2 = str(file), None  # writes don't say it, or say the draft
        raise
    finally:
        temporary.unlink(missing_ok=True)
