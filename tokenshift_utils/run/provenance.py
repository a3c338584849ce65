"""Where a study's results come from: what its manifest says of them, and whether that is so.

A notebook's entry in ``results/<study>/manifest.json`` names what it was made of (the study file,
the models' files, the package's code, the records it read) and what it made, with checksums.
"""

import hashlib
from pathlib import Path

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import checksum, read_json, read_text
from tokenshift_utils.run.manifest import read_manifest
from tokenshift_utils.sections.explorer.page import file_of
from tokenshift_utils.store.code import ROOT, source_digest
from tokenshift_utils.store.executor import in_words
from tokenshift_utils.store.store import canonical_json
from tokenshift_utils.study.checkpoints import directory_fingerprint
from tokenshift_utils.study.study import Study, available_studies, load_study

# What all notebooks of one run have in common.
OF_ONE_RUN = ("study_content", "models", "code", "versions")
EXPLORER_OF = "02"  # the notebook that makes the explorer
SHORT = 12  # digits of a checksum that a reader sees


def code_digest(package: Path = ROOT) -> str:
    """A hash of what the package's code does; comments, docstrings and layout do not count."""
    digests = [
        f"{file.relative_to(package).as_posix()} {source_digest(read_text(file))}\n"
        for file in sorted(package.rglob("*.py"))
    ]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def study_digest(study: Study) -> str:
    """A hash of all keys of a study; comments and layout of its file do not count."""
    return hashlib.sha256(canonical_json(study.model_dump(mode="json")).encode()).hexdigest()


def fingerprints(study: Study) -> dict[str, str]:
    """sha256 over the files of each of the study's models, checkpoints and seeds that is here."""
    return {name: directory_fingerprint(study.model_path(name)) for name in study.every_model}


def made_from(study: Study) -> dict:
    """What a notebook's entry in the manifest says of where its results come from."""
    return {
        "study_content": study_digest(study),
        "models": fingerprints(study),
        "code": code_digest(),
    }


def made(study_name: str, number: str) -> dict[str, str]:
    """Path below the root and sha256 of everything that the notebook of this number has made."""
    files = [
        file
        for directory in _output_directories(study_name)
        for file in sorted(directory.glob(f"{number}_*"))
    ]
    if number == EXPLORER_OF:
        files.append(file_of(study_name))
    return {
        paths.display(file): checksum(file)
        for file in files
        if file.is_file() and not _unfinished(file)
    }


def _output_directories(study_name: str) -> tuple[Path, ...]:
    results = paths.results(study_name)
    return paths.figures(study_name), paths.tables(study_name), results / "notebooks"


def _unfinished(file: Path) -> bool:
    return file.name.endswith((".partial.ipynb", ".tmp"))


def read_by_overview(study_name: str) -> dict[str, str]:
    """Path and sha256 of what notebook 00 reads of its study: the others' tables and figures."""
    files = [
        *paths.tables(study_name).glob("[0-9][1-9]_*.csv"),
        *paths.figures(study_name).glob("[0-9][1-9]_*.png"),
    ]
    return {paths.display(file): checksum(file) for file in sorted(files)}


# Verifying ----------------------------------------------------------------------------------------


def verify(study: Study) -> list[str]:
    """What of a study's results is not what its manifest says, a sentence each; [] where all is.

    Raises
    ------
    TokenshiftError
        Where nothing has been run, or by a version that left no checksums.
    """
    runs = read_manifest(study.name)["notebooks"]
    if not runs:
        raise TokenshiftError(
            f"study {study.name} has no results to verify: run tokenshift reproduce --study "
            f"{study.name}"
        )
    for name, run in runs.items():
        if "outputs" not in run:
            raise TokenshiftError(
                f"the manifest of study {study.name} has no checksums of notebook {name}: run "
                f"tokenshift reproduce --study {study.name} --only {name[:2]}"
            )
    found = [sentence for run in runs.values() for sentence in _changed(run["outputs"])]
    claimed = {file for run in runs.values() for file in run["outputs"]}
    for directory in _output_directories(study.name):
        found += [
            f"{paths.display(file)} was made by no run that the manifest knows"
            for file in sorted(directory.glob("[0-9][0-9]_*"))
            if paths.display(file) not in claimed and not _unfinished(file)
        ]
    return found + _not_of_one_run(runs) + _other_inputs(study, runs)


def _changed(outputs: dict[str, str]) -> list[str]:
    found = []
    for name, expected in outputs.items():
        file = paths.resolve(name)
        if not file.is_file():
            found.append(f"{name} is missing")
        elif checksum(file) != expected:
            found.append(f"{name} is not what the run made: its checksum differs")
    return found


def _not_of_one_run(runs: dict[str, dict]) -> list[str]:
    """Notebooks that were run on another study, other models, code or versions than the first."""
    first = next(iter(runs))
    return [
        f"notebook {name} is not of one run with {first}: their {part.replace('_', ' ')} differ"
        for name, run in runs.items()
        for part in OF_ONE_RUN
        if run.get(part) != runs[first].get(part)
    ]


def _other_inputs(study: Study, runs: dict[str, dict]) -> list[str]:
    """Where results are of another study file or other models than are here, or claims of older."""
    found = []
    for name, run in runs.items():
        if run["study_content"] != study_digest(study):
            found.append(f"notebook {name} was run on another content of study {study.name}")
        here = fingerprints(study)
        found += [
            f"notebook {name} was run on other files of model {model}"
            for model in sorted(run["models"].keys() | here.keys())
            if run["models"].get(model) != here.get(model)
        ]
        found += [
            f"notebook {name} was run before {changed}" for changed in _changed(run["inputs"])
        ]
    return found


# Explaining ---------------------------------------------------------------------------------------


def explain(file: str | Path) -> str:
    """The chain from a study to one of its files, as text: study, code, models, records, notebook.

    Raises
    ------
    TokenshiftError
        Where the file is missing, or no figure, table, executed notebook or record of a study.
    """
    given, file = file, paths.expand(file).absolute()
    if not file.exists():
        file = paths.resolve(given)
    if not file.is_file():
        raise TokenshiftError(f"there is no file {given}: name a figure, table, notebook or record")
    with_results = [path.name for path in paths.results("any").parent.glob("*") if path.is_dir()]
    for study_name in {*available_studies(), *with_results}:
        if file.is_relative_to(paths.records(study_name)):
            return _explain_record(study_name, file)
        if file.parent in _output_directories(study_name) or file == file_of(study_name):
            return _explain_output(study_name, file)
    raise TokenshiftError(
        f"{paths.display(file)} is no result of a study: give a file below figures/<study>, or below "
        "tables, notebooks or records of results/<study>"
    )


def _explain_output(study_name: str, file: Path) -> str:
    runs = read_manifest(study_name)["notebooks"]
    name, said = paths.display(file), checksum(file)
    owner = next((n for n, run in runs.items() if name in run.get("outputs", {})), None)
    if owner is None:
        raise TokenshiftError(
            f"no run in the manifest of study {study_name} says that it made {name}: run "
            f"tokenshift reproduce --study {study_name} --only {file.name[:2]}"
        )
    run = runs[owner]
    same = "as its run left it" if run["outputs"][name] == said else "CHANGED since its run"
    lines = [
        f"{name}",
        f"  sha256 {said[:SHORT]}, {same}",
        f"made by notebook {owner}",
        f"  parameters: {_pairs(run['parameters']) or 'as in the study'}",
        f"  {_pairs(run['versions'])}; {run['platform']}",
    ]
    if run["inputs"]:
        lines += ["which read what the other notebooks made", *_listed(run["inputs"])]
    if run["records"]:
        lines.append("from records")
        files = {key: paths.records(study_name) / key / "key.json" for key in run["records"]}
        said = {key: f" ({describe_parts(f)})" for key, f in files.items() if f.is_file()}
        lines += [f"  {key}{said.get(key, '')}" for key in files]
    return "\n".join(lines + _origin(study_name, run))


def _origin(study_name: str, run: dict) -> list[str]:
    """The chain's beginning: models, code and study, each held against what is here."""
    here = "this checkout's" if run["code"] == code_digest() else "not this checkout's"
    lines = ["of models", *_listed(run["models"]), "by code", f"  {run['code'][:SHORT]}, {here}"]
    if study_name not in available_studies():
        state = "a study file from elsewhere"
    elif study_digest(load_study(study_name)) == run["study_content"]:
        state = "as it is now"
    else:
        state = "changed since"
    return [*lines, f"of study {study_name}", f"  {run['study_content'][:SHORT]}, {state}"]


def _explain_record(study_name: str, file: Path) -> str:
    key_file = file.parent / "key.json"
    if not key_file.is_file():
        raise TokenshiftError(
            f"{paths.display(file)} has no key.json beside it, which says what it is: run the study "
            "again, which computes it anew"
        )
    parts = read_json(key_file, "delete its directory and run the study again")
    key = f"{file.parent.parent.name}/{file.parent.name}"
    runs = read_manifest(study_name)["notebooks"]
    readers = [name for name, run in runs.items() if key in run.get("records", ())]
    lines = [
        paths.display(file),
        f"records {key} of study {study_name}, read by {', '.join(readers) or 'no run on record'}",
        "from",
    ]
    lines += [
        f"  {name}: {canonical_json(parts[name])}" for name in sorted(parts) if name != "models"
    ]
    return "\n".join([*lines, "of models", *_listed(parts.get("models", {}))])


def describe_parts(key_file: Path) -> str:
    """What the records beside a key.json are, in a few words."""
    try:
        words = in_words(read_json(key_file, ""))
    except (TokenshiftError, TypeError, AttributeError):
        words = ""
    return words or "key.json cannot be read"


def _pairs(content: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in content.items())


def _listed(checksums: dict[str, str]) -> list[str]:
    return [f"  {name} {value[:SHORT]}" for name, value in checksums.items()]
