"""The smoke study end to end on the shipped models: through Papermill, then through nbval.

It runs once, in a root of its own whose models and logs are links to the checkout's.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import write_smoke_root

from tokenshift_utils.run.notebook import PARAMETERS
from tokenshift_utils.run.plan import count_work
from tokenshift_utils.sections.claims import CLAIMS, VERDICTS
from tokenshift_utils.study.study import load_study

TABLES = (
    *("00_claims", "01_sparsity", "02_cross_sampling", "03_topk_overlap", "03_rank"),
    *("03_evolution", "04_weighted_objective", "05_support", "05_top_p"),
    *("05_format", "05_answers", "00_forest", "00_verdicts", "00_questions"),
)
MARK = "# NBVAL_CHECK_OUTPUT"


@dataclass(frozen=True)
class Smoke:
    """A root in which the smoke study has run, and what the command printed."""

    root: Path
    output: str

    @property
    def notebooks(self) -> Path:
        return self.root / "results/smoke/notebooks"

    def files(self, *patterns: str) -> dict[str, bytes]:
        """Contents of files below the root."""
        found = [file for pattern in patterns for file in self.root.glob(pattern)]
        return {str(file.relative_to(self.root)): file.read_bytes() for file in sorted(found)}

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command of this environment on this root, from a directory outside it."""
        return subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.root.parent,
            env=os.environ | {"TOKENSHIFT_HOME": str(self.root)},
        )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Smoke:
    root = tmp_path_factory.mktemp("smoke") / "root"
    write_smoke_root(root)
    run = Smoke(root, "").run("tokenshift_utils", "reproduce", "--study", "smoke")
    assert run.returncode == 0, run.stderr[-6000:]
    return Smoke(root, run.stdout)


def test_every_notebook_ran_to_its_end(smoke):
    executed = {path.stem: nbformat.read(path, 4) for path in smoke.notebooks.iterdir()}
    assert sorted(executed) == sorted(PARAMETERS)
    for notebook in executed.values():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        outputs = [output for cell in cells for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert not [output for output in outputs if output.get("name") == "stderr"]


def test_promised_tables_and_figures_are_there(smoke):
    for name in TABLES:
        for ending in ("csv", "md", "tex"):
            assert (smoke.root / f"results/smoke/tables/{name}.{ending}").stat().st_size > 0
        assert len(pd.read_csv(smoke.root / f"results/smoke/tables/{name}.csv")) > 0
    figures = smoke.files("figures/smoke/*")
    assert {Path(name).stem[:2] for name in figures} == {"00", "01", "02", "03", "04", "05"}
    pngs = {name[:-4] for name in figures if name.endswith(".png")}
    assert pngs == {name[:-4] for name in figures if name.endswith(".pdf")}
    assert all(name in smoke.output for name in TABLES)


def test_every_claim_has_a_verdict_and_is_printed(smoke):
    claims = pd.read_csv(smoke.root / "results/smoke/tables/00_claims.csv")
    assert set(claims["claim"]) == {claim.id for claim in CLAIMS}
    assert set(claims["verdict"]) <= set(VERDICTS)
    for claim in CLAIMS:
        assert claim.id in smoke.output


def test_second_run_gives_the_same_outputs_from_the_same_records(smoke, tmp_path):
    marked = {path.stem: marked_cells(path) for path in smoke.notebooks.iterdir()}
    assert all(cells and all(cell.outputs for cell in cells) for cells in marked.values())
    tables = smoke.files("results/smoke/tables/*")
    records = {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*.parquet")}
    assert records
    run = nbval(smoke, smoke.notebooks)
    assert run.returncode == 0, run.stdout[-6000:]
    cells = sum(
        cell.cell_type == "code"
        for path in smoke.notebooks.iterdir()
        for cell in nbformat.read(path, 4).cells
    )
    assert re.search(rf"\b{cells} passed", run.stdout)
    assert smoke.files("results/smoke/tables/*") == tables
    assert {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*.parquet")} == records


def test_nbval_would_notice_another_output(smoke, tmp_path):
    notebook = nbformat.read(smoke.notebooks / "00_overview.ipynb", 4)
    for cell in notebook.cells:
        if MARK in cell.source:
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="something else")]
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    assert nbval(smoke, tmp_path / "changed.ipynb").returncode == 1


def test_plain_papermill_from_another_directory(smoke, tmp_path):
    source = smoke.root / "notebooks/00_overview.ipynb"
    run = smoke.run(
        *("papermill", str(source), str(tmp_path / "out.ipynb"), "-p", "study", "smoke")
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert marked_cells(tmp_path / "out.ipynb")[0].outputs


def test_the_plan_counted_what_the_run_made(smoke, monkeypatch):
    monkeypatch.setenv("TOKENSHIFT_HOME", str(smoke.root))
    planned = {part.kind: part for part in count_work(load_study("smoke"))}
    response = ["benchmark", "problem", "sample"]
    held = {"cross_sampling": "mixture_walks"}  # mixtures are read off their trees
    made = {
        kind: [pd.read_parquet(f) for f in shards(smoke, held.get(kind, kind))] for kind in planned
    }
    # each file is a shard of one set of responses, and holds no other
    scored = sum(len(frame.drop_duplicates(response)) for frame in made["shifts"])
    assert planned["shifts"].responses == scored
    assert sum(map(len, made["shifts"])) <= planned["shifts"].tokens
    rollouts = pd.concat(made["rollouts"])
    assert planned["rollouts"].responses == len(rollouts)
    mixed = pd.concat(made["cross_sampling"])
    assert planned["cross_sampling"].responses == len(mixed)
    effects = pd.concat(made["single_token"])
    assert 0 < 2 * effects["continuations"].sum() <= planned["single_token"].responses
    distinct = pd.concat(pd.read_parquet(f) for f in shards(smoke, "mixture_responses"))
    for kind, frame in (("rollouts", rollouts), ("cross_sampling", distinct)):
        assert 0 < frame["n_tokens"].sum() <= planned[kind].tokens


def shards(smoke: Smoke, kind: str) -> list[Path]:
    found = sorted((smoke.root / f"results/smoke/records/{kind}").rglob("*.parquet"))
    assert found
    return found


def marked_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if MARK in cell.source]


def nbval(smoke: Smoke, target: Path) -> subprocess.CompletedProcess:
    options = ("--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-q")
    return smoke.run("pytest", *options, "-o", "addopts=", str(target))
