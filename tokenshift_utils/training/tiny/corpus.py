"""Chains of thought of mixed quality: what the base model is trained on.

Three imitated authors differ in strategy (products first or left to right), in method (column
arithmetic or a quick guess of the result), in care (checking, stopping early, guessing, boxing the
answer) and in slips. Their wording is tied to their quality only weakly, so that the base model
keeps every branch open at the places where a solution is decided. These branch points are put here
by hand: the study is a model organism, not a discovery about language.
"""

import random
from dataclasses import dataclass
from itertools import islice

from tokenshift_utils.training.tiny.problems import (
    LARGEST_VALUE,
    ArithmeticProblem,
    apply,
    chain_text,
    next_step,
    reductions,
    sample_problem,
)


@dataclass(frozen=True)
class Author:
    """Habits of one imitated author; every field but ``weight`` is a probability."""

    weight: float  # share of the corpus
    products_first: float  # respects precedence at a step
    columns: float  # works a sum out digit by digit
    stops_early: float  # answers before the expression is reduced
    boxes: float  # puts the answer into \boxed{}
    checks: float  # redoes a quick result by columns
    guesses: float  # answers at once
    wrong_product: float
    digit_slip: float
    copy_slip: float


AUTHORS = {
    "careful": Author(0.08, 0.95, 0.92, 0.01, 0.95, 0.60, 0.00, 0.02, 0.01, 0.00),
    "average": Author(0.42, 0.50, 0.45, 0.06, 0.75, 0.20, 0.08, 0.08, 0.03, 0.02),
    "sloppy": Author(0.50, 0.10, 0.12, 0.18, 0.60, 0.05, 0.30, 0.20, 0.08, 0.08),
}

# Wordings with their weights for the careful, the average and the sloppy author.
OPENINGS = {
    "": (0.35, 0.30, 0.25),
    " ok.": (0.20, 0.25, 0.25),
    " hmm.": (0.10, 0.15, 0.20),
    " let me see.": (0.20, 0.15, 0.10),
    " right.": (0.15, 0.15, 0.20),
}
FIRSTLY = {
    " first": (0.45, 0.30, 0.25),
    " so": (0.15, 0.20, 0.25),
    " well,": (0.10, 0.20, 0.25),
    " i will": (0.30, 0.30, 0.25),
}
THEN = {
    " then": (0.30, 0.25, 0.25),
    " next": (0.30, 0.25, 0.20),
    " now": (0.25, 0.25, 0.25),
    " so": (0.15, 0.25, 0.30),
}
LEAVES = {
    " this leaves": (0.35, 0.30, 0.30),
    " we get": (0.30, 0.35, 0.40),
    " now we have": (0.35, 0.35, 0.30),
}
CLOSINGS = {
    " so the answer is": (0.40, 0.35, 0.30),
    " the answer is": (0.30, 0.35, 0.35),
    " final answer": (0.20, 0.15, 0.15),
    " done, it is": (0.10, 0.15, 0.20),
}
BY_PRECEDENCE = {" take the product": (0.40, 0.30, 0.30), " multiply": (0.60, 0.70, 0.70)}
FROM_THE_LEFT = {
    " go left to right:": (0.50, 0.50, 0.40),
    " start from the left:": (0.50, 0.30, 0.20),
    " just do": (0.00, 0.20, 0.40),
}
PLAINLY = {" do": (0.50, 0.50, 0.50), " work out": (0.50, 0.50, 0.50)}
GUESSES = (" i guess", " maybe", " looks like")
PHRASES = (OPENINGS, FIRSTLY, THEN, LEAVES, CLOSINGS, BY_PRECEDENCE, FROM_THE_LEFT, PLAINLY)


def _wording(table: dict[str, tuple[float, ...]], author: str, rng: random.Random) -> str:
    column = list(AUTHORS).index(author)
    return rng.choices(list(table), [weights[column] for weights in table.values()])[0]


def column_arithmetic(
    left: int, operator: str, right: int, slip: float, rng: random.Random
) -> tuple[str, int]:
    """Two-digit ``+`` or ``-`` digit by digit; each digit is off by one with probability ``slip``.

    Returns the text, which starts with ``" ones"`` and ends with the result, and the result.
    """
    (left_tens, left_ones), (right_tens, right_ones) = divmod(left, 10), divmod(right, 10)

    def written(digit: int) -> int:
        return (digit + rng.choice((-1, 1))) % 10 if rng.random() < slip else digit

    text = f" ones {left_ones}{operator}{right_ones}"
    if operator == "+":
        carry, ones = divmod(left_ones + right_ones, 10)
        ones = written(ones)
        text += f"=1{ones}, carry 1" if carry else f"={ones}"
        tens = left_tens + right_tens + carry
        tens = tens if tens > 9 else written(tens)
    else:
        carry = int(left_ones < right_ones)
        ones = written((left_ones - right_ones) % 10)
        text += f", borrow 1, 1{left_ones}-{right_ones}={ones}" if carry else f"={ones}"
        tens = max(0, left_tens - right_tens - carry)
        tens = written(tens) if tens else tens
    carried = f"{operator}1" if carry else ""
    text += f"; tens {left_tens}{operator}{right_tens}{carried}={tens};"
    value = 10 * tens + ones
    return f"{text}{rng.choice((' gives', ' makes'))} {value}", value


def _fits_columns(left: int, operator: str, right: int) -> bool:
    return all(0 <= v <= LARGEST_VALUE for v in (left, right, apply(left, operator, right)))


def _quick_sum(left: int, operator: str, right: int, slip: float, rng: random.Random) -> int:
    """A result without working: carries and borrows are forgotten half of the time."""
    value, chance = apply(left, operator, right), rng.random()
    if operator == "+" and left % 10 + right % 10 > 9 and chance < 0.5:
        value -= 10
    elif operator == "-" and left % 10 < right % 10 and chance < 0.5:
        value += 10
    elif chance > 0.92 - slip:
        value += rng.choice((-2, -1, 1, 2, 10, -10))
    return max(-LARGEST_VALUE, min(999, value))


def _quick_product(left: int, right: int, error: float, rng: random.Random) -> int:
    value = left * right
    # Nobody multiplies two two-digit numbers in one step and is usually right.
    if rng.random() < (error if min(left, right) < 10 and value < 100 else 0.6):
        value = max(0, value + rng.choice((-left, left, -right, right, -1, 1, 10, -10)))
    return min(value, 999)


def _guess(problem: ArithmeticProblem, rng: random.Random) -> int:
    if rng.random() < 0.6:
        return problem.answer + rng.choice((-20, -12, -10, -5, -2, 0, 1, 3, 10, 15))
    return rng.randint(1, LARGEST_VALUE)


def write_solution(
    problem: ArithmeticProblem, rng: random.Random, author: str | None = None
) -> str:
    """A chain of thought for ``problem`` as ``author`` (drawn by weight if None) would write it."""
    name = author or rng.choices(list(AUTHORS), [a.weight for a in AUTHORS.values()])[0]
    habits = AUTHORS[name]

    def happens(probability: float) -> bool:
        return rng.random() < probability

    def answer(value: int) -> str:
        return f" \\boxed{{{value}}}" if happens(habits.boxes) else f" {value}."

    text = _wording(OPENINGS, name, rng)
    if happens(habits.guesses):
        return text + rng.choice(GUESSES) + answer(_guess(problem, rng))

    numbers, operators = list(problem.numbers), list(problem.operators)
    for step in range(len(operators)):
        text += _wording(THEN if step else FIRSTLY, name, rng)
        i = 0
        if "*" not in operators:
            text += _wording(PLAINLY, name, rng)
        elif happens(habits.products_first):
            i = next_step(operators)
            text += _wording(BY_PRECEDENCE, name, rng)
        else:
            text += _wording(FROM_THE_LEFT, name, rng)
        left, operator, right = numbers[i], operators[i], numbers[i + 1]
        text += f" {left}{operator}{right}"
        if operator == "*":
            value = _quick_product(left, right, habits.wrong_product, rng)
            text += f"={value}"
        elif _fits_columns(left, operator, right) and happens(habits.columns):
            working, value = column_arithmetic(left, operator, right, habits.digit_slip, rng)
            text += f":{working}"
        else:
            value = _quick_sum(left, operator, right, habits.digit_slip, rng)
            text += f"={value}"
            if _fits_columns(left, operator, right) and happens(habits.checks):
                working, value = column_arithmetic(left, operator, right, habits.digit_slip, rng)
                text += f" wait, check:{working}"
        text += "."
        numbers[i : i + 2] = [value]
        operators.pop(i)
        if operators:
            if happens(habits.stops_early):
                text += "\n"
                break
            if happens(habits.copy_slip):
                j = rng.randrange(len(numbers))
                numbers[j] = max(0, numbers[j] + rng.choice((-1, 1, 10)))
            text += f"{_wording(LEAVES, name, rng)} {chain_text(numbers, operators)}."
        text += "\n"
    return text + _wording(CLOSINGS, name, rng) + answer(numbers[0])


def write_exercise(rng: random.Random) -> str:
    """A page of an exercise book: error-free sums, products and substitutions, no choice of strategy.

    It gives the base model the skills that its authors' slips would hide.
    """
    lines = []
    for _ in range(rng.randint(3, 5)):
        kind = rng.random()
        if kind < 0.45:
            lines.append(_column_drill(rng))
        elif kind < 0.70:
            lines.append(_product_drill(rng))
        else:
            lines.append(_substitution_drill(rng))
    return " find:" + "\n".join(lines) + "\n"


def _column_drill(rng: random.Random) -> str:
    while True:
        operator, left, right = rng.choice("+-"), rng.randint(0, 99), rng.randint(0, 99)
        if _fits_columns(left, operator, right):
            working, _ = column_arithmetic(left, operator, right, 0.0, rng)
            return f" {left}{operator}{right}:{working}."


def _product_drill(rng: random.Random) -> str:
    small = rng.randint(2, 9)
    pair = [small, rng.randint(2, LARGEST_VALUE // small)]
    rng.shuffle(pair)
    return f" {pair[0]}*{pair[1]}={pair[0] * pair[1]}."


def _substitution_drill(rng: random.Random) -> str:
    problem = sample_problem(rng.choice(("medium", "hard")), rng)
    line = f" {problem.expression}."
    for left, operator, right, value, remains in islice(reductions(*problem.key), 2):
        line += f" {left}{operator}{right}={value}."
        if remains:
            line += f"{_wording(LEAVES, 'careful', rng)} {remains}."
    return line
