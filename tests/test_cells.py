"""Cells: what they plainly mean as text, or one sentence; never Python's own notation."""

import datetime
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.tasks.cells import as_integer, plain_text, text_of


def message(content, role="user"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  as it stands\n", "  as it stands\n"),
        ("é".encode(), "é"),
        (33, "33"),
        (33.0, "33"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (2.5e10, "25000000000"),
        (Decimal("3.50"), "3.5"),
        (Decimal("1E+2"), "100"),
        (["3"], "3"),
        ([[3.0]], "3"),
        (message("what?"), "what?"),
        ([message("what?")], "what?"),
        ([message([{"type": "text", "text": "what?"}])], "what?"),
        ({"ground_truth": "3", "style": "rule"}, "3"),
        ({"ground_truth": 3.0, "style": "rule"}, "3"),
        ({"ground_truth": ["3"]}, "3"),
        ({"ground_truth": '["\\\\frac{1}{2}"]'}, r"\frac{1}{2}"),
        ({"ground_truth": "[1, 2]"}, "[1, 2]"),
        ('["3"]', '["3"]'),
    ],
)
def test_what_a_cell_plainly_means(value, text):
    assert text_of(value, "f, row 1", "answer") == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is empty"),
        ("", "is blank"),
        (" \n\u2003", "is blank"),
        (b" ", "is blank"),
        (True, "is true or false"),
        (math.nan, "is NaN, no number"),
        (-math.inf, "is -Infinity, no number"),
        (Decimal("NaN"), "is NaN, no number"),
        (1e300, "too large to be exact"),
        (Decimal("1e1000000000"), "too large or small to write out"),
        (b"\xff", "is bytes that are not UTF-8"),
        ("x\ud83d", "half a character (a lone surrogate), \\ud83d"),
        ("x\0", "holds NUL"),
        ([], "is a list of nothing"),
        (["3", "4"], "is a list of 2"),
        ([None], "is empty"),
        ({"a": 1, "b": 2}, "is a record of a, b"),
        ({"ground_truth": {"a": 1}}, "is a record of a"),
        ({"ground_truth": '["3", "4"]'}, "is a list of 2"),
        ([message("be terse", "system"), message("what?")], "holds 2 chat messages; give the user's"),
        ([message("what?", "assistant")], "is a message of the role 'assistant'"),
        ([message([{"type": "image"}])], "is a message of more than text"),
        ([message(None)], "is a message of more than text"),
        ([("a", 1)], "is a tuple"),
        (datetime.date(2024, 1, 2), "is a date"),
        (datetime.timedelta(1), "is a timedelta"),
    ],
)  # fmt: skip
def test_what_has_no_plain_meaning_is_refused_by_row_and_column(value, said):
    with pytest.raises(TokenshiftError) as error:
        text_of(value, "f.jsonl, row 7", "answer")
    sentence = str(error.value)
    assert sentence.startswith("f.jsonl, row 7: 'answer' ") and said in sentence
    assert "\n" not in sentence and len(sentence) < 300


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.decimals() | st.dates() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "ground_truth", "a"]), inner, max_size=3
    ),
)  # fmt: skip


@given(CELLS)
def test_any_cell_is_its_own_text_or_refused(value):
    try:
        text = text_of(value, "f", "a")
    except TokenshiftError:
        return
    assert text.strip() and text.encode()
    assert isinstance(value, (str, bytes)) or "'" not in text or "'" in _leaf(value)


def _leaf(value):
    """The one text within lists, messages and verl's records."""
    while not isinstance(value, (str, int, float, Decimal)):
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, list):
            (value,) = value
        elif "ground_truth" in value and not {"role", "content"} <= set(value):
            value = value["ground_truth"]
        else:
            value = value["content"]
    return str(value)


@given(st.floats(-1e15, 1e15) | st.integers(-(2**53) + 1, 2**53 - 1).map(float))
def test_a_float_is_the_shortest_decimal_that_is_it(value):
    text = text_of(value, "f", "a")
    assert float(text) == value and "e" not in text and not text.endswith((".", ".0"))


def test_text_that_a_model_reads_is_taken_only_from_text():
    assert plain_text("\n", "f", "prompt") == "\n" and plain_text(b"x", "f", "prompt") == "x"
    for value, said in [
        (3, "is a number; give text"),
        (["x"], "is a list; give text"),
        ([message("x")], "holds chat messages; apply the models' chat template"),
        ("\udc80", "lone surrogate"),
    ]:
        with pytest.raises(TokenshiftError, match=said):
            plain_text(value, "f", "prompt")


@pytest.mark.parametrize("space", [" ", "\t", "\x1f", "\x1c", "\x85", "\u2003"])
def test_whole_numbers_amid_any_space(space):
    assert as_integer(f"{space}3{space}") == 3


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), (3.0, 3), (Decimal("3.0"), 3), ("3", 3), (True, None), (None, None), (3.5, None),
     ("x", None), (math.nan, None), (math.inf, None), (Decimal("NaN"), None), ([3], None),
     (Decimal("1e999999999"), None), ("9" * 5000, None), ("-1", None)],
)  # fmt: skip
def test_whole_numbers(value, number):
    assert as_integer(value) == number
