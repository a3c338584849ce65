"""A study's manifest: one entry for each notebook, of its last complete run."""

import json

from filelock import FileLock

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import read_json, write_text


def read_manifest(study_name: str) -> dict:
    """A study's manifest: one entry for each notebook, of its last complete run.

    Raises
    ------
    TokenshiftError
        Where the file is there and is no manifest.
    """
    file = paths.results(study_name) / "manifest.json"
    if not file.exists():
        return {"study": study_name, "notebooks": {}}
    remedy = "delete it, and run the study's notebooks again, which write it"
    manifest = read_json(file, remedy)
    try:
        runs = manifest["notebooks"]
        sound = manifest["study"] == study_name and all(
            isinstance(runs[name][kind], list) for name in runs for kind in ("figures", "tables")
        )
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise TokenshiftError(
            f"{paths.display(file)} is no manifest of study {study_name}: {remedy}"
        )
    return manifest


def note_run(study_name: str, notebook: str, entry: dict) -> None:
    """Put a notebook's entry into the study's manifest, beside what other commands put there meanwhile."""
    file = paths.results(study_name) / "manifest.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        manifest = read_manifest(study_name)
        notebooks = manifest["notebooks"] | {notebook: entry}
        manifest["notebooks"] = dict(sorted(notebooks.items()))
        write_text(file, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
