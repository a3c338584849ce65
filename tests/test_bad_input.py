"""A user's mistake, at the command line: one clear sentence, exit code 2, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import WORDS, write_tokenizer
from safetensors.torch import load_file, save_file
from test_reproduce import write_notebook

from tokenshift_utils.run.cli import main


@pytest.fixture
def root(mini_root, tiny_pair):
    """A root with one notebook, and copies of the pair's models that a test may damage."""
    write_notebook(mini_root, "02_cross_sampling", "print('ran')")
    for name in ("base", "tuned"):
        shutil.copytree(getattr(tiny_pair, name), mini_root / name)
    edit(mini_root, lambda study: study["models"]["base"].update(path="base"))
    edit(mini_root, lambda study: study["models"]["tuned"].update(path="tuned"))
    return mini_root


def edit(root: Path, change) -> None:
    file = root / "notebooks/studies/mini.yaml"
    study = yaml.safe_load(file.read_text())
    change(study)
    file.write_text(yaml.safe_dump(study, sort_keys=False))


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def refusal(root: Path, capsys, *arguments: str) -> str:
    """Run a command that must be refused; returns its sentence."""
    before = files(root)
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == ""
    lines = [
        line
        for line in captured.err.strip().splitlines()
        if "%|" not in line and not line.startswith("shifts:")
    ]  # no progress
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 600
    assert files(root) == before
    return lines[0]


def cut_weights(root):
    file = root / "tuned/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_tokenizer(root):
    for file in (root / "tuned").glob("tokenizer*"):
        file.unlink()


def other_words(root):
    words = [*WORDS]
    words[10], words[11] = words[11], words[10]
    write_tokenizer(root / "tuned", words)


def ids_beyond_the_model(root):
    words = [*WORDS, " indeed"]
    for name in ("base", "tuned"):
        write_tokenizer(root / name, words)


def changed_round_trip(root):
    """A decoder that puts spaces between tokens: what a word-level tokenizer has by default."""
    for name in ("base", "tuned"):
        file = root / name / "tokenizer.json"
        content = json.loads(file.read_text()) | {"decoder": None}
        content["pre_tokenizer"]["behavior"] = "Removed"
        file.write_text(json.dumps(content))


DAMAGE = {
    "missing model": (lambda root: shutil.rmtree(root / "tuned"), "there is no model directory"),
    "weights cut short": (cut_weights, "are damaged"),
    "no weights": (lambda root: (root / "tuned/model.safetensors").unlink(), "incomplete"),
    "damaged configuration": (
        lambda root: (root / "tuned/config.json").write_text("{"),
        "config.json cannot be read",
    ),
    "no tokenizer": (drop_tokenizer, "no tokenizer"),
    "another tokenizer": (other_words, "differ in their vocabulary"),
    "ids beyond the model": (ids_beyond_the_model, "' indeed'"),
    "round trip changes text": (changed_round_trip, "encoding and decoding"),
    "empty benchmark": (lambda root: (root / "benchmarks/sums.jsonl").write_text(""), "is empty"),
    "missing benchmark": (lambda root: (root / "benchmarks/sums.jsonl").unlink(), "no file"),
    "benchmark without answers": (
        lambda root: (root / "benchmarks/sums.jsonl").write_text('{"id": 1, "problem": "x"}\n'),
        "no 'answer'",
    ),
    "unknown key": (lambda root: edit(root, lambda s: s.update(sampler=1)), "key 'sampler'"),
    "top-p out of range": (
        lambda root: edit(root, lambda s: s["sampling"].update(top_p=1.2)),
        "'sampling.top_p' is 1.2",
    ),
    "a rule of the explorer that is none": (
        lambda root: edit(root, lambda s: s.update(explorer={"rules": ["js", "jss"]})),
        "'explorer.rules' of study mini names 'jss': the rules are js,",
    ),
    "a name that the hub cannot have": (
        lambda root: edit(
            root,
            lambda s: s["models"].update(
                tuned={"hub": "a/b/c", "revision": "main", "label": "T", "kind": "rl"}
            ),
        ),
        "'hub' is 'a/b/c', which names no repository",
    ),
    "temperature out of range": (
        lambda root: edit(root, lambda s: s["sampling"].update(temperature=0)),
        "'sampling.temperature' is 0",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_reproduce_refuses(case, root, capsys):
    damage, expected = DAMAGE[case]
    damage(root)
    assert expected in refusal(root, capsys, "reproduce", "--study", "mini")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--study", "huge"], "unknown study 'huge'"),
        (["--study", "nowhere/huge.yaml"], "unknown study"),
        (["--study", "mini", "--only", "02", "77"], "there is no notebook '77'"),
        (["--study", "mini", "--parameter", "top_q=1"], "no parameter 'top_q'"),
        (["--study", "mini", "-p", "top_p=1.5"], "'cross_sampling.top_p' is 1.5"),
        (["--study", "mini", "-p", "top_p"], "NAME=VALUE"),
        (["--study", "mini", "-p", "top_p=["], "can't be read"),
    ],
)
def test_reproduce_refuses_arguments(arguments, expected, root, capsys):
    assert expected in refusal(root, capsys, "reproduce", *arguments)


def test_train_refuses_models_where_arms_are_trained(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--study", "smollm2", "--only", "dapo"])
    assert stopped.value.code == 2
    assert "trains by arm: give --arm in place of --only" in capsys.readouterr().err


def test_train_refuses_a_study_without_recipes(root, capsys):
    assert "mini" in refusal(root, capsys, "train", "--study", "mini")


def shifts(root: Path, **options) -> list[str]:
    given = {
        "base": root / "base",
        "tuned": root / "tuned",
        "responses": root / "responses.jsonl",
        "out": root / "out.parquet",
    } | options
    return [
        "shifts",
        *(str(part) for name, value in given.items() for part in (f"--{name}", value)),
    ]


@pytest.fixture
def responses(root):
    row = {"prompt": "question: what is 1+2?\n", "response": " so the answer is \\boxed{3}"}
    (root / "responses.jsonl").write_text(json.dumps(row) + "\n")
    return root / "responses.jsonl"


OF_A_MODEL = [case for case in DAMAGE if DAMAGE[case][0].__name__ != "<lambda>"]


@pytest.mark.parametrize("case", [*OF_A_MODEL, "missing model", "damaged configuration"])
def test_shifts_refuses(case, root, responses, capsys):
    DAMAGE[case][0](root)
    sentence = refusal(root, capsys, *shifts(root))
    assert str(root / "tuned") in sentence or str(root / "base") in sentence


@pytest.mark.parametrize("text", ["", "not json\n", '{"prompt": "x"}\n', "[1]\n"])
def test_shifts_refuses_bad_responses(text, root, responses, capsys):
    responses.write_text(text)
    assert "responses.jsonl" in refusal(root, capsys, *shifts(root))


def spoil_weights(root):
    """Make every logit NaN, in files that are otherwise whole."""
    weights = load_file(root / "tuned/model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, root / "tuned/model.safetensors", metadata={"format": "pt"})


def test_shifts_refuses_nan_logits(root, responses, capsys):
    spoil_weights(root)
    assert "NaN" in refusal(root, capsys, *shifts(root))


def test_reproduce_refuses_nan_logits_in_one_sentence(root, capsys):
    spoil_weights(root)
    call = "from tokenshift_utils import Rollouts, fetch\nfetch(nb.study, Rollouts.of(nb.study, 'tuned'))"
    write_notebook(root, "02_cross_sampling", call)
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "--study", "mini"])
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert sentence.startswith("error: notebook 02_cross_sampling stopped at") and "NaN" in sentence
    assert not list(root.rglob("*.parquet"))


def test_missing_option_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["shifts"])
    assert stopped.value.code == 2 and "--base" in capsys.readouterr().err


def test_help_is_fast_because_heavy_imports_wait():
    code = (
        "import sys, tokenshift_utils.run.cli\n"
        "print([m for m in ('torch', 'transformers', 'papermill', 'pandas') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert run.stdout.strip() == "[]"


def test_mistake_has_no_traceback_as_a_process(tmp_path):
    run = subprocess.run(
        [Path(sys.executable).parent / "tokenshift", "reproduce", "--study", "huge"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: unknown study 'huge'") and run.stderr.count("\n") == 1
