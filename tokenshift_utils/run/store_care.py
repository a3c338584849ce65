"""Looking after the store: what it holds, whether that is intact, and what nobody asks for."""

import shutil
import time
from pathlib import Path

from tokenshift_utils import paths
from tokenshift_utils.run.manifest import read_manifest
from tokenshift_utils.run.provenance import describe_parts
from tokenshift_utils.store.store import Store
from tokenshift_utils.study.study import available_studies

GRACE = 3600.0  # seconds; what is younger may belong to a run that is going on


def _studies() -> list[str]:
    """Names of the studies that have records."""
    parent = paths.results("any").parent
    return sorted(path.name for path in parent.glob("*") if (path / "records").is_dir())


def _artefacts(study_name: str) -> list[Path]:
    """Directories of one key each."""
    return sorted(path for path in paths.records(study_name).glob("*/*") if path.is_dir())


def list_records() -> str:
    """Every key of every study's store: kind and key, what it is, shards, MB, when last read."""
    lines = []
    for study_name in _studies():
        lines.append(study_name)
        for directory in _artefacts(study_name):
            files = [file for file in directory.iterdir() if file.is_file()]
            shards = sum(file.suffix == ".parquet" for file in files)
            size = sum(file.stat().st_size for file in files) / 1e6
            key = directory / "key.json"
            used = (key if key.exists() else directory).stat().st_mtime
            last = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
            plural = "" if shards == 1 else "s"
            lines.append(
                f"  {directory.parent.name}/{directory.name}  {shards} shard{plural}, "
                f"{size:.2f} MB, last read {last}: {describe_parts(key)}"
            )
    return "\n".join(lines) or "there are no records yet: tokenshift reproduce makes them"


def broken_shards() -> tuple[int, list[str]]:
    """(number of shards, paths of those that do not match their checksums)."""
    broken, checked = [], 0
    for study_name in _studies():
        store = Store(paths.records(study_name))
        for file in sorted(store.root.glob("*/*/*.parquet")):
            checked += 1
            kind, key = file.parts[-3:-1]
            if not file.stem.isdigit() or not store.intact(kind, key, int(file.stem)):
                broken.append(paths.display(file))
    return checked, broken


def prune(remove: bool) -> str:
    """Name, and where asked to remove, what no study of the checkout asks for any more.

    That is: keys that no notebook's last run read, all records of studies that have no file here,
    and drafts of writes that were cut short. A study whose notebooks were not all run by a version
    that notes what it reads is left alone, as is what was made or read within the last hour.
    """
    known, lines, freed = available_studies(), [], 0.0
    for study_name in _studies():
        wanted = _wanted(study_name) if study_name in known else set()
        if wanted is None:
            lines.append(f"{study_name}: left alone, its manifest does not say what was read")
            continue
        unused = [d for d in _artefacts(study_name) if f"{d.parent.name}/{d.name}" not in wanted]
        drafts = list(paths.records(study_name).glob("*/*/*.tmp"))
        for path in [p for p in (*unused, *drafts) if time.time() - _age(p) > GRACE]:
            size = _size(path)
            freed += size
            lines.append(f"{paths.display(path)} ({size / 1e6:.2f} MB)")
            if remove:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    done = "removed" if remove else "to be removed by --yes"
    return "\n".join([*lines, f"{freed / 1e6:.2f} MB {done}"])


def _wanted(study_name: str) -> set[str] | None:
    """Keys that the last runs of a study's notebooks read; None where the manifest cannot say."""
    runs = read_manifest(study_name)["notebooks"]
    if not runs or any("records" not in run for run in runs.values()):
        return None
    return {key for run in runs.values() for key in run["records"]}


def _age(path: Path) -> float:
    """When something below was last written, or its key last read."""
    return max(file.stat().st_mtime for file in (path, *path.glob("*")))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
