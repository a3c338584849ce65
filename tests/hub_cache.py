"""Hand-made stand-ins for the hub's local cache: directories as `hf download` leaves them."""

import csv
import hashlib
import json
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # nobody's


def add_repository(
    cache: Path, repository: str, files: Path, repo_type: str = "model", revision: str = "main"
) -> Path:
    """Put a directory's files into the cache as a repository's snapshot; returns the snapshot.

    As in a real one, contents are blobs, named by their sha256, and the snapshot has links to them.
    """
    folder = cache / f"{repo_type}s--{repository.replace('/', '--')}"
    commit = revision if len(revision) == 40 else hashlib.sha1(revision.encode()).hexdigest()
    snapshot = folder / "snapshots" / commit
    for file in sorted(p for p in files.rglob("*") if p.is_file()):
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if revision != commit:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
    return snapshot


def write_data_set(directory: Path, rows: list[dict], split: str, config: str | None) -> None:
    """A data set's files: one of JSON lines, or a .csv and a README that names the config."""
    directory.mkdir(parents=True)
    if config is None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{split}.jsonl").write_text(lines)
        return
    with (directory / f"{config}.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    configs = f"configs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}.csv\n"
    (directory / "README.md").write_text(f"---\n{configs}---\n")
