"""Run the notebooks of a study through Papermill, and say what they made."""

from __future__ import annotations

import csv
import importlib.util
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError, first_line, said_as_sentence
from tokenshift_utils.files import write_text
from tokenshift_utils.run.manifest import note_run, read_manifest
from tokenshift_utils.run.notebook import (
    PARAMETERS,
    available_notebooks,
    check_parameters,
    lacks_section,
    versions,
)
from tokenshift_utils.store.executor import (
    EXECUTOR_VARIABLE,
    Artefact,
    chosen_executor,
    executor_running,
    noting_reads,
)
from tokenshift_utils.store.executor import run as compute_missing
from tokenshift_utils.store.local_pool import stop_workers
from tokenshift_utils.study import pins
from tokenshift_utils.study.study import Study, load_study, study_file

if TYPE_CHECKING:
    from tokenshift_utils.run.progress import Shown

KERNEL_SECONDS = 10  # that a kernel has to end in, after an interrupt
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
    from tokenshift_utils.run import provenance
    from tokenshift_utils.run.checks import check_inputs
    from tokenshift_utils.run.progress import Shown, count_missing, requests_of
    from tokenshift_utils.tasks.context import check_lengths

    loaded = load_study(study)
    notebooks = select_notebooks(loaded, only)
    given = _parameters_of_each(notebooks, loaded, parameters or {})
    pins.fetch_sources(loaded)
    check_inputs(loaded)
    too_long = check_lengths(loaded)
    moving = pins.unpinned(loaded)
    left_out = [] if only else [p for p in available_notebooks() if p not in notebooks]
    remarks = [f"left out: {lacks_section(path.stem, loaded)}" for path in left_out]
    remarks += [f"warning: {pins.unpinned_warning(loaded, moving)}"] if moving else []
    remarks += [f"warning: {too_long}"] if too_long else []
    for remark in remarks:
        print(remark, file=sys.stderr)
    with _environment(executor), executor_running(loaded), _ended_as_interrupted():
        read_manifest(loaded.name)  # refuses one that is none, before anything is computed
        if fresh and paths.records(loaded.name).exists():
            shutil.rmtree(paths.records(loaded.name))
        origin = provenance.made_from(loaded)
        together = loaded.workers > 1 and chosen_executor() == "local"
        if together:
            _compute_records(requests_of(loaded, given).values())
        shown = Shown(count_missing(loaded, given))

        def run(source: Path) -> None:
            entry = _run(source, loaded, study_argument(study), given[source.stem], shown, origin)
            if moving:
                entry["unpinned"] = moving
            note_run(loaded.name, source.stem, entry)

        overview = [source for source in notebooks if source.stem.startswith("00")]
        sections = [source for source in notebooks if source not in overview]
        if together:
            _side_by_side(run, sections, loaded.workers)
        else:
            for source in sections:
                run(source)
        for source in overview:  # of what the others made
            run(source)
    return read_manifest(loaded.name)


def _run(
    source: Path,
    study: Study,
    argument: str,
    parameters: dict[str, Any],
    shown: Shown,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Execute a notebook; what the manifest says of it."""
    from tokenshift_utils.run import provenance

    started, number, environ = time.time(), source.stem[:2], dict(os.environ)
    inputs = provenance.read_by_overview(study.name) if number == "00" else {}
    with noting_reads(environ) as records, shown.notebook(source, environ):
        _execute(source, study, {"study": argument} | parameters, environ)
    _drop_stale(study, number, started)
    return {
        "parameters": parameters,
        "seconds": round(time.time() - started, 1),
        "executor": chosen_executor(),
        "workers": study.workers,
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "figures": _made(paths.figures(study.name), number, ".png"),
        "tables": _made(paths.tables(study.name), number, ".csv"),
        **origin,
        "records": records,
        "inputs": inputs,
        "outputs": provenance.made(study.name, number),
    }


def _compute_records(asked: Iterable[tuple[Study, list[Artefact]]]) -> None:
    """Compute what notebooks will read, all together: so no worker waits for a notebook.

    ``asked`` are studies, each with what is read of its store.
    """
    asked = list(asked)
    try:
        while asked:
            study = asked[0][0]  # parameters may have given notebooks studies of their own
            compute_missing(study, [r for same, some in asked if same == study for r in some])
            asked = [(other, some) for other, some in asked if other != study]
    except KeyboardInterrupt:
        raise NotebookFailed(
            "interrupted while records were computed; the same command goes on from there"
        ) from None
    finally:
        stop_workers()  # kernels need the memory


def _side_by_side(run: Callable[[Path], None], sources: list[Path], number: int) -> None:
    """Run notebooks whose records are there so many at a time; what stops one stops all."""
    from tokenshift_utils.run.kernel import ThisInterpreter

    with ThreadPoolExecutor(number) as pool:
        tasks = {pool.submit(run, source): source for source in sources}
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            going = [source for task, source in tasks.items() if task.running()]
            begun = [task for task in tasks if not task.cancelled()]
            for sign in [signal.SIGINT] * KERNEL_SECONDS + [signal.SIGKILL]:
                if not wait(begun, 1.0).not_done:
                    break
                ThisInterpreter.signal_all(sign)  # a kernel that is starting up hears none
            if isinstance(error, KeyboardInterrupt) and going:
                raise _interrupted(going[0]) from None
            raise


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
            known = ", ".join(sorted(path.stem for path in available))
            raise TokenshiftError(f"there is no notebook '{wish}': there are {known}")
        wanted.update(found)
    for path in wanted:
        if lack := lacks_section(path.stem, study):
            raise TokenshiftError(lack)
    if wanted:
        return [path for path in available if path in wanted]
    return [path for path in available if not lacks_section(path.stem, study)]


def _parameters_of_each(
    notebooks: list[Path], study: Study, parameters: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Which parameters go to which notebook; refuses those that none has, and bad values."""
    given = {
        path.stem: {name: v for name, v in parameters.items() if name in PARAMETERS[path.stem]}
        for path in notebooks
    }
    known = sorted({name for path in notebooks for name in PARAMETERS[path.stem]})
    for unknown in (name for name in parameters if name not in known):
        if len(notebooks) == 1:
            check_parameters(notebooks[0].stem, [unknown])
        raise TokenshiftError(
            f"none of these notebooks has a parameter '{unknown}': they have {', '.join(known)}"
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
    # Kernels read and write nothing of the user's settings: a home that cannot be written to, a
    # profile's startup files, matplotlib's settings and backend have no part in a run.
    own = tempfile.TemporaryDirectory(prefix="tokenshift-", ignore_cleanup_errors=True)
    os.environ |= {"JUPYTER_RUNTIME_DIR": own.name, "IPYTHONDIR": own.name, "HF_HUB_OFFLINE": "1"}
    matplotlib = Path(importlib.util.find_spec("matplotlib").origin).parent
    os.environ["MATPLOTLIBRC"] = str(matplotlib / "mpl-data" / "matplotlibrc")
    os.environ.pop("MPLBACKEND", None)
    if executor is not None:
        os.environ[EXECUTOR_VARIABLE] = executor
    os.environ[paths.HOME_VARIABLE] = str(paths.root())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # bars are text here; a kernel that ends takes its workers' semaphores along
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found,ignore:resource_tracker")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        own.cleanup()


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


def _execute(
    source: Path, study: Study, parameters: dict[str, Any], environ: dict[str, str]
) -> None:
    """Execute one notebook; only a complete one takes the place of an earlier one."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    from tokenshift_utils.run.kernel import ThisInterpreter

    target = paths.results(study.name) / "notebooks" / source.name
    partial = target.with_suffix(".partial.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    # a place of this process: another one may be running the same study
    place = tempfile.TemporaryDirectory(prefix="tokenshift-", ignore_cleanup_errors=True)
    draft, kept_as = Path(place.name) / source.name, partial
    try:
        execute_notebook(
            _literal(source),
            _literal(draft),
            parameters,
            kernel_name="python3",
            kernel_manager_class=ThisInterpreter.within(environ),
            progress_bar=False,
            start_timeout=120,
            iopub_timeout=60,  # s; a busy machine sends a cell's last output late
            # errors of cells are reported anyway; the rest of what a local kernel logs is noise
            extra_arguments=["--log-level=CRITICAL"],
            cwd=paths.notebooks(),
        )
        kept_as = target
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise _interrupted(source) from None
        where = f"notebook {source.stem} stopped at cell In [{error.exec_count}]"
        kept = f"as far as it got it is kept as {paths.display(partial)}"
        if error.ename == "TokenshiftError":
            raise TokenshiftError(f"{where}: {error.evalue}; {kept}") from None
        if said := said_as_sentence([error.ename], error.evalue):
            raise TokenshiftError(f"{where}: {said}") from None
        traceback = _ANSI.sub("", "\n".join(error.traceback))
        what = f"{error.ename}: {error.evalue}"
        raise NotebookFailed(f"{where} ({what}); {kept}", traceback) from None
    except DeadKernelError:
        raise NotebookFailed(
            f"notebook {source.stem} stopped because its kernel died, most often for lack of "
            f"memory; as far as it got it is kept as {paths.display(partial)}"
        ) from None
    except RuntimeError as error:
        if "kernel" not in str(error).lower():
            raise
        raise TokenshiftError(
            f"the kernel of notebook {source.stem} did not start ({first_line(error)}): see whether "
            f"'{sys.executable} -m ipykernel_launcher --version' runs, and install tokenshift_utils "
            "again if not"
        ) from None
    except KeyboardInterrupt:
        raise _interrupted(source) from None
    finally:
        with place:
            _keep(draft, kept_as)
    partial.unlink(missing_ok=True)


def _literal(path: Path) -> str:
    """A path for Papermill, which reads the paths it is given as templates of ``str.format``."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _keep(draft: Path, file: Path) -> None:
    """Put what was executed so far, stripped, in a file's place; nothing of a cut-short draft."""
    import nbformat

    if not draft.exists():
        return
    try:
        notebook = nbformat.read(draft, as_version=4)
    except ValueError:
        return  # what stopped the run says why
    strip_run(notebook)
    write_text(file, nbformat.writes(notebook) + "\n")


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


def summary(manifest: dict) -> str:
    """What a study's notebooks made, where it is, and the verdicts on the claims, as text."""
    name = manifest["study"]
    lines = []
    for notebook, run in manifest["notebooks"].items():
        lines.append(f"{notebook}  ({run['seconds']:.0f} s)")
        lines += [
            f"  {kind}: {', '.join(run[kind])}" for kind in ("figures", "tables") if run[kind]
        ]
    lines += [
        "",
        f"figures (png, pdf)        {paths.display(paths.figures(name))}",
        f"tables (csv, md, tex)     {paths.display(paths.tables(name))}",
        f"executed notebooks        {paths.display(paths.results(name) / 'notebooks')}",
        f"records (parquet)         {paths.display(paths.records(name))}",
    ]
    claims = paths.tables(name) / "00_claims.csv"  # which the overview wrote
    if claims.is_file():
        lines += ["", f"claims, from {paths.display(claims)}; reasons and numbers there:"]
        with claims.open(encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            lines += [f"  {row['verdict']:14} {row['claim']} ({row['subject']})" for row in rows]
    return "\n".join(lines)
