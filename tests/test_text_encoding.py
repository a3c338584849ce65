"""All text is UTF-8, whatever the locale: no file or process is opened with the locale's encoding."""

import ast
import json
import os
import subprocess
import sys

import pytest
from conftest import CHECKOUT

PACKAGE = CHECKOUT / "tokenshift_utils"
TEXT_FILES = {"read_text": 0, "write_text": 1, "TextIOWrapper": 1}  # name: which is the encoding


def locale_bound(source: str) -> list[int]:
    """Lines that open text in the encoding of the locale."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        keys = {key.arg for key in call.keywords}
        if "encoding" in keys or None in keys:
            continue
        if name in TEXT_FILES:
            bound = len(call.args) <= TEXT_FILES[name]
        elif name in ("open", "NamedTemporaryFile", "fdopen"):
            given = [*call.args, *(key.value for key in call.keywords if key.arg == "mode")]
            modes = [a.value for a in given if isinstance(a, ast.Constant)]
            text = any(isinstance(m, str) and set(m) <= set("rwxat+U") for m in modes)
            builtin = isinstance(call.func, ast.Name) and name == "open"
            bare = builtin and len(call.args) == 1 and "mode" not in keys
            method = name == "open" and not builtin and not call.args and not keys
            bound = text or bare or method
        else:
            bound = bool(keys & {"text", "universal_newlines"})
        if bound:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "bound"),
    [
        ("f.read_text()", True),
        ("f.read_text('utf-8')", False),
        ("f.read_text(encoding='utf-8')", False),
        ("f.write_text(x)", True),
        ("f.write_text(x, 'utf-8')", False),
        ("open(f)", True),
        ("open(f, 'w')", True),
        ("open(f, 'rb')", False),
        ("open(f, mode='a')", True),
        ("f.open()", True),
        ("f.open('rb')", False),
        ("f.open(encoding='utf-8', newline='')", False),
        ("policy.open(8)", False),
        ("subprocess.run(x, text=True)", True),
        ("subprocess.run(x, text=True, encoding='utf-8')", False),
    ],
)
def test_the_scan_finds_what_it_is_for(source, bound):
    assert bool(locale_bound(source)) == bound


def test_no_text_is_opened_in_the_encoding_of_the_locale():
    found = {
        str(file.relative_to(CHECKOUT)): lines
        for file in sorted(PACKAGE.rglob("*.py"))
        if (lines := locale_bound(file.read_text(encoding="utf-8")))
    }
    assert not found


def test_an_ascii_locale_changes_nothing(tmp_path):
    """`tokenshift pair` on text of many scripts, where Python would open files as ASCII."""
    (tmp_path / "notebooks/studies").mkdir(parents=True)
    problems = tmp_path / "problems.jsonl"
    texts = ["What is 1+2?\u2028Qu\u2019est-ce ?", "\u4e8c\u52a0\u4e8c \U0001f600"]
    rows = [{"problem": text, "answer": i} for i, text in enumerate(texts)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    problems.write_text(lines, encoding="utf-8-sig")
    models = CHECKOUT / "results/tiny/models"
    arguments = ["--base", models / "base", "--tuned", models / "dapo", "--problems", problems]
    code = (
        "import json, sys\n"
        "from tokenshift_utils.run.cli import main\n"
        "try: main(['pair', *sys.argv[1:], '--name', 'mine'])\n"
        "except SystemExit as end: assert not end.code\n"
        "from tokenshift_utils.tasks.benchmarks import load_benchmark\n"
        "from tokenshift_utils.study.study import load_study\n"
        "print(json.dumps([p.problem for p in load_benchmark(load_study('mine'), 'problems')]))\n"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        encoding="ascii",
        check=False,
        env=os.environ | ascii_only | {"TOKENSHIFT_HOME": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == texts
