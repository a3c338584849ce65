"""How far long work is, as a log shows it: plain lines, of one process and of another."""

import os
import subprocess
import sys

import nbformat
import pytest

from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.run import progress as shown_progress
from tokenshift_utils.run.progress import Shown, count_missing
from tokenshift_utils.store import executor
from tokenshift_utils.store import progress as store_progress
from tokenshift_utils.store.progress import Progress, amount, tell
from tokenshift_utils.study.study import load_study

FIRST, SECOND = "01_divergence_characterization", "02_cross_sampling"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((120, 480, "response", 60), "120 of 480 responses, 2.0/s, 03:00 left"),
        ((5, 6, "run", 300, 2), "5 of 6 runs, 0.6/min, 01:40 left"),
        ((0, 480, "response", 60), "0 of 480 responses in 01:00"),
        ((480, 480, "response", 3700), "480 of 480 responses in 1:01:40"),
        ((2000, 12000, "update", 1000, 2000), "2,000 of 12,000 updates in 16:40"),
    ],
)
def test_amounts(given, text):
    assert amount(*given) == text


def test_a_log_gets_plain_lines_while_work_goes_on(capsys, monkeypatch):
    monkeypatch.setattr(store_progress, "EVERY", 0.01)
    lines: list[str] = []
    with Progress(4, "response", "rollouts of dapo on hard") as progress:
        progress.advance(3)
        while len(lines) < 3:  # nothing is finished meanwhile, and yet it speaks
            lines += capsys.readouterr().err.splitlines()
        progress.say("something else")
    rest = capsys.readouterr().err
    assert all(line.startswith("rollouts of dapo on hard: 3 of 4 responses, ") for line in lines)
    assert "something else" in rest and "\r" not in "".join([*lines, rest])


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4, "response", "rollouts") as progress:
        progress.at(2, total=8)
        progress.now("shifts")
    shown = capsys.readouterr().err
    assert "\r" in shown and "rollouts:" in shown and "shifts:" in shown and "2/8" in shown


def test_work_of_a_kernel_is_seen_by_the_process_that_runs_it(mini_root, capsys):
    study = load_study("mini")
    sources = {name: mini_root / f"notebooks/{name}.ipynb" for name in (FIRST, SECOND)}
    cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_markdown_cell("*")]
    for source in sources.values():
        nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    planned = count_missing(study, {FIRST: {}, SECOND: {}})
    own = 3 * study.samples.accuracy + 3 * study.samples.shifts
    assert planned[FIRST] == own < planned[SECOND]  # what the first one leaves is not asked again
    whole = sum(planned.values())
    shown = Shown(planned)
    with shown.notebook(sources[FIRST]) as said:
        first = shown.line(said)
        tell(cell=2)
        executor.run(study, Rollouts.of(study, "tuned"))
        between = shown.line(said)
        with Progress(3, "response", "shifts of base, tuned on sums") as progress:
            progress.advance(2)
            during = shown.line(said)
    assert first.startswith(f"{FIRST} (1 of 2), cell 0 of 2: 0 of {own} responses in ")
    assert f"whole run: 0 of 2 notebooks, 0 of {whole} responses in " in first
    assert f"cell 2 of 2: {own - 6} of {own} responses, " in between
    assert f"2 of 2, shifts of base, tuned on sums: {own - 4} of {own} responses, " in during
    with shown.notebook(sources[SECOND]) as said:
        executor.run(study, Shifts.of(study, "tuned"))
        second = shown.line(said)
    assert f"{SECOND} (2 of 2), cell 0 of 2: 6 of " in second
    assert "whole run: 1 of 2 notebooks, " in second and " left" in second
    assert f"{FIRST} done in " in capsys.readouterr().err


def test_more_than_was_planned_is_counted(mini_root):
    source = mini_root / f"notebooks/{SECOND}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), source)
    with (shown := Shown({SECOND: 2})).notebook(source) as said:
        with Progress(9, "response") as progress:
            progress.advance(4)
        line = shown.line(said)
    assert line.count("4 of 9 responses") == 2


def test_what_the_store_has_is_not_planned(mini_root):
    study = load_study("mini")
    executor.run(study, Shifts.of(study, "tuned"))
    assert count_missing(study, {FIRST: {}}) == {FIRST: 0}
    assert count_missing(study, {FIRST: {"samples": 1}}) == {FIRST: 3}


def test_reproduce_speaks_plainly_in_a_log(mini_root):
    ask = "fetch(load_study(study), Shifts.of(load_study(study), 'tuned'))"
    sources = (
        "study = 'mini'",
        "from tokenshift_utils import Shifts, fetch, load_study",
        f"x = {ask}",
    )
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})
    nbformat.write(notebook, mini_root / f"notebooks/{FIRST}.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "tokenshift_utils", "reproduce", "--study", "mini"],
        capture_output=True,
        check=False,
        env=os.environ,
    )
    shown = done.stderr.decode()
    assert done.returncode == 0, shown
    assert "\r" not in shown and "%|" not in shown
    assert f"{FIRST} (1 of 1), cell 0 of 4: 0 of " in shown
    assert shown.rstrip().splitlines()[-1].startswith(f"{FIRST} done in ")
    executed = nbformat.read(mini_root / f"results/mini/notebooks/{FIRST}.ipynb", 4)
    assert not [o for cell in executed.cells for o in cell.get("outputs", ())]


def test_the_interval_is_half_a_minute():
    assert store_progress.EVERY == shown_progress.EVERY == 30
