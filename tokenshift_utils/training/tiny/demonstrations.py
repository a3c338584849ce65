"""Correct demonstrations for the two SFT controls: a far style and one near the base model's own."""

import random

from tokenshift_utils.training.tiny.corpus import column_arithmetic
from tokenshift_utils.training.tiny.problems import ArithmeticProblem, reductions


def write_far(problem: ArithmeticProblem, rng: random.Random) -> str:
    """Another author altogether: numbered steps, full sentences, digits worked out in words."""
    text, steps = f" we are given {problem.expression}.\n", reductions(*problem.key)
    for step, (left, operator, right, value, remains) in enumerate(steps, 1):
        text += f" step {step}:"
        if operator == "*":
            text += (
                f" since products bind tighter, the product of {left} and {right} equals {value}."
            )
        else:
            text += _sum_in_words(left, operator, right) + f", hence {value}."
        text += f" the expression becomes {remains}.\n" if remains else "\n"
    return text + f" therefore the result is \\boxed{{{problem.answer}}}"


def _sum_in_words(left: int, operator: str, right: int) -> str:
    (left_tens, left_ones), (right_tens, right_ones) = divmod(left, 10), divmod(right, 10)
    if operator == "+":
        carry = int(left_ones + right_ones > 9)
        name, verb, carried = "sum", "and", "carried"
        ones, tens = left_ones + right_ones, left_tens + right_tens + carry
    else:
        carry = int(left_ones < right_ones)
        name, verb, carried = "difference", "less", "borrowed"
        ones, tens = (left_ones - right_ones) % 10, left_tens - right_tens - carry
    text = f" the {name} of {left} and {right}, digit by digit, {left_ones} {verb} {right_ones} is {ones}"
    text += f", with one {carried}" if carry else ""
    return text + f", {left_tens} {verb} {right_tens} is {tens}"


def write_near(problem: ArithmeticProblem, rng: random.Random) -> str:
    """The base model's words and column arithmetic, in another order and always correct."""
    text = f" let me compute {problem.expression}.\n"
    for left, operator, right, value, remains in reductions(*problem.key):
        if operator == "*":
            text += f" the product {left}*{right} makes {value}"
        else:
            working, _ = column_arithmetic(left, operator, right, 0.0, rng)
            text += f" now find {left}{operator}{right},{working}"
        text += f", so it is {remains}.\n" if remains else ".\n"
    return text + f" right, answer: \\boxed{{{problem.answer}}}"
