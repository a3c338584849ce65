"""Where computed records live: files keyed by a hash of all that determined them.

A shard is ``<records>/<kind>/<key>/<shard>.parquet`` beside a sha256 of its bytes. It is written to
a temporary file and renamed, so that what is there is whole; one that does not match its checksum
counts as missing. ``key.json`` beside the shards says in words what the key stands for.
"""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from tokenshift_utils.files import known_checksum, unusable, write_bytes, write_text
from tokenshift_utils.store.columns import RECORD_KINDS, schema

KEY_LENGTH = 16


def canonical_json(parts: dict) -> str:
    """JSON with sorted keys and no spaces: equal content gives equal text."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def artefact_key(parts: dict) -> str:
    """The key of an artefact: 16 hex digits of a sha256 over what determined it."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:KEY_LENGTH]


class Store:
    """The shards under one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def file(self, kind: str, key: str, shard: int) -> Path:
        """Where a shard is, or would be."""
        return self.root / kind / key / f"{shard:04d}.parquet"

    def intact(self, kind: str, key: str, shard: int) -> bool:
        """Whether a shard is there and its bytes match its checksum."""
        file = self.file(kind, key, shard)
        try:
            expected = file.with_suffix(".sha256").read_bytes().split()[:1]
            return [known_checksum(file).encode()] == expected
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno == errno.ESTALE:  # replaced by another machine while read over NFS
                return False
            raise

    def checksum(self, kind: str, key: str, shard: int) -> str:
        """The checksum of a shard that is there: it changes when the shard is written again."""
        return self.file(kind, key, shard).with_suffix(".sha256").read_bytes().hex()

    def read(self, kind: str, key: str, shard: int, columns: Iterable[str] | None = None):
        """A shard as an Arrow table, all columns or some.

        Raises
        ------
        TokenshiftError
            Where the file, whatever its checksum says, holds no such records.
        """
        file = self.file(kind, key, shard)
        names = None if columns is None else list(columns)
        remedy = "delete it and run the same command again, which computes it anew"
        try:
            with pq.ParquetFile(file) as shard_file:
                self._check_columns(kind, shard_file.schema_arrow, names)
                table = shard_file.read(columns=names)
            return table if names is None else table.select(names)
        except (pa.ArrowException, ValueError) as error:
            raise unusable(file, error, remedy) from None

    @staticmethod
    def _check_columns(kind: str, found: pa.Schema, names: list[str] | None) -> None:
        wanted = schema(kind) if kind in RECORD_KINDS else found
        if kind in RECORD_KINDS and not found.equals(wanted):
            odd = sorted(set(found.names) ^ set(wanted.names)) or ["their types"]
            raise ValueError(f"its columns are not those of {kind}: {', '.join(odd)}")
        if lacking := [name for name in names or () if name not in found.names]:
            raise ValueError(f"it lacks the column {lacking[0]}")

    def write(self, kind: str, key: str, shard: int, content: pa.Table, parts: dict) -> None:
        """Write a shard so that a reader sees all of it or none."""
        file = self.file(kind, key, shard)
        said, sums = file.parent / "key.json", file.with_suffix(".sha256")
        _make_room(said, sums, file)
        write_text(said, json.dumps(parts, indent=1, sort_keys=True))
        sink = pa.BufferOutputStream()
        pq.write_table(content, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(data).hexdigest()
        # The checksum first: a crash between the two leaves a shard that counts as missing.
        write_text(sums, f"{digest}  {file.name}\n")
        write_bytes(file, data)

    @contextmanager
    def lock(self, kind: str, key: str, shard: int) -> Iterator[None]:
        """Hold a shard while it is computed, so that two processes do not both do it.

        The operating system's lock, which ends with whoever holds it. Where the file system has
        none it goes without: both then write the same, one after the other.
        """
        file = self.file(kind, key, shard).with_suffix(".lock")
        _make_room(file)
        lock = FileLock(file, fallback_to_soft=False)
        try:
            lock.acquire()
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
        try:
            yield
        finally:
            lock.release()


def _make_room(*files: Path) -> None:
    """Make the directory that files of the store go to; empty directories in their places go."""
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.is_dir():
            file.rmdir()
