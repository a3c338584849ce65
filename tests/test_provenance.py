"""From study to figure and back: verify, explain and the store's commands, after a real run."""

import json
import os
import shutil

import pytest
from test_reproduce import write_notebook

from tokenshift_utils import paths
from tokenshift_utils.run.cli import main
from tokenshift_utils.run.provenance import code_digest
from tokenshift_utils.run.reproduce import reproduce
from tokenshift_utils.store.code import ROOT

READS = """from tokenshift_utils import Shifts, fetch
import pandas as pd
shifts = fetch(nb.study, Shifts.of(nb.study, "tuned"))
nb.table(pd.DataFrame({"x": [len(shifts)]}), "evidence", "a number")"""
FIGURE = """import matplotlib.pyplot as plt
fig, ax = plt.subplots()
nb.figure(fig, "empty", alt="nothing")"""


def said(capsys, *arguments) -> tuple[int, str]:
    """(exit code, what was printed) of a command."""
    capsys.readouterr()
    try:
        main(list(map(str, arguments)))
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out + captured.err


@pytest.mark.parametrize("module", ["measures/divergences", "sections/common", "run/cli", "errors"])
def test_the_digest_of_the_code_is_of_every_room(tmp_path, module):
    package = shutil.copytree(
        ROOT, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__")
    )
    file = package / f"{module}.py"
    before, text = code_digest(package), file.read_text()
    assert before == code_digest()
    file.write_text(text + "\n# a remark\n")
    assert code_digest(package) == before
    file.write_text(text + "\nMORE = 1\n")
    assert code_digest(package) != before


def test_a_run_can_be_verified_explained_and_pruned(mini_root, capsys):
    write_notebook(mini_root, "02_cross_sampling", READS, FIGURE)
    write_notebook(mini_root, "00_overview", "print(1)")
    manifest = reproduce("mini")
    run = manifest["notebooks"]["02_cross_sampling"]
    assert {key.split("/")[0] for key in run["records"]} == {"rollouts", "shifts"}
    assert len(run["outputs"]) == 6  # png, pdf; csv, md, tex; the notebook
    assert said(capsys, "verify", "--study", "mini")[0] == 0

    figure = paths.figures("mini") / "02_empty.png"
    code, text = said(capsys, "explain", figure)
    chain = ("02_cross_sampling", "shifts/", "tuned", run["models"]["tuned"][:12], "study mini")
    assert code == 0 and all(link in text for link in chain) and "CHANGED" not in text
    assert text.index("made by") < text.index("from records") < text.index("of models")
    record = next(paths.records("mini").glob("shifts/*/*.parquet"))
    code, text = said(capsys, "explain", record)
    assert code == 0 and "02_cross_sampling" in text and run["models"]["base"][:12] in text
    code, text = said(capsys, "explain", mini_root / "notebooks/studies/mini.yaml")
    assert code == 2 and "is no result of a study" in text

    code, text = said(capsys, "store", "ls")
    assert code == 0 and "shifts of base, tuned on sums" in text and "1 shard" in text
    code, text = said(capsys, "store", "verify")
    assert code == 0 and "match their checksums" in text
    stale = paths.records("mini") / "shifts/0000000000000000"
    stale.mkdir()
    (stale / "key.json").write_text("{")
    for path in (stale / "key.json", stale):
        os.utime(path, (1, 1))
    assert "key.json cannot be read" in said(capsys, "store", "ls")[1]
    code, text = said(capsys, "store", "prune")
    assert code == 0 and "0000000000000000" in text and stale.exists()
    assert said(capsys, "store", "prune", "--yes")[0] == 0
    assert not stale.exists() and record.exists()
    record.write_bytes(b"x" + record.read_bytes()[1:])
    code, text = said(capsys, "store", "verify")
    assert code == 2 and paths.display(record) in text

    # what verify must see: each is put right again
    table = paths.tables("mini") / "02_evidence.csv"
    content = table.read_bytes()
    table.write_bytes(content + b"2\n")
    code, text = said(capsys, "verify", "--study", "mini")
    assert code == 2 and "02_evidence.csv is not what the run made" in text
    assert "00_overview was run before" in text
    assert "CHANGED" in said(capsys, "explain", table)[1]
    table.unlink()
    assert "02_evidence.csv is missing" in said(capsys, "verify", "--study", "mini")[1]
    table.write_bytes(content)
    extra = paths.figures("mini") / "02_other.png"
    extra.write_bytes(b"")
    assert "02_other.png was made by no run" in said(capsys, "verify", "--study", "mini")[1]
    extra.unlink()
    file = paths.results("mini") / "manifest.json"
    whole = file.read_text()
    for part, sentence in (("code", "their code differ"), ("models", "other files of model")):
        edited = json.loads(whole)
        entry = edited["notebooks"]["02_cross_sampling"]
        entry[part] = {"base": "0"} if part == "models" else "0"
        file.write_text(json.dumps(edited))
        code, text = said(capsys, "verify", "--study", "mini")
        assert code == 2 and sentence in text
    study = mini_root / "notebooks/studies/mini.yaml"
    file.write_text(whole)
    study.write_text(study.read_text().replace("seed: ", "seed: 1"))
    code, text = said(capsys, "verify", "--study", "mini")
    assert code == 2 and "another content of study mini" in text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"study": "other", "notebooks": {}}', b"null"]
    + [b'{"study": "mini", "notebooks": {"02_cross_sampling": 3}}']
)  # fmt: skip
def test_a_damaged_manifest_is_one_sentence(content, mini_root, capsys):
    write_notebook(mini_root, "02_cross_sampling", "print(1)")
    file = paths.results("mini") / "manifest.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    for command in (["verify"], ["reproduce", "--only", "02"]):
        code, text = said(capsys, *command, "--study", "mini")
        assert code == 2 and "manifest.json" in text and "delete it" in text


def test_nothing_run_is_said(mini_root, capsys):
    code, text = said(capsys, "verify", "--study", "mini")
    assert code == 2 and "tokenshift reproduce --study mini" in text
    assert "no records yet" in said(capsys, "store", "ls")[1]
