"""Classes of tokens in natural language, by stated rules and short lists of words.

A token is classed in its context: as the word, number or mark of the response that it is a piece
of, so that both pieces of " Z|oe" are of a name. The rules, the first that holds:

numbers      digits, with what they have inside (3.5, 1,000, 2nd), and the words of ``NUMBERS``
operators    signs such as + - = x and their words and LaTeX commands (plus, equals, \\times); x only
             beside a number; - * and / not inside a word, nor - and * where a line begins
reasoning    the words of ``REASONING``: connectives (so, because, if) and steps (let, find, answer)
function     the words of ``FUNCTION``: articles, pronouns, prepositions, auxiliaries, ...
names        the names of the generated problems, and words with a capital inside a sentence, also
             where the same response has them at the beginning of one
punctuation  all other marks, line breaks, and special tokens such as the end of the turn
other        what is left: nouns, verbs, adjectives, symbols

White space is of the class of what follows it, as where a token has it in front.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import pandas as pd

from tokenshift_utils.tasks.word_problems import NAMES

CLASSES = ("function", "reasoning", "names", "numbers", "operators", "punctuation", "other")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION = _words(
    # articles, determiners, quantifiers
    "a an the this that these those each every all both any some no other another such same "
    "more most less least many much few several own "
    # pronouns and question words
    "i me my mine you your yours he him his she her hers it its we us our ours they them their "
    "theirs who whom whose which what how where when why there here himself herself itself "
    "themselves someone "
    # prepositions
    "of in on at by for with from to into onto about after before over under between among per "
    "than as out up down off through during without within around against "
    # auxiliaries; ca and wo are of can't and won't
    "is are was were be been being am do does did has have had having can could will would shall "
    "should may might ca wo "
    # other conjunctions, adverbs of degree and time
    "and or nor not also too very just only now still already again together altogether"
)
REASONING = _words(
    # connectives
    "so then therefore thus hence because since if but however while though although first second "
    "third next finally once instead otherwise "
    # steps, and what they are about
    "let need must given know find calculate compute solve add subtract multiply divide compare "
    "check verify wait note consider suppose assume means total answer result step steps problem "
    "question solution equation"
)
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million half twice dozen"
)
OPERATORS = _words(
    "plus minus times equals equal multiplied divided added subtracted sum difference product"
)
LATEX = _words("times cdot div frac dfrac sqrt pm le leq ge geq ne neq lt gt approx sum")
SIGNS = frozenset("+-−*/=×÷·^<>≤≥≠≈±√")

_PART = re.compile(
    r"(?P<special><\|[^|>]*\|>|</?s>|<(?:bos|eos|pad|unk)>)"
    r"|(?P<number>\d+(?:[.,]\d+)*(?:(?:st|nd|rd|th)\b)?)"
    r"|(?P<latex>\\[A-Za-z]+)"
    r"|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)?)"
    r"|(?P<mark>\S)"
)
_SHOWN_BREAK = re.compile(r"(?:\\n)+$")  # a line break as tables show it
_ENDS_SENTENCE = frozenset(".!?:;\n")
_AROUND_WORDS = (
    "\"'“”‘’*_([# \t"  # marks that may stand between a sentence's end and its first word
)


def token_classes(texts: Sequence[str]) -> list[str]:
    """The class, of ``CLASSES``, of every token of one response: ``texts`` are theirs, in order.

    >>> token_classes(["Z", "oe", " has", " ", "3", " x", " ", "4", " pens", "."])
    ['names', 'names', 'function', 'numbers', 'numbers', 'operators', 'numbers', 'numbers', 'other', 'punctuation']
    """
    pieces = [_SHOWN_BREAK.sub(lambda m: "\n" * (len(m[0]) // 2), text) for text in texts]
    response = "".join(pieces)
    parts = list(_PART.finditer(response))
    in_sentence = {m[0] for m in parts if m["word"] and not _begins_sentence(response, m.start())}
    # 1) the class of every character: of its part, of white space that of the part after it
    of_character, end = ["punctuation"] * len(response), 0
    for part in parts:
        found = _class_of(part, response, in_sentence)
        first = response.rfind("\n", end, part.start()) + 1 or end
        of_character[first : part.end()] = [found] * (part.end() - first)
        end = part.end()
    # 2) a token is of the class of its first character that is not white space, or of its first
    starts = accumulate((len(piece) for piece in pieces), initial=0)
    out = []
    for start, piece in zip(starts, pieces):
        inside = len(piece) - len(piece.lstrip()) if piece.strip() else 0
        out.append(of_character[start + inside] if piece else "punctuation")
    return out


def _begins_sentence(text: str, at: int) -> bool:
    before = text[:at].rstrip(_AROUND_WORDS)
    return not before or before[-1] in _ENDS_SENTENCE


def _class_of(part: re.Match, text: str, in_sentence: set[str]) -> str:
    kind, found = part.lastgroup, part[0]
    if kind == "special":
        return "punctuation"
    if kind == "number":
        return "numbers"
    if kind == "latex":
        return "operators" if found[1:] in LATEX else "other"
    if kind == "mark":
        return _class_of_mark(part, text)
    word = _stem(found)
    before, after = text[: part.start()].rstrip()[-1:], text[part.end() :].lstrip()[:1]
    if word == "x" and (before.isdigit() or after.isdigit()):
        return "operators"
    lists = {"numbers": NUMBERS, "operators": OPERATORS}
    lists |= {"reasoning": REASONING, "function": FUNCTION}
    for name, words in lists.items():
        if word in words:
            return name
    named = found.split("'")[0].split("’")[0]
    capital = named[0].isupper() and not named.isupper()  # neither X nor USA
    if capital and (named in NAMES or named in in_sentence or found in in_sentence):
        return "names"
    return "other"


def _stem(word: str) -> str:
    """In small letters, without what an apostrophe joins to it: don't -> do, Zoe's -> zoe."""
    head, mark, tail = re.sub("’", "'", word).lower().partition("'")
    return head.removesuffix("n") if mark and tail == "t" else head


def _class_of_mark(part: re.Match, text: str) -> str:
    mark, start, end = part[0], part.start(), part.end()
    if mark in SIGNS:
        before, after = text[start - 1 : start], text[end : end + 1]
        line_begins = not text[:start].rpartition("\n")[2].strip()
        in_word = mark in "-*/" and (before.isalpha() or after.isalpha())
        markup = mark in "-*" and (line_begins and not after.isdigit() or mark in (before, after))
        return "punctuation" if in_word or markup else "operators"
    return "punctuation" if unicodedata.category(mark)[0] == "P" else "other"


def classes_of(frame: pd.DataFrame, texts: Mapping[int, str]) -> np.ndarray:
    """[rows] the class of every position of shifts, in the order of the rows.

    ``frame`` has benchmark, problem, sample, position and token, with all positions of a response;
    ``texts`` gives the text of a token (``records.tokens.token_texts``).
    """
    ordered = frame.reset_index(drop=True).sort_values("position", kind="stable")
    out = np.empty(len(frame), dtype=object)
    for _, response in ordered.groupby(["benchmark", "problem", "sample"], sort=False):
        out[response.index] = token_classes([texts[int(t)] for t in response["token"]])
    return out
