"""Answers: one box, nested braces, numbers as numbers."""

import threading

import pytest

from tokenshift_utils.verify import answers_equal, extract_answer, is_correct


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so \boxed{17}", "17"),
        (r"\boxed{ -4 } .", "-4"),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{3}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\sqrt{\frac{a}{b}}} and more }", r"\sqrt{\frac{a}{b}}"),
        ("no box", None),
        (r"\boxed{3} or \boxed{3}", None),
        (r"\boxed{\boxed{3}}", None),
        (r"\boxed{3", None),
        (r"\boxed{}", None),
        (r"\boxed 3", None),
    ],
)
def test_exactly_one_closed_box(text, answer):
    assert extract_answer(text) == answer


def test_fault_08_braces_are_matched():
    assert is_correct(r"\boxed{\frac{1}{3}}", r"\frac{1}{3}")
    assert not is_correct(r"\boxed{\frac{1}{3}}", r"\frac{1}{2}")


@pytest.mark.parametrize("number", ["0", "7", "17", "123", "-4", "-56", "-789"])
def test_integers(number):
    assert is_correct(rf"the answer is \boxed{{{number}}}", number)
    assert is_correct(rf"\boxed{{{number}}}", f" {number} ")
    assert not is_correct(rf"\boxed{{{int(number) + 1}}}", number)
    assert is_correct(rf"\boxed{{{number}.0}}", number)


def test_leading_zeros_and_separate_digits():
    assert is_correct(r"\boxed{033}", "33") and is_correct(r"\boxed{33}", "033")
    assert not is_correct(r"\boxed{1 7}", "17")
    assert not is_correct(r"\boxed{1 7}", "8")  # math-verify reads 1 + 7


def test_expressions():
    assert answers_equal("0.5", r"\frac{1}{2}") and answers_equal(r"\frac{2}{4}", "1/2")
    assert answers_equal(r"2\sqrt{2}", r"\sqrt{8}")
    assert not answers_equal("x+1", "x+2")
    assert answers_equal("(A)", "(A)")
    assert not answers_equal("seventeen", "17") and not answers_equal(r"\frac{", "3")
    assert not answers_equal("1" + "+1" * 1000, "17")


def test_outside_the_main_thread():
    verdicts = []

    def judge():
        verdicts.append(is_correct(r"\boxed{\frac{3}{9}}", "1/3"))
        verdicts.append(is_correct(r"\boxed{\frac{3}{8}}", "1/3"))

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    assert verdicts == [True, False]
