"""The guide: its examples of adding things are followed to the letter, and its names exist."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import CHECKOUT

GUIDE = CHECKOUT / "notebooks/guide"
# A block whose first line is "# FILE, WHERE" is something to write; others show how to use it.
BLOCK = re.compile(r"```(?:python|yaml)\n# ([\w./-]+\.(?:py|yaml)), ([^\n]+)\n(.*?)```", re.DOTALL)


def put(text: str, where: str, block: str) -> str:
    """A file's text with a block of the guide in the place that the guide says."""
    if where == "at the end":
        return text + block
    lines = text.splitlines(keepends=True)
    verb, _, what = where.partition(" ")
    if verb == "inside":  # before the line that closes NAME = ( or {
        [start] = [i for i, line in enumerate(lines) if re.match(rf"{what}\b.*= ?[({{\[]$", line)]
        place = next(i for i in range(start, len(lines)) if re.match(r"[)}\]]", lines[i]))
    else:
        assert verb in ("above", "below"), where
        [place] = [i for i, line in enumerate(lines) if line.strip().startswith(what)]
        place += verb == "below"
    return "".join([*lines[:place], block, *lines[place:]])


@pytest.fixture
def added(mini_root, tmp_path):
    """A copy of the package in which everything was added as the page says, and the study file."""
    copied = tmp_path / "copied"
    package, compiled = CHECKOUT / "tokenshift_utils", shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, copied / "tokenshift_utils", ignore=compiled)
    blocks = BLOCK.findall((GUIDE / "adding.md").read_text(encoding="utf-8"))
    for name, where, block in blocks:
        file = (copied if name.startswith("tokenshift_utils") else mini_root) / name
        if where == "with these keys":
            study = yaml.safe_load(file.read_text())
            for section, keys in yaml.safe_load(block).items():
                study[section] |= keys
            file.write_text(yaml.safe_dump(study, sort_keys=False))
        elif where == "a new file":
            file.write_text(block)
        else:
            file.write_text(put(file.read_text(), where, block))
    assert len(blocks) == 12
    return copied


def run(copied, code: str) -> str:
    """What Python code prints with the changed package."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copied,
        env=os.environ | {"PYTHONPATH": str(copied)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


USE = """
import numpy as np
from tokenshift_utils import CrossSampling, Rollouts, Rule, Shifts, fetch, load_study
from tokenshift_utils.run.data_dictionary import render_dictionary
from tokenshift_utils.sections.cross_sampling.settings import rule_settings

study = load_study("mini")

# the measure: H^2 <= TV <= H sqrt(2 - H^2) (Le Cam), where H is a column as any other
shifts = fetch(study, Shifts.of(study, "tuned"), columns=["hellinger_full", "tv_full"])
h, tv = (shifts[name].to_numpy(dtype=float) for name in ("hellinger_full", "tv_full"))
assert len(h) and h.max() > 0.01
assert (h**2 <= tv + 1e-5).all() and (tv <= h * np.sqrt(2 - h**2) + 1e-5).all()
assert "`hellinger_full`" in render_dictionary()

# the rule: fires where its value is above the threshold, and notebook 02 has it
mixed = CrossSampling.of(study, "base", "tuned", Rule("hellinger", 0.05))
runs, switches = fetch(study, mixed), fetch(study, mixed, "switches")
assert runs["n_switched"].sum() == len(switches) > 0
never = fetch(study, CrossSampling.of(study, "base", "tuned", Rule("hellinger", 1.0)))
assert never["n_switched"].sum() == 0
assert {s.level for s in rule_settings(study) if s.rule == "hellinger"} == {0.05, 0.2}

# the backend: samples, scores and mixes; its records are others than the transformers backend's
for backend in ("bigram", "own_backend"):
    other = study.with_overrides(backend=backend)
    responses = fetch(other, Rollouts.of(other, "tuned"))
    assert len(responses) and (responses["n_tokens"] <= 24).all()
    assert fetch(other, Shifts.of(other, "tuned"))["js"].between(0, np.log(2)).all()
    both = fetch(other, CrossSampling.of(other, "base", "tuned", Rule("always")))
    alone = {tuple(ids) for ids in responses["response_ids"]}
    assert {tuple(ids) for ids in both["response_ids"]} <= alone
plain = fetch(study, Rollouts.of(study, "tuned"))
assert not plain["text"].equals(responses["text"])

# the claim: measured by its section, judged with all others
from tokenshift_utils.sections.mechanics import numbers, records
from tokenshift_utils.sections.overview import claims_table

found, _ = numbers.section_evidence(study, *records.mechanics_shifts(study)[:2])
table = claims_table(study, found).set_index("claim")
print(table.loc["3-rank5", "subject"], "|", table.loc["3-rank5", "criterion"])
print(table.loc["3-rank5", "verdict"], "|", table.loc["3-rank5", "measured"])

# the notebook
from tokenshift_utils.run.reproduce import reproduce
reproduce("mini", ["06"])
"""


def test_everything_can_be_added_as_the_guide_says(added, mini_root):
    (added / "own_backend.py").write_text((added / "tokenshift_utils/models/bigram.py").read_text())
    notebook = mini_root / "notebooks/06_example.py"
    sync = [sys.executable, "-m", "jupytext", "--to", "ipynb", str(notebook)]
    subprocess.run(sync, check=True, capture_output=True)
    said = run(added, USE).splitlines()
    assert said[0] == "tuned | share with RL's top-1 within base's top 5: above 0.95"
    verdict, _, measured = said[1].partition(" | ")
    assert verdict in ("supported", "not supported", "undecided") and re.match(
        r"[\d.]+ \[", measured
    )
    assert "hellinger full" in (mini_root / "results/mini/tables/06_hellinger.md").read_text()


def test_a_backend_that_is_not_there_is_said(mini_root):
    from tokenshift_utils.errors import TokenshiftError
    from tokenshift_utils.run.checks import check_inputs
    from tokenshift_utils.study.study import load_study

    study = load_study("mini")
    for name in ("vlm", "no_package.engine", "tokenshift_utils.nothing"):
        with pytest.raises(
            TokenshiftError, match=f"'{name}', which is neither one of transformers"
        ):
            check_inputs(study.with_overrides(backend=name))
    with pytest.raises(TokenshiftError, match="'backend'"):
        study.with_overrides(backend="two words")


def test_a_module_without_load_is_no_backend(mini_root, monkeypatch):
    from tokenshift_utils.errors import TokenshiftError
    from tokenshift_utils.models.load import load_policy
    from tokenshift_utils.study.study import load_study

    (mini_root / "empty_engine.py").write_text("")
    monkeypatch.syspath_prepend(str(mini_root))
    with pytest.raises(TokenshiftError, match="has no function 'load'"):
        load_policy(load_study("mini").with_overrides(backend="empty_engine"), "base")


def test_a_change_of_a_backend_outside_the_package_makes_new_keys(mini_root, monkeypatch):
    from tokenshift_utils.models.load import backend_code
    from tokenshift_utils.study.study import load_study

    package = mini_root / "own_engines"
    package.mkdir()
    for name in ("__init__", "engine", "parts"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(mini_root))
    study = load_study("mini").with_overrides(backend="own_engines.engine")
    before = backend_code(study)
    (package / "parts.py").write_text("# a comment")
    assert backend_code(study) == before
    (package / "parts.py").write_text("CHANGED = True")
    assert backend_code(study) != before


def test_every_name_in_methods_is_in_the_file_beside_it():
    """A row's last cell names functions, or columns of records, and links their file; where it
    links none the file is that of the row above or of the table's head."""
    page = (GUIDE / "methods.md").read_text(encoding="utf-8")
    columns = ("measures/table.py", "store/columns.py")
    documented = "".join((CHECKOUT / "tokenshift_utils" / name).read_text() for name in columns)
    checked, code = 0, ""
    for row in re.findall(r"^\| .+$", page, flags=re.MULTILINE):
        cell = row.rsplit("|", 2)[-2]
        if linked := re.findall(r"\]\(([^)]+\.py)\)", cell):
            code = "".join((GUIDE / file).read_text(encoding="utf-8") for file in linked)
        for name in re.findall(r"`(?:\w+\.)?(\w+)(?:\([^`]*\))?`", cell):
            known = rf"(def|class) {name}\b|\"{name}\"|^\[?{name}\]? "
            assert re.search(known, code + documented, re.MULTILINE), name
            checked += 1
    assert checked > 25
