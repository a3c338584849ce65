"""Classes of tokens in natural language: in context, whatever the pieces."""

import itertools

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils.sections.divergence import token_classes as module
from tokenshift_utils.sections.divergence.token_classes import CLASSES, classes_of, token_classes


@pytest.mark.parametrize(
    ("marked", "why"),
    [
        ("Each:function| box:other| holds:other| :numbers|4:numbers| pens:other|.:punctuation", ""),
        (
            " :numbers|3:numbers| x:operators| :numbers|4:numbers| =:operators| :numbers|1:numbers",
            "",
        ),
        ("The:function| answer:reasoning| is:function|::punctuation| R:names|avi:names", "a piece"),
        ("R:names|avi:names|'s:names| taller:other| than:function| Z:names|oe:names", "genitive"),
        ("So:reasoning|,:punctuation| Kim:names| pays:other|.:punctuation", "inside a sentence"),
        ("Boxes:other| hold:other| pens:other|.:punctuation", "a sentence's first word"),
        ("Kim:names| pays:other|.:punctuation| So:reasoning| Kim:names", "known from elsewhere"),
        ("1:numbers|,:numbers|000:numbers|.:punctuation", "a mark inside a number"),
        ("step:reasoning|-:punctuation|by:function|-:punctuation|step:reasoning", "hyphens"),
        ("-:punctuation| pens:other|\n:punctuation|-:punctuation| cups:other", "a list's dashes"),
        (" -:operators|4:numbers", "a sign"),
        ("**:punctuation|Step:reasoning|**:punctuation", "markup"),
        ("x:other| is:function| the:function| price:other", "x, the unknown"),
        ("don:function|'t:function| buy:other", "auxiliaries with not"),
        ("twelve:numbers| plus:operators| two:numbers", "in words"),
        ("\\frac:operators|{:punctuation|a:function|}:punctuation|\\text:other", "LaTeX"),
        ("Tom:names|<|im_end|>:punctuation", "the end of the turn"),
        (".:punctuation|\\n\\n:punctuation|So:reasoning", "line breaks as tables show them"),
        ("$:other|5:numbers|%:punctuation", ""),
    ],
)
def test_tokens_are_classed_as_they_stand_in_their_response(marked, why):
    # split at "|" but not inside a special token
    parts = marked.replace("<|im_end|>", "<END>").split("|")
    pieces, wanted = zip(*(part.rsplit(":", 1) for part in parts))
    pieces = [piece.replace("<END>", "<|im_end|>") for piece in pieces]
    assert list(zip(pieces, token_classes(pieces))) == list(zip(pieces, wanted)), why


TEXT = st.text(alphabet="aZ3x .,-*+'\n$é\\<|>_end", max_size=40)


@given(TEXT, st.lists(st.integers(1, 5), min_size=40, max_size=40))
def test_every_token_has_one_class_and_that_of_a_word_does_not_depend_on_its_pieces(text, lengths):
    whole = dict(enumerate(token_classes(list(text))))  # a token a character
    ends = [end for end in itertools.accumulate(lengths) if end < len(text)]
    bounds = list(itertools.pairwise([0, *ends, len(text)]))
    pieces = [text[start:end] for start, end in bounds]
    for (start, _), piece, found in zip(bounds, pieces, token_classes(pieces), strict=True):
        first = start + (len(piece) - len(piece.lstrip()) if piece.strip() else 0)
        assert found in CLASSES
        assert not piece or piece.endswith("\\n") or found == whole[first]


def test_lists_of_words_share_none():
    lists = (module.FUNCTION, module.REASONING, module.NUMBERS, module.OPERATORS)
    for one, other in itertools.combinations(lists, 2):
        assert not one & other


def test_rows_of_shifts_get_their_classes_in_any_order():
    texts = {0: " Z", 1: "oe", 2: " buys", 3: " ", 4: "7"}
    frame = pd.DataFrame(
        {
            "benchmark": "b",
            "problem": ["p"] * 3 + ["q"] * 2,
            "sample": 0,
            "position": [0, 1, 2, 0, 1],
            "token": [0, 1, 2, 3, 4],
        },
    )
    frame["wanted"] = ["names", "names", "other", "numbers", "numbers"]
    shuffled = frame.sample(frac=1, random_state=3)
    assert list(classes_of(shuffled, texts)) == list(shuffled["wanted"])
