"""Running notebooks: order, output, failures and parameters, on notebooks of a few lines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import CHECKOUT

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run.cli import spread_lists
from tokenshift_utils.run.notebook import PARAMETERS
from tokenshift_utils.run.reproduce import NotebookFailed, reproduce, select_notebooks, summary
from tokenshift_utils.study.study import load_study

TABLE = """import sys
import pandas as pd
print("bar 10%", end="\\r", file=sys.stderr)
nb.table(pd.DataFrame({"x": [1.5]}), "numbers", "a number")"""


def write_notebook(root, name: str, *cells: str) -> None:
    """Save a notebook that takes the parameters its name has, and then runs the cells."""
    parameters = ["study = 'mini'", *(f"{parameter} = None" for parameter in PARAMETERS[name])]
    first = nbformat.v4.new_code_cell("\n".join(parameters), metadata={"tags": ["parameters"]})
    imports = "from tokenshift_utils.run.notebook import start"
    second = f'{imports}\nnb = start("{name}", globals())'
    notebook = nbformat.v4.new_notebook(
        cells=[first, *map(nbformat.v4.new_code_cell, (second, *cells))],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(notebook, root / f"notebooks/{name}.ipynb")


@pytest.fixture
def two_notebooks(mini_root, monkeypatch):
    """``02`` writes a table; ``00`` writes the claims. They run from a strange directory."""
    write_notebook(mini_root, "02_cross_sampling", TABLE)
    claims = (
        'frame = pd.DataFrame({"claim": ["1-a"], "subject": ["tuned"], "verdict": ["undecided"]})'
    )
    write_notebook(
        mini_root,
        "00_overview",
        f"import pandas as pd\n{claims}\nnb.table(frame, 'claims', 'claims')",
    )
    monkeypatch.chdir("/")
    return mini_root


def test_run_makes_everything_twice_the_same(two_notebooks, capsys):
    contents = []
    for _ in range(2):
        manifest = reproduce("mini", fresh=True)
        executed = sorted((paths.results("mini") / "notebooks").iterdir())
        contents.append([path.read_text() for path in executed])
    assert [path.name for path in executed] == ["00_overview.ipynb", "02_cross_sampling.ipynb"]
    assert contents[0] == contents[1]  # no times, no identifiers, no progress bars
    assert "bar 10%\\r" not in contents[0][1] and "1.5" in contents[0][1]
    assert manifest["notebooks"]["02_cross_sampling"]["tables"] == ["02_numbers"]
    assert manifest["notebooks"]["02_cross_sampling"]["versions"]["torch"].startswith("2.13.0")
    assert json.loads((paths.results("mini") / "manifest.json").read_text()) == manifest
    text = summary(manifest)
    assert "02_numbers" in text and "undecided" in text and "1-a (tuned)" in text


def test_what_another_command_put_into_the_manifest_meanwhile_stays(mini_root):
    entry = '{"figures": [], "tables": [], "seconds": 0}'
    other = (
        f"from tokenshift_utils.run.manifest import note_run\nnote_run('mini', '05_other', {entry})"
    )
    write_notebook(mini_root, "02_cross_sampling", other)
    manifest = reproduce("mini")
    assert list(manifest["notebooks"]) == ["02_cross_sampling", "05_other"]
    assert json.loads((paths.results("mini") / "manifest.json").read_text()) == manifest


def test_overview_runs_last_and_sections_decide(mini_root):
    for name in PARAMETERS:
        write_notebook(mini_root, name)
    order = [path.stem[:2] for path in select_notebooks(load_study("mini"))]
    assert order == ["01", "02", "03", "00"]  # mini has no weighted runs and no robustness
    assert [path.stem[:2] for path in select_notebooks(load_study("mini"), ["02", "01"])] == [
        *("01", "02")
    ]
    with pytest.raises(TokenshiftError, match="there is no notebook '7'"):
        select_notebooks(load_study("mini"), ["7"])


def test_only_takes_a_list():
    assert spread_lists(["reproduce", "--only", "01", "02", "--fresh"]) == [
        *("reproduce", "--only", "01", "--only", "02", "--fresh")
    ]
    assert spread_lists(["--only", "01", "--only", "02"]) == ["--only", "01", "--only", "02"]
    assert spread_lists(["--only", "01", "--study", "a"]) == ["--only", "01", "--study", "a"]


def test_parameters_reach_the_notebooks_that_have_them(two_notebooks):
    reproduce("mini", parameters={"samples": 1})
    executed = (paths.results("mini") / "notebooks/02_cross_sampling.ipynb").read_text()
    assert "samples = 1 here, in place of the study's samples.cross_sampling" in executed


@pytest.mark.parametrize(
    ("only", "parameters", "message"),
    [
        ((), {"top_q": 1}, "none of these notebooks has a parameter 'top_q'"),
        (("02",), {"top_q": 1}, "notebook 02_cross_sampling has no parameter 'top_q'"),
        ((), {"top_p": 1.5}, "'cross_sampling.top_p' is 1.5"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(
    two_notebooks, only, parameters, message
):
    with pytest.raises(TokenshiftError, match=message):
        reproduce("mini", only=only, parameters=parameters)
    assert not paths.results("mini").exists()


def test_failing_notebook_stops_and_its_part_is_kept(two_notebooks):
    reproduce("mini")
    before = (paths.results("mini") / "notebooks/02_cross_sampling.ipynb").read_text()
    write_notebook(two_notebooks, "02_cross_sampling", "print('so far')", "1 / 0", "print('never')")
    with pytest.raises(NotebookFailed, match=r"In \[5\] .*ZeroDivisionError.*partial") as error:
        reproduce("mini")
    assert "1 / 0" in error.value.traceback
    folder = paths.results("mini") / "notebooks"
    partial = (folder / "02_cross_sampling.partial.ipynb").read_text()
    assert "so far" in partial and "ZeroDivisionError" in partial
    assert (folder / "02_cross_sampling.ipynb").read_text() == before


def test_table_no_longer_made_is_removed(two_notebooks):
    reproduce("mini")
    write_notebook(two_notebooks, "02_cross_sampling", TABLE.replace("numbers", "shares"))
    for file in paths.tables("mini").glob("02_*"):
        os.utime(file, (1, 1))
    reproduce("mini")
    assert {file.stem for file in paths.tables("mini").glob("02_*")} == {"02_shares"}


def test_an_executor_is_refused_before_anything_is_dropped(two_notebooks):
    reproduce("mini", only=["02"])
    paths.records("mini").mkdir()
    with pytest.raises(TokenshiftError, match="there is no executor 'dask'"):
        reproduce("mini", fresh=True, executor="dask")
    assert paths.records("mini").exists()


STOPPED = """import os, time, pathlib
pathlib.Path("kernel").write_text(str(os.getpid()))
time.sleep(900)"""


def test_sigterm_ends_a_run_and_its_kernel_as_an_interrupt_does(mini_root):
    write_notebook(mini_root, "02_cross_sampling", STOPPED)
    run = subprocess.Popen(
        [sys.executable, "-m", "tokenshift_utils", "reproduce", "--study", "mini"],
        stderr=subprocess.PIPE,
        text=True,
    )
    kernel = mini_root / "notebooks/kernel"
    while run.poll() is None and not (kernel.exists() and kernel.read_text()):
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == 2 and "interrupted in notebook 02_cross_sampling" in stderr
    assert not Path(f"/proc/{kernel.read_text()}").exists()


NOTHING_MISSING = """import sys
from tokenshift_utils.run import cli, progress
progress.count_missing = lambda study, given: dict.fromkeys(given, 0)
progress.requests_of = lambda study, given: {}
sys.exit(cli.main(["reproduce", "--study", "mini"]))"""


def run_beside_each_other(root, *cells: str) -> subprocess.Popen:
    """Run two notebooks of a study of which no records lack, on two workers."""
    study = root / "notebooks/studies/mini.yaml"
    study.write_text(study.read_text().replace("workers: 0", "workers: 2"))
    names = "01_divergence_characterization", "02_cross_sampling"
    for name, cell in zip(names, cells, strict=True):
        write_notebook(root, name, cell)
    command = [sys.executable, "-c", NOTHING_MISSING]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


MEETS = """import pathlib, time
pathlib.Path("{here}").touch()
end = time.monotonic() + 300
while not pathlib.Path("{there}").exists():
    assert time.monotonic() < end, "runs alone"
    time.sleep(0.05)
"""


def test_notebooks_without_records_to_compute_run_side_by_side(mini_root):
    one, other = MEETS.format(here="a", there="b"), MEETS.format(here="b", there="a") + TABLE
    run = run_beside_each_other(mini_root, one, other)
    _, stderr = run.communicate(timeout=600)
    assert run.returncode == 0, stderr
    assert "01_divergence_characterization done" in stderr and "02_cross_sampling done" in stderr
    notebooks = json.loads((paths.results("mini") / "manifest.json").read_text())["notebooks"]
    assert [n["tables"] for n in notebooks.values()] == [[], ["02_numbers"]]


def test_sigterm_ends_notebooks_side_by_side(mini_root):
    cells = [STOPPED.replace("kernel", f"kernel-{n}") for n in range(2)]
    run = run_beside_each_other(mini_root, *cells)
    kernels = [mini_root / f"notebooks/kernel-{n}" for n in range(2)]
    while run.poll() is None and not all(k.exists() and k.read_text() for k in kernels):
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == 2 and "interrupted in notebook 0" in stderr
    assert not any(Path(f"/proc/{kernel.read_text()}").exists() for kernel in kernels)


def test_a_notebook_that_stops_ends_the_one_beside_it(mini_root):
    run = run_beside_each_other(mini_root, "1 / 0", STOPPED)
    _, stderr = run.communicate(timeout=600)
    assert run.returncode != 0 and "notebook 01_divergence_characterization stopped" in stderr
    executed = paths.results("mini") / "notebooks/02_cross_sampling"
    assert not executed.with_suffix(".ipynb").exists()  # it would have slept to its end


def papermill(tmp_path, *parameters: str) -> subprocess.CompletedProcess:
    """Run the repository's own notebook 02 under plain Papermill, from a strange directory."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(CHECKOUT / "notebooks/02_cross_sampling.ipynb"),
    ]
    return subprocess.run(
        [*command, str(tmp_path / "out.ipynb"), "--no-progress-bar", *parameters],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )


def test_plain_papermill_refuses_an_unknown_parameter(tmp_path):
    run = papermill(tmp_path, "-p", "study", "smoke", "-p", "treshold", "0.1")
    assert run.returncode != 0
    assert "notebook 02_cross_sampling has no parameter 'treshold': it has study" in run.stderr


def test_plain_papermill_refuses_an_unknown_study(tmp_path):
    run = papermill(tmp_path, "-p", "study", "huge")
    assert run.returncode != 0 and "unknown study 'huge'" in run.stderr
