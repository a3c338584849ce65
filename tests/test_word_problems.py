"""The word problems: answers by an independent solver, what is held out, the files as committed."""

import json
import random
import re

import pytest
from conftest import CHECKOUT

from tokenshift_utils.tasks import word_problems
from tokenshift_utils.tasks.verifier import is_correct
from tokenshift_utils.tasks.word_problems import (
    LEVELS,
    SETS,
    draw_problem,
    is_held_out,
    problem_set,
    problems,
)

MORE = {"taller", "older", "faster", "stronger", "heavier", "richer"}
TOP = {"tallest", "oldest", "fastest", "strongest", "heaviest", "richest"}
MINUS = ("give", "take", "lost", "more", "red and", "get back", "left", "still need")


def solve(text):
    """The answer, read from the words alone, by other means than the generator's."""
    if text.rstrip("?").split()[-2] == "the" and text.startswith(tuple(word_problems.NAMES)):
        compared = re.findall(r"(\w+) is (\w+) than (\w+)\.", text)
        if compared:
            above = {(a, b) if word in MORE else (b, a) for a, word, b in compared}
            people = {name for pair in above for name in pair}
            order = []
            while people:  # take whoever has nobody left above
                (first,) = {p for p in people if not any((q, p) in above for q in people)}
                order.append(first)
                people.remove(first)
            return order[0] if text.rstrip("?").split()[-1] in TOP else order[-1]
    a, b = map(int, re.findall(r"\d+", text))
    question = text[text.rindex("How many") :]
    if re.search(r"\b(each|Each|every|rows?|sells|earns|costs \d+ dollars\. \w+ buys)\b", text):
        return str(a * b)
    if re.search(r"boxes|in each of them", text):
        return str(a * b)
    if re.search(r"together|in all|more on it|gets \d+ more|who had", text):
        return str(a + b)
    assert any(word in text + question for word in MINUS), text
    return str(abs(a - b))


@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_those_of_an_independent_solver(level):
    rng = random.Random(f"test {level}")
    for _ in range(400):
        problem = draw_problem(level, rng)
        assert solve(problem.text) == problem.answer, problem.text
        assert is_correct(problem.solution, problem.answer, "the_answer_is")


def test_benchmarks_share_no_text_and_no_numbers_with_training():
    training = problem_set("train")
    assert len({p.text for p in training}) == len(training) == SETS["train"].size
    texts, keys = {p.text for p in training}, {p.key for p in training}
    for name in SETS.keys() - {"train"}:
        chosen = problem_set(name)
        assert len({p.text for p in chosen}) == len(chosen)
        assert not texts & {p.text for p in chosen} and not keys & {p.key for p in chosen}
        assert all(is_held_out(p.key) for p in chosen)
    assert {p.level for p in problem_set("larger")} & set(SETS["train"].mix) == set()


def test_a_pair_of_numbers_has_one_key_whichever_comes_first():
    stream = problems({"times": 1.0}, held=True, seed="test")
    for _ in range(100):
        problem = next(stream)
        a, b = map(int, re.findall(r"\d+", problem.text))
        assert problem.key == f"{min(a, b)} * {max(a, b)}" and is_held_out(problem.key)


def test_the_committed_files_are_the_generators(tmp_path):
    committed = CHECKOUT / "results/smollm2/problems"
    for file in word_problems.write_sets(tmp_path):
        assert file.read_text() == (committed / file.name).read_text(), file.name
    rows = [json.loads(line) for line in (committed / "train.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"id", "problem", "answer", "level", "solution"}
    assert "solution" not in json.loads((committed / "times.jsonl").read_text().splitlines()[0])
