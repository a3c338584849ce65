"""Run the notebooks of a study through Papermill, and say what they made."""

import csv
import json
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run.notebook import (
    PARAMETERS,
    available_notebooks,
    check_parameters,
    lacks_section,
    versions,
)
from tokenshift_utils.store.executor import EXECUTOR_VARIABLE, chosen_executor, executor_running
from tokenshift_utils.study import pins
from tokenshift_utils.study.study import Study, load_study, study_file

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NotebookFailed(TokenshiftError):
    """A notebook stopped, and not for a user's mistake; ``traceback`` says where."""

    def __init__(self, message: str, traceback: str = ""):
        super().__init__(message)
        self.traceback = traceback


def reproduce(
    study: str | Path = "tiny",
    only: Iterable[str] = (),
    fresh: bool = False,
    parameters: dict[str, Any] | None = None,
    executor: str | None = None,
) -> dict:
    """Execute a study's notebooks into ``results/<study>/notebooks``.

    Parameters
    ----------
    study : str or Path
        Name of a study under ``notebooks/studies``, or a study file.
    only : iterable of str
        Numbers (``02``) or names of notebooks; empty means all that the study has sections for.
    fresh : bool
        Drop the study's records first, so that everything is computed anew.
    parameters : dict
        Notebook parameters; each goes to the notebooks that have it.
    executor : str
        ``local`` or ``ray``; None means what ``TOKENSHIFT_EXECUTOR`` says, else local.

    Returns
    -------
    dict
        The run's manifest, as written to ``results/<study>/manifest.json``.

    Raises
    ------
    TokenshiftError
        For a mistake in the study, its files or the parameters, before anything is written.
    NotebookFailed
        Where a notebook stops at an error; what it did so far is kept as ``NN_name.partial.ipynb``.
    """
    from tqdm import tqdm

    from tokenshift_utils.run.checks import check_inputs

    loaded = load_study(study)
    notebooks = select_notebooks(loaded, only)
    given = _parameters_of_each(notebooks, loaded, parameters or {})
    pins.fetch(loaded)
    check_inputs(loaded)
    moving = pins.unpinned(loaded)
    for sentence in _remarks(loaded, notebooks, only, moving):
        print(sentence, file=sys.stderr)
    with _environment(executor), executor_running(loaded), _ended_as_interrupted():
        if fresh:
            shutil.rmtree(paths.records(loaded.name), ignore_errors=True)
        manifest = _read_manifest(loaded)
        bar = tqdm(notebooks, unit="notebook", dynamic_ncols=True)
        for source in bar:
            bar.set_description(source.stem)
            started = time.time()
            _execute(source, loaded, {"study": study_argument(study)} | given[source.stem])
            _drop_stale(loaded, source.stem[:2], started)
            manifest["notebooks"][source.stem] = {
                "parameters": given[source.stem],
                "seconds": round(time.time() - started, 1),
                "executor": chosen_executor(),
                "workers": loaded.workers,
                "versions": versions(),
                "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
                "figures": _made(paths.figures(loaded.name), source.stem[:2], ".png"),
                "tables": _made(paths.tables(loaded.name), source.stem[:2], ".csv"),
            }
            if moving:
                manifest["notebooks"][source.stem]["unpinned"] = moving
            _write_manifest(loaded, manifest)
    return manifest


def select_notebooks(study: Study, only: Iterable[str] = ()) -> list[Path]:
    """The notebooks asked for, in the order they run; without a wish, all the study is for.

    Raises
    ------
    TokenshiftError
        For a number or name that no notebook has, or a notebook that is not for the study.
    """
    available = available_notebooks()
    wanted = set()
    for wish in only:
        found = [path for path in available if wish in (path.stem[:2], path.stem, path.name)]
        if not found:
            raise TokenshiftError(
                f"there is no notebook '{wish}': there are "
                f"{', '.join(sorted(path.stem for path in available))}"
            )
        wanted.update(found)
    for path in wanted:
        if lack := lacks_section(path.stem, study):
            raise TokenshiftError(lack)
    if wanted:
        return [path for path in available if path in wanted]
    return [path for path in available if not lacks_section(path.stem, study)]


def _remarks(
    study: Study, notebooks: list[Path], only: Iterable[str], moving: dict[str, str]
) -> list[str]:
    """What to say before a run: which notebooks are left out, and what is not pinned."""
    left_out = [] if only else [p for p in available_notebooks() if p not in notebooks]
    said = [f"left out: {lacks_section(path.stem, study)}" for path in left_out]
    return said + ([f"warning: {pins.unpinned_warning(study, moving)}"] if moving else [])


def _parameters_of_each(
    notebooks: list[Path], study: Study, parameters: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Which parameters go to which notebook; refuses those that none has, and bad values."""
    given = {
        path.stem: {name: v for name, v in parameters.items() if name in PARAMETERS[path.stem]}
        for path in notebooks
    }
    unknown = [name for name in parameters if not any(name in own for own in given.values())]
    if unknown and len(notebooks) == 1:
        check_parameters(notebooks[0].stem, unknown)
    if unknown:
        known = sorted({name for path in notebooks for name in PARAMETERS[path.stem]})
        raise TokenshiftError(
            f"none of these notebooks has a parameter '{unknown[0]}': they have {', '.join(known)}"
        )
    for name, own in given.items():
        study.with_overrides(**{PARAMETERS[name][key]: value for key, value in own.items()})
    return given


def study_argument(study: str | Path) -> str:
    """What a notebook is told: the study's name, or its file, relative to the root where inside."""
    file = study_file(study)
    return file.stem if file.parent == paths.studies() else paths.display(file)


@contextmanager
def _environment(executor: str | None):
    """What the kernels inherit: this root, where to compute, no downloads, one thread each."""
    before = dict(os.environ)
    if executor is not None:
        os.environ[EXECUTOR_VARIABLE] = executor
    os.environ[paths.HOME_VARIABLE] = str(paths.root())
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # bars are text here
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ended_as_interrupted():
    """Let SIGTERM, which schedulers send, end a run as Ctrl-C does: with its kernel, in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(source: Path, study: Study, parameters: dict[str, Any]) -> None:
    """Execute one notebook; only a complete one takes the place of an earlier one."""
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    target = paths.results(study.name) / "notebooks" / source.name
    partial = target.with_suffix(".partial.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        execute_notebook(
            source,
            partial,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            # the notebook's own progress bars: to a person at a terminal, not into a log
            stderr_file=sys.stderr if sys.stderr.isatty() else None,
            start_timeout=120,
            # errors of cells are reported anyway; the rest of what a local kernel logs is noise
            extra_arguments=["--log-level=CRITICAL"],
            cwd=paths.notebooks(),
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise _interrupted(source) from None
        where = f"notebook {source.stem} stopped at cell In [{error.exec_count}]"
        kept = f"as far as it got it is kept as {paths.display(partial)}"
        if error.ename == "TokenshiftError":
            raise TokenshiftError(f"{where}: {error.evalue}; {kept}") from None
        traceback = _ANSI.sub("", "\n".join(error.traceback))
        raise NotebookFailed(
            f"{where} ({error.ename}: {error.evalue}); {kept}", traceback
        ) from None
    except DeadKernelError:
        raise NotebookFailed(
            f"notebook {source.stem} stopped because its kernel died, most often for lack of "
            f"memory; as far as it got it is kept as {paths.display(partial)}"
        ) from None
    except KeyboardInterrupt:
        raise _interrupted(source) from None
    finally:
        if partial.exists():
            notebook = nbformat.read(partial, as_version=4)
            strip_run(notebook)
            nbformat.write(notebook, partial)
    partial.replace(target)


def _interrupted(source: Path) -> NotebookFailed:
    return NotebookFailed(
        f"interrupted in notebook {source.stem}; the same command goes on from the records that "
        "are finished"
    )


def strip_run(notebook) -> None:
    """Take out of an executed notebook what differs between equal runs: times, bars, paths, ids."""
    run = notebook.metadata.pop("papermill", {})
    notebook.metadata.pop("jupytext", None)  # an executed copy is no source
    notebook.metadata["papermill"] = {"parameters": run.get("parameters", {})}
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]


def _is_progress(output) -> bool:
    """Whether an output is a piece of a progress bar."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    return "\r" in output.text or not _ANSI.sub("", output.text).strip()


def _drop_stale(study: Study, number: str, started: float) -> None:
    """Remove what an earlier version of a notebook made and this run of it didn't make again."""
    for directory in (paths.figures(study.name), paths.tables(study.name)):
        for file in directory.glob(f"{number}_*"):
            if file.stat().st_mtime < started - 1:  # file systems may round
                file.unlink()


def _made(directory: Path, number: str, suffix: str) -> list[str]:
    return sorted(file.stem for file in directory.glob(f"{number}_*{suffix}"))


def _read_manifest(study: Study) -> dict:
    """The study's manifest: one entry for each notebook, of its last complete run."""
    file = paths.results(study.name) / "manifest.json"
    if file.is_file():
        return json.loads(file.read_text())
    return {"study": study.name, "notebooks": {}}


def _write_manifest(study: Study, manifest: dict) -> None:
    manifest["notebooks"] = dict(sorted(manifest["notebooks"].items()))
    file = paths.results(study.name) / "manifest.json"
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    draft.replace(file)


def summary(manifest: dict) -> str:
    """What a study's notebooks made, where it is, and the verdicts on the claims, as text."""
    name = manifest["study"]
    lines = []
    for notebook, run in manifest["notebooks"].items():
        lines.append(f"{notebook}  ({run['seconds']:.0f} s)")
        for kind in ("figures", "tables"):
            if run[kind]:
                lines.append(f"  {kind}: {', '.join(run[kind])}")
    lines += [
        "",
        f"figures (png, pdf)        {paths.display(paths.figures(name))}",
        f"tables (csv, md, tex)     {paths.display(paths.tables(name))}",
        f"executed notebooks        {paths.display(paths.results(name) / 'notebooks')}",
        f"records (parquet)         {paths.display(paths.records(name))}",
    ]
    return "\n".join(lines + _verdicts(name))


def _verdicts(study_name: str) -> list[str]:
    """One line a claim, from the table that the overview wrote; nothing where there is none."""
    file = paths.tables(study_name) / "00_claims.csv"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = [f"  {row['verdict']:14} {row['claim']} ({row['subject']})" for row in rows]
    return ["", f"claims, from {paths.display(file)}; reasons and numbers there:", *lines]
