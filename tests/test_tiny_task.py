"""The embedded task: problems, corpus, demonstrations and tokenizer."""

import itertools
import random
import re

import pytest
from transformers import AutoTokenizer

from tokenshift_utils.training.tiny import corpus, demonstrations, recipes, supervised
from tokenshift_utils.training.tiny.problems import (
    BENCHMARK_SIZE,
    TIERS,
    ArithmeticProblem,
    benchmark,
    chain_values,
    held_out_expressions,
    mentions_held_out,
    sample_problem,
    training_problems,
)
from tokenshift_utils.training.tiny.tokenizer import build_tokenizer

BOXED = re.compile(r"\\boxed\{(-?\d+)\}")


@pytest.mark.parametrize("tier", TIERS)
def test_answers_agree_with_python(tier):
    rng = random.Random(0)
    for _ in range(300):
        problem = sample_problem(tier, rng)
        values = chain_values(problem.numbers, problem.operators)
        assert problem.answer == eval(problem.expression)
        assert all(0 <= value <= 99 for value in values)


def test_benchmarks_are_distinct_and_fixed():
    expressions = [p.expression for tier in TIERS for p in benchmark(tier)]
    assert len(expressions) == len(set(expressions)) == BENCHMARK_SIZE * len(TIERS)
    assert held_out_expressions() == set(expressions)


def test_held_out_expressions_are_found_wherever_they_stand():
    expression = benchmark("hard")[0].expression
    assert mentions_held_out(f" this leaves {expression}.\n so")
    assert not mentions_held_out(f" this leaves 1+{expression}.")  # part of another problem


@pytest.mark.parametrize("style", ["base", "sft-far", "sft-near"])
def test_no_evaluation_problem_in_training_documents(style):
    recipe = {"base": recipes.TINY.base, **recipes.TINY.sft}[style]
    documents = itertools.islice(supervised.documents(recipe, style, seed=3), 3000)
    assert not any(mentions_held_out(prompt + text) for prompt, text in documents)


def test_no_evaluation_problem_among_training_problems():
    mix = {"easy": 1.0}  # the tier with the fewest problems, where collisions are likely
    drawn = list(itertools.islice(training_problems(mix, random.Random(0)), 20_000))
    assert not held_out_expressions() & {problem.expression for problem in drawn}


@pytest.mark.parametrize("write", [demonstrations.write_far, demonstrations.write_near])
def test_demonstrations_are_correct(write):
    rng = random.Random(1)
    for tier in TIERS:
        for _ in range(200):
            problem = sample_problem(tier, rng)
            assert BOXED.findall(write(problem, rng)) == [str(problem.answer)]


def test_better_authors_are_right_more_often():
    rng = random.Random(2)
    problems = [sample_problem("medium", rng) for _ in range(400)]
    share = {
        author: sum(
            BOXED.findall(corpus.write_solution(p, rng, author)) == [str(p.answer)]
            for p in problems
        )
        / len(problems)
        for author in corpus.AUTHORS
    }
    assert share["careful"] > 0.7
    assert 0.35 > share["average"] > share["sloppy"]


def test_columns_without_slips_are_exact():
    rng = random.Random(3)
    for left, right in itertools.product(range(0, 100, 7), range(0, 100, 3)):
        if left + right <= 99:
            assert corpus.column_arithmetic(left, "+", right, 0.0, rng)[1] == left + right
        if left >= right:
            assert corpus.column_arithmetic(left, "-", right, 0.0, rng)[1] == left - right


def test_exercises_are_error_free():
    rng = random.Random(4)
    for _ in range(200):
        for left, right, value in re.findall(
            r" (\d+[+*-]\d+)(=)(\d+)\.", corpus.write_exercise(rng)
        ):
            assert eval(left) == int(value), left


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The tokenizer as an analysis gets it: saved beside a Llama config and loaded by Auto."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = build_tokenizer()
    supervised.new_model(tokenizer, 0).config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_tokenizer_round_trip_on_ids(loaded):
    rng = random.Random(5)
    built = build_tokenizer()
    for tier in TIERS:
        for _ in range(150):
            problem = sample_problem(tier, rng)
            for text in (
                problem.prompt + corpus.write_solution(problem, rng),
                problem.prompt + demonstrations.write_far(problem, rng),
                problem.prompt + demonstrations.write_near(problem, rng),
                corpus.write_exercise(rng),
            ):
                ids = loaded.encode(text)
                assert ids == built.encode(text)
                assert loaded.unk_token_id not in ids
                assert loaded.decode(ids) == text
                assert loaded.encode(loaded.decode(ids)) == ids


@pytest.mark.parametrize("answer", ["7", "17", "-4", "-38", "0", "925", "-120"])
def test_decoded_answers_are_read_by_math_verify(loaded, answer):
    from math_verify import parse, verify

    ids = loaded.encode(f" so the answer is \\boxed{{{answer}}}")
    text = loaded.decode(ids)
    assert text.endswith(f"\\boxed{{{answer}}}")
    assert verify(parse(f"${answer}$"), parse(text))
    assert not verify(parse(f"${int(answer) + 1}$"), parse(text))


def test_prompt_words():
    problem = ArithmeticProblem("easy", (17, 6, 8), ("+", "*"), wording=0)
    assert problem.prompt == "question: what is 17+6*8?\n"
    assert problem.answer == 65


def test_model_is_small():
    model = supervised.new_model(build_tokenizer(), 0)
    assert sum(p.numel() for p in model.parameters()) <= 1_000_000
    assert model.config.head_dim in (32, 64)
