"""Benchmarks: the same problems from any format, and options in an order that can be found again."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_cache import add_repository, write_data_set

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.store.store import artefact_key
from tokenshift_utils.study.schema import Benchmark
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import load_benchmark, option_order, problems_digest

ROWS = [{"nr": i, "question": f"what is {i}?", "solution": i, "url": "x"} for i in range(3)]
COLUMNS = {"id": "nr", "problem": "question", "answer": "solution"}
CHOICES = [
    {"Record ID": f"r{i}", "Question": f"q{i}", "Correct Answer": "right"}
    | {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
    for i in range(40)
]
OF_CHOICES = {
    "columns": {"id": "Record ID", "problem": "Question", "answer": "Correct Answer"},
    "choices": {"wrong": [f"Incorrect Answer {k}" for k in (1, 2, 3)]},
}


@pytest.fixture
def study(mini_root):
    return load_study("mini")


def with_benchmark(study, **spec):
    benchmark = Benchmark.model_validate({"label": "X"} | spec)
    return study.model_copy(update={"benchmarks": {"x": benchmark}})


def write(file, rows):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub that this test alone sees."""
    import datasets

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path / "hub"


def test_every_format_gives_the_same_problems(study, tmp_path, cache):
    write_data_set(tmp_path / "made", ROWS, "test", None)
    add_repository(cache, "org/sums", tmp_path / "made", "dataset")
    specs = [
        {"path": write(tmp_path / "rows.jsonl", ROWS)},
        {"path": write(tmp_path / "rows.parquet", ROWS)},
        {"hub": "org/sums", "revision": "unpinned", "split": "test"},
    ]
    found = [load_benchmark(with_benchmark(study, columns=COLUMNS, **spec), "x") for spec in specs]
    assert found[0] == found[1] == found[2]
    assert [(p.id, p.problem, p.answer) for p in found[0]][1] == ("1", "what is 1?", "1")


def test_problems_without_ids_are_numbered(study, tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS[::-1])
    spec = {"path": path, "columns": COLUMNS | {"id": None}, "limit": 2}
    problems = load_benchmark(with_benchmark(study, **spec), "x")
    assert [(p.id, p.answer) for p in problems] == [("0", "2"), ("1", "1")]


def test_a_config_of_a_data_set_with_choices(study, tmp_path, cache):
    write_data_set(tmp_path / "made", CHOICES, "train", "gpqa_diamond")
    add_repository(cache, "org/gpqa", tmp_path / "made", "dataset")
    spec = {"hub": "org/gpqa", "revision": "unpinned", "split": "train", "config": "gpqa_diamond"}
    problems = load_benchmark(with_benchmark(study, **spec, **OF_CHOICES, problems=40), "x")
    assert len(problems) == 40 and problems[3].id == "r3"


def test_options_are_permuted_and_the_order_is_known(study, tmp_path):
    path = write(tmp_path / "rows.jsonl", CHOICES)
    spec = with_benchmark(study, path=path, **OF_CHOICES)
    problems = load_benchmark(spec, "x")
    for problem in problems:
        assert problem.options == option_order(study.seed, "x", problem.id, 4)
        assert sorted(problem.options) == [0, 1, 2, 3]
        assert problem.answer == "ABCD"[problem.options.index(0)]
        assert f"({problem.answer}) right\n" in problem.problem + "\n"
        shown = ["right", "wrong 1", "wrong 2", "wrong 3"]
        lines = [f"({'ABCD'[i]}) {shown[k]}" for i, k in enumerate(problem.options)]
        assert "\n".join(lines) in problem.problem
    assert set(Counter(p.answer for p in problems)) == set("ABCD")
    assert len({p.options for p in problems}) > 10
    few = load_benchmark(with_benchmark(study, path=path, **OF_CHOICES, limit=2), "x")
    assert few == problems[:2]  # whatever else is there


def test_every_order_is_as_likely():
    seen = Counter(option_order(7, "x", str(i), 3) for i in range(6000))
    assert len(seen) == 6 and all(900 < count < 1100 for count in seen.values())


def test_the_order_is_part_of_the_key_and_of_the_record(study, tmp_path):
    path = write(tmp_path / "rows.jsonl", CHOICES[:2])
    one = with_benchmark(study, path=path, **OF_CHOICES)
    other = one.model_copy(update={"seed": study.seed + 1})
    problems = load_benchmark(one, "x")
    assert problems != load_benchmark(other, "x")
    swapped = problems[0].__class__(**vars(problems[0]) | {"options": problems[0].options[::-1]})
    assert problems_digest(problems) != problems_digest([swapped, problems[1]])
    keys = {
        artefact_key(Rollouts("base", "x", 1, study_sampling(s)).parts(s)) for s in (one, other)
    }
    assert len(keys) == 2
    frame = fetch(one, Rollouts.of(one, "base", samples=1))
    assert [tuple(o) for o in frame["options"]] == [p.options for p in problems]
    assert fetch(study, Rollouts.of(study, "base", samples=1))["options"].isna().all()


def test_a_chosen_letter_is_judged(study, tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", CHOICES[:8])
    one = with_benchmark(study, path=path, **OF_CHOICES)
    monkeypatch.setattr("tokenshift_utils.tasks.verifier._RULES", {"boxed": lambda text: "(b)"})
    frame = fetch(one, Rollouts.of(one, "base", samples=study.samples.accuracy))
    answers = {p.id: p.answer for p in load_benchmark(one, "x")}
    ended = frame[frame["finish_reason"] == "eos"]
    assert ended["correct"].tolist() == [answers[problem] == "B" for problem in ended["problem"]]
    assert len(ended) and set(frame["answer"]) == {"(b)"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"columns": COLUMNS | {"problem": "text"}}, "row 1 has no 'text'; every problem needs"),
        ({"columns": COLUMNS | {"answer": "key"}}, "has nr, question, solution, url"),
        ({"problems": 96, "columns": COLUMNS}, "has 3 rows where the study says 'problems: 96'"),
        ({"columns": COLUMNS | {"id": "url"}}, "repeats the id 'x'"),
        ({"columns": COLUMNS, "choices": {"wrong": ["w"]}}, "no 'w'"),
    ],
)
def test_what_is_not_as_said_is_refused(change, expected, study, tmp_path):
    spec = {"path": write(tmp_path / "rows.parquet", ROWS)} | change
    with pytest.raises(TokenshiftError, match=expected) as error:
        load_benchmark(with_benchmark(study, **spec), "x")
    assert "rows.parquet" in str(error.value)


def test_unreadable_files_are_refused(study, tmp_path, cache):
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(TokenshiftError, match="bad.parquet can't be read"):
        load_benchmark(with_benchmark(study, path=str(tmp_path / "bad.parquet")), "x")
    with pytest.raises(TokenshiftError, match="there is no file"):
        load_benchmark(with_benchmark(study, path=str(tmp_path / "none.parquet")), "x")
    write_data_set(tmp_path / "made", ROWS, "test", None)
    add_repository(cache, "org/sums2", tmp_path / "made", "dataset")
    spec = {"hub": "org/sums2", "revision": "unpinned", "split": "validation"}
    with pytest.raises(TokenshiftError, match="data set org/sums2 in .* can't be read"):
        load_benchmark(with_benchmark(study, **spec), "x")


# Cells and repeated problems ----------------------------------------------------------------------


def test_verls_layout_is_read(study, tmp_path):
    path = write(tmp_path / "rows.parquet", verl_rows(2, 1))
    columns = {"id": None, "problem": "prompt", "answer": "reward_model"}
    problems = load_benchmark(with_benchmark(study, path=path, columns=columns), "x")
    assert [(p.id, p.problem, p.answer) for p in problems] == [
        ("0", "what is 0?", "0"),
        ("1", "what is 1?", "1"),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": True}, "row 2: 'question' is true or false"),
        ({"question": ["a", "b"]}, "row 2: 'question' is a list of 2"),
        ({"solution": float("nan")}, "row 2: 'solution' is NaN"),
        ({"solution": "  "}, "row 2: 'solution' is blank"),
        ({"solution": {"value": 1}}, "row 2: 'solution' is a record of value"),
        ({"solution": None}, "row 2: 'solution' is empty; fill it"),
        ({"nr": [1, 2]}, "row 2: 'nr' is a list of 2"),
        ({"nr": 0.0}, "row 2 repeats the id '0'"),
        ({"nr": "0"}, "row 2 repeats the id '0'"),
    ],
)
def test_a_cell_is_named_by_row_and_column(change, said, study, tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS[0], ROWS[1] | change])
    with pytest.raises(TokenshiftError, match="rows.jsonl, " + said):
        load_benchmark(with_benchmark(study, path=path, columns=COLUMNS), "x")


@pytest.mark.parametrize("column", ["Correct Answer", "Incorrect Answer 2"])
def test_options_are_cells_too(column, study, tmp_path):
    path = write(tmp_path / "rows.jsonl", [CHOICES[0], CHOICES[1] | {column: False}])
    with pytest.raises(TokenshiftError, match=f"row 2: '{column}' is true or false"):
        load_benchmark(with_benchmark(study, path=path, **OF_CHOICES), "x")


def verl_rows(number, times):
    return [
        {
            "prompt": [{"content": f"what is {i}?", "role": "user"}],
            "reward_model": {"ground_truth": str(i), "style": "rule"},
            "extra_info": {"index": k, "raw_problem": f"what is {i}?"},
        }
        for k in range(times)
        for i in range(number)
    ]


def test_a_problem_in_several_rows_is_refused_or_counts_once(study, tmp_path):
    columns = {"id": None, "problem": "prompt", "answer": "reward_model"}
    once = {"path": write(tmp_path / "once.parquet", verl_rows(3, 1)), "columns": columns}
    spec = {"path": write(tmp_path / "rows.parquet", verl_rows(3, 32)), "columns": columns}
    said = "rows.parquet has the same problem in row 1 and row 4 .and 92 more repeat one.*3 of 96"
    with pytest.raises(TokenshiftError, match=said):
        load_benchmark(with_benchmark(study, **spec), "x")
    spec |= {"duplicates": "drop", "problems": 3}
    expected = load_benchmark(with_benchmark(study, **once), "x")
    assert load_benchmark(with_benchmark(study, **spec), "x") == expected
    with pytest.raises(TokenshiftError, match="96 rows, 3 of them distinct, where the study says"):
        load_benchmark(with_benchmark(study, **spec | {"problems": 96}), "x")


@pytest.mark.parametrize("duplicates", ["refuse", "drop"])
def test_a_problem_with_two_answers_is_refused(duplicates, study, tmp_path):
    again = ROWS[0] | {"nr": 9, "question": " what  is\n0? ", "solution": 5}
    path = write(tmp_path / "rows.jsonl", [*ROWS, again])
    spec = {"path": path, "columns": COLUMNS, "duplicates": duplicates}
    with pytest.raises(TokenshiftError, match="two answers, '0' in row 1 and '5' in row 4"):
        load_benchmark(with_benchmark(study, **spec), "x")


def test_white_space_alone_makes_no_other_problem(study, tmp_path):
    rows = [*ROWS, ROWS[0] | {"nr": 9, "question": " what  is\n0? ", "solution": " 0"}]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(TokenshiftError, match="the same problem in row 1 and row 4,"):
        load_benchmark(with_benchmark(study, path=path, columns=COLUMNS), "x")


def test_one_question_with_other_options_is_another_problem(study, tmp_path):
    rows = [row | {"Question": "Which is right?"} for row in CHOICES[:2]]
    rows[1] |= {"Incorrect Answer 1": "other"}
    spec = {"path": write(tmp_path / "rows.jsonl", rows), **OF_CHOICES}
    assert len(load_benchmark(with_benchmark(study, **spec), "x")) == 2
    shuffled = rows[1] | {"Incorrect Answer 1": "wrong 2", "Incorrect Answer 2": "wrong 1"}
    spec["path"] = write(tmp_path / "again.jsonl", [rows[0], shuffled])
    with pytest.raises(TokenshiftError, match="the same problem in row 1 and row 2"):
        load_benchmark(with_benchmark(study, **spec), "x")
