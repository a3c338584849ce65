"""A study of any pair: what it writes runs, and what can't be compared is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import CHECKOUT, WORDS, write_model, write_tokenizer
from test_bad_input import files

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.run.checks import check_answers, check_inputs
from tokenshift_utils.run.cli import main
from tokenshift_utils.run.pair import write_pair
from tokenshift_utils.run.reproduce import reproduce
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import Problem, load_benchmark

MODELS = CHECKOUT / "results/tiny/models"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty root of its own."""
    (tmp_path / "root/notebooks/studies").mkdir(parents=True)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path / "root"))
    return tmp_path / "root"


def write_problems(file: Path, number: int = 3, **more) -> Path:
    rows = [
        {"problem": f"question: what is {i}+1?\n", "answer": i + 1} | more for i in range(number)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_pair_of_shipped_models_is_a_study(root, capsys):
    problems = write_problems(root / "my sums.jsonl")
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                *("pair", "--base", str(MODELS / "base"), "--tuned", str(MODELS / "dapo")),
                *("--problems", str(problems)),
            ]
        )
    assert (
        stopped.value.code == 0
        and "tokenshift reproduce --study dapo-base" in capsys.readouterr().out
    )
    study = load_study("dapo-base")
    assert study.sampling.max_new_tokens < 512  # what fits behind the longest prompt
    assert study.benchmarks["my-sums"].path == "my sums.jsonl"  # inside the root
    assert study.models["tuned"].path == str(MODELS / "dapo")  # outside it
    frame = fetch(study, Rollouts.of(study, "tuned", samples=1))
    assert frame["problem"].tolist() == ["0", "1", "2"] and len(frame["text"][0]) > 0


@pytest.mark.parametrize(
    ("cores", "free", "gpu", "workers"),
    [(2, 16, False, 2), (64, 64, False, 8), (1, 16, False, 0), (8, 3, False, 0), (8, 64, True, 0)],
)
def test_processes_are_as_many_as_the_machine_has_room_for(
    root, monkeypatch, cores, free, gpu, workers
):
    memory = psutil.virtual_memory()._replace(available=free * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    problems = write_problems(root / "twelve.jsonl", 12)
    study = load_study(write_pair(MODELS / "base", MODELS / "dapo", problems, "mine"))
    assert study.workers == workers
    assert study.problems_per_shard == {0: 6, 2: 6, 8: 2}[workers]  # all have as many shards


def test_a_relative_directory_is_found_from_anywhere(root, monkeypatch):
    shutil.copytree(MODELS / "base", root.parent / "here/base")
    monkeypatch.chdir(root.parent / "here")
    problems = write_problems(root.parent / "here/p.jsonl", id=None)
    problems.write_text(problems.read_text().replace('"id": null', '"x": 1'))
    write_pair(Path("base"), MODELS / "dapo", Path("p.jsonl"), "mine")
    monkeypatch.chdir("/")
    check_inputs(load_study("mine"))


def test_a_study_of_that_name_stays(root):
    problems = write_problems(root / "p.jsonl")
    file = write_pair(MODELS / "base", MODELS / "dapo", problems, "mine")
    file.write_text("# mine\n")
    with pytest.raises(TokenshiftError, match="there is a study notebooks/studies/mine.yaml"):
        write_pair(MODELS / "base", MODELS / "simplerl", problems, "mine")
    assert file.read_text() == "# mine\n"


def test_verls_files_give_each_problem_once(root, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "prompt": [{"content": f"question: what is {i}+1?\n", "role": "user"}],
            "reward_model": {"ground_truth": str(i + 1), "style": "rule"},
        }
        for _ in range(32)
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "aime-2024.parquet")
    write_pair(MODELS / "base", MODELS / "dapo", root / "aime-2024.parquet", "mine")
    said = "aime-2024.parquet has 3 problems in 96 rows; each counts once"
    assert said in capsys.readouterr().err
    study = load_study("mine")
    problems = load_benchmark(study, "aime-2024")
    assert [p.answer for p in problems] == ["1", "2", "3"]
    assert problems[0].problem == "question: what is 0+1?\n"


DAPO = "Solve it. The last line must be of the form Answer: $Answer.\n\nwhat is 1+2?\n"


@pytest.mark.parametrize(
    ("problem", "verifier", "said"),
    [
        (DAPO, "answer_line", "by the verifier answer_line, as the problems ask"),
        ("what is 1+2? Answer: inside \\boxed{}", "boxed", ""),
        ("question: what is 1+2?\nAnswer: ", "boxed", ""),
        ("what is 1+2? The final answer goes after ####", "boxed", "behind '####', which no"),
    ],
)
def test_answers_are_found_as_the_problems_ask(root, capsys, problem, verifier, said):
    file = root / "asked.jsonl"
    file.write_text(json.dumps({"problem": problem, "answer": 3}) + "\n", encoding="utf-8")
    write_pair(MODELS / "base", MODELS / "dapo", file, "mine")
    assert load_study("mine").verifier == verifier
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + bool(said) and said in lines[0]


@pytest.mark.parametrize(
    "name", ["\U0001f600 \u4e8c", 'it\'s {x}: #1 \\ "q"', "a\u2028b", "a\nb", "...."]
)
def test_any_file_name_stands_in_the_study(root, name):
    problems = write_problems(root / f"{name}.jsonl")
    write_pair(MODELS / "base", MODELS / "dapo", problems, "mine")
    study = load_study("mine")
    (benchmark,) = study.benchmarks
    assert study.benchmark_path(benchmark) == problems
    assert len(load_benchmark(study, benchmark)) == 3


def other_words(tuned, problems):
    words = [*WORDS]
    words[10], words[11] = words[11], words[10]
    write_tokenizer(tuned, words)


def another_end(tuned, problems):
    for name in ("config.json", "generation_config.json"):
        edit(tuned / name, eos_token_id=WORDS.index("<pad>"))
    edit(tuned / "tokenizer_config.json", eos_token="<pad>")


def more_words(tuned, problems):
    """A vocabulary that was padded to another size."""
    tokenizer = {f.name: f.read_bytes() for f in tuned.glob("token*")}
    write_model(tuned, words=[*WORDS, " indeed"])
    for name, content in tokenizer.items():
        (tuned / name).write_bytes(content)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


REFUSED = {
    "another tokenizer": (other_words, "differ in their vocabulary"),
    "no common end": (another_end, "end a response on different tokens"),
    "another size of vocabulary": (more_words, "give probabilities to 36 and 37 tokens"),
    "no problems": (lambda tuned, problems: problems.write_text(""), "is empty"),
    "no file of problems": (lambda tuned, problems: problems.unlink(), "there is no file"),
    "no answers": (lambda t, problems: problems.write_text('{"problem": "x"}\n'), "no 'answer'"),
    "two answers": (
        lambda tuned, problems: problems.write_text(
            '{"problem": "x", "answer": 1}\n{"problem": "x", "answer": 2}\n'
        ),
        "has one problem with two answers",
    ),
    "an answer of GSM8K": (
        lambda tuned, problems: problems.write_text(
            json.dumps({"problem": "x", "answer": "1 and 2 are <<1+2=3>>3.\n#### 3"}) + "\n"
        ),
        "problem '0' of benchmark p is a whole solution with its final answer behind '####'",
    ),
    "a solution of MATH": (
        lambda tuned, problems: problems.write_text(
            json.dumps({"problem": "x", "answer": "Add: it is $\\boxed{3}$."}) + "\n"
        ),
        "problem '0' of benchmark p is a whole solution with its final answer in a box",
    ),
    "no model": (lambda tuned, problems: shutil.rmtree(tuned), "there is no model directory"),
    "no weights": (
        lambda tuned, problems: (tuned / "model.safetensors").unlink(),
        "has no *.safetensors",
    ),
    "a problem too long": (
        lambda tuned, problems: problems.write_text(
            json.dumps({"problem": "7" * 300, "answer": 1}) + "\n"
        ),
        "the longest problem has 300 tokens",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cant_be_compared_is_refused_and_leaves_nothing(case, root, tiny_pair, capsys):
    damage, expected = REFUSED[case]
    shutil.copytree(tiny_pair.tuned, root / "tuned")
    problems = write_problems(root / "p.jsonl")
    damage(root / "tuned", problems)
    before = files(root)
    arguments = {"base": tiny_pair.base, "tuned": root / "tuned", "problems": problems}
    with pytest.raises(SystemExit) as stopped:
        main(["pair", *(part for k, v in arguments.items() for part in (f"--{k}", str(v)))])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and expected in lines[0]
    assert files(root) == before


@pytest.mark.parametrize("answer", ["3/4", "1 or 2", "..."])
def test_an_answer_that_the_verifier_cannot_read_is_refused(answer):
    rows = [Problem("p1", "x", "12 m", "the_answer_is"), Problem("p2", "x", answer, "boxed")]
    check_answers("mine", rows)
    choice = Problem("p3", "x", "B", "the_answer_is", options=(1, 0))
    with pytest.raises(
        TokenshiftError, match="'p2' of benchmark mine: the answer '.*the_answer_is"
    ):
        check_answers("mine", [choice, replace(rows[1], verifier="the_answer_is")])


def test_a_model_beside_itself_is_said(root, tmp_path, capsys):
    problems = write_problems(root / "p.jsonl")
    write_pair(MODELS / "base", MODELS / "base", problems, "mine")
    assert "have the same weights, so nothing can differ" in capsys.readouterr().err


def test_a_bad_name_is_refused(root):
    problems = write_problems(root / "p.jsonl")
    for name in ("a b", "../x", "a/b", "a\0b", "-x", "x\n"):
        with pytest.raises(TokenshiftError, match="--name is .*: it must be made of letters"):
            write_pair(MODELS / "base", MODELS / "dapo", problems, name)
    assert not list(paths.studies().iterdir())


@pytest.mark.slow
def test_all_notebooks_run_on_a_pair(root, capsys):
    """End to end: two shipped models, some problems, every notebook that is for such a study."""
    shutil.copytree(CHECKOUT / "notebooks", root / "notebooks", dirs_exist_ok=True)
    rows = (CHECKOUT / "results/tiny/benchmarks/medium.jsonl").read_text().splitlines()[:4]
    (root / "few.jsonl").write_text("\n".join(rows) + "\n")
    file = write_pair(MODELS / "base", MODELS / "dapo", root / "few.jsonl", "mine")
    few = "samples: {accuracy: 4, controls: 4, shifts: 2, checkpoints: 2, cross_sampling: 2}"
    text = file.read_text()
    file.write_text(
        text.replace(next(x for x in text.splitlines() if x.startswith("samples:")), few)
    )
    manifest = reproduce("mine")
    assert [name[:2] for name in manifest["notebooks"]] == ["00", "01", "02", "03"]
    said = capsys.readouterr().err
    assert "left out: study mine has no 'training' section, so notebook 04_weighted_obj" in said
    assert "left out: study mine has no 'robustness' section, so notebook 05_robustness" in said
    claims = pd.read_csv(root / "results/mine/tables/00_claims.csv")
    assert len(claims) and len(pd.read_csv(root / "results/mine/tables/02_curves.csv"))


@pytest.mark.parametrize(
    ("problem", "more", "length", "why"),
    [
        ("three plus four", {}, 512, "in plain words"),
        ("Find $x$ in $x^2 = 4$", {}, 8000, "LaTeX"),
        ("A pen costs $3 and a book $4", {}, 512, "in plain words"),
        ("three plus four", {"solution": "so it is so it is"}, 64, "the longest solution"),
        ("three plus four", {"extra_info": {"answer": "it is " * 100}}, 832, "longest solution"),
        ("three plus four", {"extra_info": {"answer": "7"}}, 512, "in plain words"),
    ],
)
def test_responses_get_the_length_that_such_problems_need(root, capsys, problem, more, length, why):
    models = root / "models"
    for name in ("base", "dapo"):  # with contexts that bound nothing
        shutil.copytree(MODELS / name, models / name)
        config = json.loads((models / name / "config.json").read_text())
        config["max_position_embeddings"] = 32768
        (models / name / "config.json").write_text(json.dumps(config))
    rows = [{"id": i, "problem": f"{problem} {i}", "answer": "7", **more} for i in range(3)]
    (root / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = write_pair(models / "base", models / "dapo", root / "p.jsonl", "mine")
    assert load_study("mine").sampling.max_new_tokens == length
    assert why in capsys.readouterr().err and why in file.read_text()
