"""A study's manifest: one entry for each notebook, of its last complete run."""

import json

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


def write_manifest(manifest: dict) -> None:
    """Put a manifest in the place of its study's."""
    manifest["notebooks"] = dict(sorted(manifest["notebooks"].items()))
    file = paths.results(manifest["study"]) / "manifest.json"
    write_text(file, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
