"""Models and data sets of the hub: found in the local cache, fetched, and pinned to commits.

A revision in a study is a commit, a branch or tag, or ``unpinned``: nobody has named one yet, so it
is the newest at the time of the download. Analyses look in the local cache only; what downloads is
``fetch_sources``, before anything runs, and ``pin`` writes the commits of the day into the study file.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.checkpoints import CODE, FINGERPRINTED
from tokenshift_utils.study.schema import UNPINNED

if TYPE_CHECKING:
    from tokenshift_utils.study.schema import Location


def _wanted(spec: Location) -> dict:
    """Arguments of ``snapshot_download``: of a model only safetensors, settings and tokenizer."""
    patterns = [*FINGERPRINTED, *([CODE] if getattr(spec, "trust_remote_code", False) else [])]
    return {
        "repo_id": spec.hub,
        "repo_type": spec.repo_type,
        "revision": None if spec.revision == UNPINNED else spec.revision,
        "allow_patterns": patterns if spec.repo_type == "model" else None,
    }


@lru_cache(maxsize=256)
def _snapshot(spec: Location, cache: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(**_wanted(spec), cache_dir=cache, local_files_only=True))


def place(spec: Location, what: str) -> Path:
    """Where a source is on this machine: its local path, or its directory in the cache."""
    return cached(spec, what) if spec.path is None else paths.resolve(spec.path)


def cached(spec: Location, what: str) -> Path:
    """The directory of a source in the local cache; nothing is downloaded.

    Raises
    ------
    TokenshiftError
        Where it isn't there, or not whole: what to download, and where it belongs.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(spec, constants.HF_HUB_CACHE)
    except LocalEntryNotFoundError:
        folder = f"{spec.repo_type}s--{spec.hub.replace('/', '--')}"
        raise TokenshiftError(
            f"{what} is not on this machine, or not whole: run '{_command(spec)}' where there is a "
            f"network and put the folder {folder} that it makes into {constants.HF_HUB_CACHE} here"
        ) from None


def _command(spec: Location) -> str:
    kind = "" if spec.repo_type == "model" else f" --repo-type {spec.repo_type}"
    revision = "" if spec.revision == UNPINNED else f" --revision {spec.revision}"
    patterns = "".join(f' --include "{name}"' for name in _wanted(spec)["allow_patterns"] or ())
    return f"hf download {spec.hub}{kind}{revision}{patterns}"
