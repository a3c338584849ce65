"""What every notebook does alike: take its parameters, save its figures, write its tables.

A notebook's first code cell, tagged ``parameters``, holds literals only. Its second one is::

    nb = start("02_cross_sampling", globals())

Papermill only warns of a parameter that a notebook doesn't have, and then runs without it, so
``start`` refuses it. None means "as in the study"; any other value overrides the study's key.
"""

import ast
import os
import platform
import warnings
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import Image, Markdown, display

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.report.tables import COLUMNS, ROWS, to_html, to_markdown, write_table
from tokenshift_utils.store.progress import PROGRESS_VARIABLE, tell
from tokenshift_utils.study import pins
from tokenshift_utils.study.study import Study, load_study

# For each notebook, its parameters beside `study`, and the study key that each one overrides.
PARAMETERS: dict[str, dict[str, str]] = {
    "00_overview": {},
    "01_divergence_characterization": {
        "samples": "samples.shifts",
        "near_zero": "thresholds.near_zero",
        "high_js": "thresholds.high_js",
        "resamples": "statistics.resamples",
    },
    "02_cross_sampling": {
        "pairs": "cross_sampling.pairs",
        "thresholds": "cross_sampling.thresholds",
        "random_rates": "cross_sampling.random_rates",
        "top_p": "cross_sampling.top_p",
        "benchmark": "cross_sampling.benchmark",
        "budgets": "cross_sampling.budgets",
        "samples": "samples.cross_sampling",
        "resamples": "statistics.resamples",
    },
    "03_token_mechanics": {
        "samples": "samples.shifts",
        "checkpoint_samples": "samples.checkpoints",
        "high_js": "thresholds.high_js",
        "evolution_model": "evolution.model",
        "resamples": "statistics.resamples",
    },
    "04_weighted_objective": {"confidence": "statistics.confidence"},
    "05_robustness": {
        "pair": "robustness.pair",
        "benchmark": "robustness.benchmark",
        "samples": "robustness.samples",
        "top_p": "robustness.top_p",
        "temperature": "robustness.temperature",
        "mixed_threshold": "robustness.mixed_threshold",
        "resamples": "statistics.resamples",
    },
}

# Sections that a study may leave out; the notebook that needs one is then not for that study.
SECTIONS_OF = {
    "04_weighted_objective": ("training", "trained_in"),
    "05_robustness": ("robustness",),
}

_SHOWN_VERSIONS = ("tokenshift_utils", "torch", "transformers", "numpy", "pandas", "math-verify")


def lacks_section(notebook: str, study: Study) -> str:
    """Why a notebook is not for a study, as one sentence; "" where it is."""
    sections = SECTIONS_OF.get(notebook, ())
    if not sections or any(getattr(study, section) is not None for section in sections):
        return ""
    return f"study {study.name} has no '{sections[0]}' section, so notebook {notebook} has nothing to do"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on most."""
    return {"python": platform.python_version()} | {name: version(name) for name in _SHOWN_VERSIONS}


@dataclass(frozen=True)
class Notebook:
    """One run of one notebook: its study, with the run's overrides, and where its output goes."""

    name: str
    study: Study

    @property
    def number(self) -> str:
        """The two digits that open the names of the notebook and of everything it makes."""
        return self.name[:2]

    def figure(self, fig, name: str, alt: str) -> None:
        """Save a figure as ``figures/<study>/NN_name.png`` and ``.pdf``, and show what was saved.

        ``alt`` says in words what is drawn, for who cannot see it.
        """
        from tokenshift_utils.report.style import save_figure  # (seaborn takes seconds)

        width = round(100 * fig.get_size_inches()[0])
        png = save_figure(fig, paths.figures(self.study.name), f"{self.number}_{name}")[0]
        display(Image(filename=str(png), width=width, alt=alt))

    def table(self, frame, name: str, holds: str, columns=None, rows: int | None = ROWS) -> None:
        """Write a table as ``results/<study>/tables/NN_name`` (csv, md, tex), and show it folded.

        The line that unfolds it says what it ``holds`` and where the file is. Shown are some
        ``columns`` (with their intervals; None: the first) and the first ``rows`` (None: all, where a
        reader looks things up); the files have all.
        """
        write_table(frame, paths.tables(self.study.name), f"{self.number}_{name}")
        ends = [c + end for c in frame.columns for end in ("_low", "_high") if f"{c}_low" in frame]
        estimates = [c for c in frame.columns if c not in ends]
        columns = list(estimates if columns is None else columns)[:COLUMNS]
        kept = [c for n in columns for c in (n, f"{n}_low", f"{n}_high") if c in frame]
        shown = frame[kept].head(len(frame) if rows is None else min(rows, ROWS))
        size = f"{len(shown)} of {len(frame)} rows" if len(shown) < len(frame) else ""
        if len(columns) < len(estimates):
            size = ", ".join(filter(None, [size, f"{len(columns)} of {len(estimates)} columns"]))
        file = paths.display(paths.tables(self.study.name) / f"{self.number}_{name}.csv")
        title = f"Table: {holds} ({size + '; ' if size else ''}{file})"
        html = f"<details><summary>{escape(title)}</summary>\n{to_html(shown)}\n</details>"
        plain = f"{title}\n\n{to_markdown(shown)}"
        display({"text/html": html, "text/plain": plain}, raw=True)

    def say(self, text: str) -> None:
        """Show sentences computed from numbers as Markdown: a paragraph, or one list item a line."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        shown = lines[0] if len(lines) == 1 else "\n".join(f"- {line}" for line in lines)
        shown = shown.replace("~", r"\~").replace("$", r"\$")
        display({"text/markdown": shown, "text/plain": shown}, raw=True)

    def show(self, *what) -> None:
        """Show objects that have HTML of their own."""
        display(*what)

    def explorer(self, data=None) -> None:
        """Write ``results/<study>/explorer.html`` and show the page.

        ``data`` are the records of section 2, read or computed where None.
        """
        from tokenshift_utils.sections.explorer.page import framed, write_explorer

        display(framed(write_explorer(self.study, data)))


def check_parameters(notebook: str, given) -> None:
    """Refuse parameter names that a notebook doesn't have.

    Raises
    ------
    TokenshiftError
        Naming the first unknown one and listing those there are.
    """
    declared = ["study", *PARAMETERS[notebook]]
    unknown = [name for name in given if name not in declared]
    if unknown:
        raise TokenshiftError(
            f"notebook {notebook} has no parameter '{unknown[0]}': it has {', '.join(declared)}"
        )


def start(notebook: str, namespace: dict[str, Any]) -> Notebook:
    """Validate a notebook's parameters, load its study and say what is about to run.

    Parameters
    ----------
    notebook : str
        The notebook's own name, ``02_cross_sampling``.
    namespace : dict
        The notebook's ``globals()``: the parameters' values, and the cells run so far.

    Raises
    ------
    TokenshiftError
        For an unknown or missing parameter, a value that the study refuses, an unknown study, or a
        study without the section that the notebook is about.
    """
    # no bars of other packages (loading weights, in workers too), nor that widgets for them lack
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message="IProgress not found")
    check_parameters(notebook, _injected(namespace.get("In", [])))
    missing = [name for name in ("study", *PARAMETERS[notebook]) if name not in namespace]
    if missing:
        raise TokenshiftError(
            f"notebook {notebook} needs the parameter '{missing[0]}', which its parameters cell no "
            "longer sets: restore it (None means as in the study)"
        )
    study = load_study(namespace["study"])
    if lack := lacks_section(notebook, study):
        raise TokenshiftError(lack)
    keys = PARAMETERS[notebook]
    changed = {name: namespace[name] for name in keys if namespace[name] is not None}
    if changed:
        study = study.with_overrides(**{keys[name]: value for name, value in changed.items()})
    _announce(notebook, study, changed)
    _tell_cells()
    return Notebook(notebook, study)


def _tell_cells() -> None:
    """Tell the process that runs this notebook, if there is one, which cell is run."""
    if (shell := get_ipython()) and os.environ.get(PROGRESS_VARIABLE):
        shell.events.register("pre_run_cell", lambda info: tell(cell=shell.execution_count))


def _injected(cells: list[str]) -> list[str]:
    """Names that Papermill's injected cell sets: it is the one that opens with '# Parameters'."""
    names = []
    for cell in cells:
        if cell.lstrip().startswith("# Parameters"):
            assignments = [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
            targets = [target for node in assignments for target in node.targets]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _announce(notebook: str, study: Study, changed: dict[str, Any]) -> None:
    from tokenshift_utils.report.style import use_style

    use_style()
    display(Markdown(f"**{study.title}.** {study.note}"))
    for name, value in changed.items():
        print(f"{name} = {value!r} here, in place of the study's {PARAMETERS[notebook][name]}")
    if found := pins.unpinned(study):
        print(pins.unpinned_warning(study, found))
    print(" · ".join(f"{name} {number}" for name, number in versions().items()))


def available_notebooks() -> list[Path]:
    """The notebooks in the order they run: by number, but the overview, which reads them, last."""
    found = paths.notebooks().glob("[0-9][0-9]_*.ipynb")
    return sorted(found, key=lambda path: (path.stem.startswith("00"), path.stem))
