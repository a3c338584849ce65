"""The verifiable task: integer expressions with precedence, in three tiers of difficulty.

A problem is a chain of terms joined by ``+`` and ``-``; a term is a number (``N``) or a product of
two (``P``). Evaluated in the right order, every intermediate lies in 0..99, so that two-digit
column arithmetic is all that a solution ever needs.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tokenshift_utils.training.evaluation import Question

TIERS = ("easy", "medium", "hard")
LAYOUTS = {
    "easy": ("NN", "PN", "NP", "NNN"),
    "medium": ("NPN", "NNP", "NPNN", "PNNN"),
    "hard": ("NPNP", "NPPN", "NNPP", "PNNP", "NNPNN"),
}
TWO_DIGIT_FACTOR_SHARE = {"easy": 0.3, "medium": 0.7, "hard": 0.7}
WORDINGS = ("what is {}?", "compute {}.", "find {}.", "evaluate {}.")
LARGEST_VALUE = 99
BENCHMARK_SIZE = 60

_EXPRESSION = re.compile(r"\d+(?:[+\-*]\d+)+")

ExpressionKey = tuple[tuple[int, ...], tuple[str, ...]]


@dataclass(frozen=True)
class ArithmeticProblem:
    """One expression to evaluate: ``len(operators) == len(numbers) - 1``."""

    tier: str
    numbers: tuple[int, ...]
    operators: tuple[str, ...]
    wording: int = 0

    @property
    def key(self) -> ExpressionKey:
        """What makes two problems the same one, whatever their wording."""
        return self.numbers, self.operators

    @property
    def expression(self) -> str:
        return chain_text(self.numbers, self.operators)

    @property
    def prompt(self) -> str:
        return f"question: {WORDINGS[self.wording].format(self.expression)}\n"

    @property
    def answer(self) -> int:
        return chain_values(self.numbers, self.operators)[-1]


def chain_text(numbers, operators) -> str:
    """``(17, 6, 8), ("+", "*")`` -> ``"17+6*8"``."""
    return str(numbers[0]) + "".join(f"{op}{n}" for op, n in zip(operators, numbers[1:]))


def apply(left: int, operator: str, right: int) -> int:
    if operator == "*":
        return left * right
    return left + right if operator == "+" else left - right


def next_step(operators) -> int:
    """Index of the operator that precedence evaluates first."""
    return operators.index("*") if "*" in operators else 0


def reductions(numbers, operators) -> Iterator[tuple[int, str, int, int, str]]:
    """The steps to the answer, products first then left to right: (left, operator, right, value, what
    then remains, "" after the last).

    >>> [*reductions((17, 6, 8), ("+", "*"))]
    [(6, '*', 8, 48, '17+48'), (17, '+', 48, 65, '')]
    """
    numbers, operators = list(numbers), list(operators)
    while operators:
        i = next_step(operators)
        left, operator, right = numbers[i], operators.pop(i), numbers[i + 1]
        numbers[i : i + 2] = [apply(left, operator, right)]
        rest = chain_text(numbers, operators) if operators else ""
        yield left, operator, right, numbers[i], rest


def chain_values(numbers, operators) -> list[int]:
    """Every value computed on the way; the last is the answer."""
    return [value for _, _, _, value, _ in reductions(numbers, operators)]


def _factors(tier: str, rng: random.Random) -> tuple[int, int]:
    small = rng.randint(2, 9)
    if rng.random() < TWO_DIGIT_FACTOR_SHARE[tier]:
        small = rng.randint(2, 6)
        pair = [small, rng.randint(10, LARGEST_VALUE // small)]
    else:
        pair = [small, rng.randint(2, 9)]
    rng.shuffle(pair)
    return pair[0], pair[1]


def sample_problem(tier: str, rng: random.Random) -> ArithmeticProblem:
    """Draw a problem of ``tier`` whose intermediates all lie in 0..99."""
    while True:
        numbers, operators = [], []
        for j, term in enumerate(rng.choice(LAYOUTS[tier])):
            if j:
                operators.append(rng.choice("+-"))
            if term == "P":
                numbers += _factors(tier, rng)
                operators.append("*")
            else:
                lowest = 2 if tier == "easy" and rng.random() < 0.3 else 10
                numbers.append(rng.randint(lowest, 79 if j == 0 else 59))
        if all(0 <= value <= LARGEST_VALUE for value in chain_values(numbers, operators)):
            wording = rng.randrange(len(WORDINGS))
            return ArithmeticProblem(tier, tuple(numbers), tuple(operators), wording)


@cache
def benchmark(tier: str, size: int = BENCHMARK_SIZE) -> tuple[ArithmeticProblem, ...]:
    """The held-out evaluation problems of ``tier``: distinct, fixed by the tier's name alone."""
    rng = random.Random(f"tokenshift tiny benchmark {tier}")
    problems: dict[ExpressionKey, ArithmeticProblem] = {}
    while len(problems) < size:
        problem = sample_problem(tier, rng)
        problems.setdefault(problem.key, problem)
    return tuple(problems.values())


@cache
def questions() -> tuple[Question, ...]:
    """Every evaluation problem as it is asked, with its name in the benchmark files."""
    return tuple(
        Question(tier, f"{tier}-{i:03d}", p.expression, p.prompt, str(p.answer))
        for tier in TIERS
        for i, p in enumerate(benchmark(tier))
    )


@cache
def held_out_expressions() -> frozenset[str]:
    """Expressions of every evaluation problem; none may occur anywhere in training."""
    return frozenset(problem.expression for tier in TIERS for problem in benchmark(tier))


def mentions_held_out(text: str) -> bool:
    """Whether an evaluation expression stands anywhere in ``text``, as a problem or on the way."""
    return any(match in held_out_expressions() for match in _EXPRESSION.findall(text))


def training_problems(mix: dict[str, float], rng: random.Random) -> Iterator[ArithmeticProblem]:
    """An endless stream of problems, tiers drawn by ``mix``, no evaluation problem among them."""
    tiers, weights = list(mix), list(mix.values())
    while True:
        problem = sample_problem(rng.choices(tiers, weights)[0], rng)
        if problem.expression not in held_out_expressions():
            yield problem
