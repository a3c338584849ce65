"""Is a response's final answer right? Judged on the decoded text.

A study names the rule by which the final answer is found:

- ``boxed``: the content of the response's one ``\\boxed{...}``, found by matching braces (so that
  ``\\boxed{\\frac{1}{3}}`` is a third). No box, two boxes or an unclosed one: no answer.
- ``last_boxed``: the content of the last one, as most graders of mathematics have it.
- ``answer_line``: what follows the last ``Answer:`` that has something behind it, as DAPO's own
  verifier has it (verl's ``math_dapo.py``): without Markdown, dollar signs, a box and units, and
  behind the last ``=`` where what stands before it is a name or a sum.

- ``the_answer_is``: what follows the last ``The answer is:`` on its line. Its one number, whatever
  stands around it (``$12.``, ``12 apples``), or where it has none, its text without the full stop.
  Two numbers (``12 - 1``) are no answer. The problem's own answer is read alike, and compared as
  a number, or as text without regard to case.

Where there is no ``\\boxed``, an ``\\fbox`` is a box.

Of the others numbers are compared as numbers of any length, letters of multiple choice as letters, words as text,
and everything else by math-verify, in a process of its own that is ended when an expression takes
too long.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.tasks.answers import (
    brackets,
    expression,
    folded,
    is_prose,
    number,
    undress,
    unit,
    unspelled,
)

MAX_CHARACTERS = 500  # characters; what is longer and no plain number is no answer
ATTEMPTS = 3  # of a comparison, where the judge is killed
EXIT_SECONDS = 60.0  # that a judge may take to be gone
SECONDS = 2.0  # of processor time for one comparison; what takes longer is not equal
_LABEL = re.compile(r"(?i)Answer\s*(?:(?:\*\*|__)\s*)?[:\uff1a]")
_OPENERS = re.compile(r"(?:[\s*_`$]|\\[\[(])*")
# what may stand before an "=" that leads to the answer: a name (x, f(x), total cost) or numbers
_NAME = re.compile(r"\\?[A-Za-z][A-Za-z ]*(?:_\{?\w+\}?)?(?:\(\w\))?")
_SUM = re.compile(r"(?:[-+*/^().\d\s{}]|\\(?:times|cdot|div|frac))+")
_THE_ANSWER_IS = re.compile(r"(?i)the answer is\s*:")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|final\s+|best\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)?"
    r"([(\[]?)\s*([A-Za-z])\s*(?:([)\].:}]+)|(?=\s[-(\u2013\u2014])|$)\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
# a second option behind the first: "or D", ", (D)", "/ D", "(D)", "C) 3 m or D) 4 m"
_SECOND = re.compile(
    r"(?:[\s,;/&|+]|\b(?:or|and)\b)*[(\[]?[A-Z][)\].:]*(?:(?:[\s,;/&|]|\b(?:or|and)\b)+[(\[]?[A-Z][)\].:]*)*"
    r"|(?:.*[\s,;])?\bor\b\s*(?:\([A-J]\)|[A-J][).:]).*"
    r"|.*[,;]\s*(?:\([A-J]\)|[A-J][).:])\s.*"
    r"|(?:or|and)\b.*",
    re.DOTALL,
)


def _boxes(text: str) -> list[int]:
    """Where the boxes of a text begin."""
    for name in (r"\\boxed(?![A-Za-z])", r"\\fbox(?![A-Za-z])"):
        found = [match.start() for match in re.finditer(name, text)]
        if found:
            return found
    return []


def _content(text: str, start: int) -> str | None:
    """The content of the box that begins at ``start``, stripped; None where it isn't closed."""
    found = re.compile(r"\\f?box(?:ed)?\s*").match(text, start)
    if text[found.end() : found.end() + 1] != "{":  # \\boxed 5
        bare = re.compile(r"[^\s$\\{}]+").match(text, found.end())
        return bare[0].rstrip(".,;:") or None if bare else None
    depth = 0
    for i in range(found.end(), len(text)):
        if text[i - 1] == "\\" and text[i - 2 : i] != "\\\\":
            continue  # \{ and \} are characters, not braces
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[found.end() + 1 : i].strip() or None
    return None


def boxed(text: str) -> str | None:
    """The content of the one closed ``\\boxed{...}``, stripped; None where there is no such box."""
    starts = _boxes(text)
    return _content(text, starts[0]) if len(starts) == 1 else None


def last_boxed(text: str) -> str | None:
    """The content of the last box, stripped; None where there is none or it isn't closed."""
    starts = _boxes(text)
    return _content(text, starts[-1]) if starts else None


def _answer_line(text: str) -> tuple[int, str] | None:
    """Where the last ``Answer:`` with an answer stands, and the rest of its line."""
    end = len(text)
    for label in reversed(list(_LABEL.finditer(text))):
        start = _OPENERS.match(text, label.end(), end).end()
        opened = text[label.end() : start].rpartition("\n")[2]
        line = opened + text[start:end].partition("\n")[0]
        end = label.start()
        if line.strip(" \t\r*_`$"):
            return label.start(), line.strip()
    return None


def answer_line(text: str) -> str | None:
    """What follows the last ``Answer:``, to the end of its line; None where there is none."""
    line = _line(text)
    if line is None or len(line) > MAX_CHARACTERS:
        return line
    own = _after_equals(undress(line))
    value = unit(own, glued=True)[0]
    return (value if number(value) else own) or None


def _line(text: str) -> str | None:
    """The line of the last answer as it is written, or the content of its last box."""
    found = _answer_line(text)
    return found and (last_boxed(found[1]) or found[1])


def _after_equals(own: str) -> str:
    """What stands behind the last "=" of an answer that is no equation."""
    *before, last = own.split("=")
    names = map(str.strip, before)
    leads = last and "," not in own and all(_NAME.fullmatch(n) or _SUM.fullmatch(n) for n in names)
    return last.strip() if leads else own


def the_answer_is(text: str) -> str | None:
    """The one number, or the text, behind the last ``The answer is:`` on its line; else None."""
    matches = list(_THE_ANSWER_IS.finditer(text))
    return number_or_text(text[matches[-1].end() :].partition("\n")[0]) if matches else None


def number_or_text(line: str) -> str | None:
    """A line's one number without commas, or without one its text; None for two numbers."""
    numbers = _NUMBER.findall(line)
    if len(numbers) > 1:
        return None
    if numbers:
        return numbers[0].replace(",", "")
    return line.strip("*\"' \t\r").rstrip(".!*\"' \t\r") or None


_RULES = {rule.__name__: rule for rule in (boxed, last_boxed, answer_line, the_answer_is)}


def extract_answer(text: str, verifier: str = "boxed") -> str | None:
    """A response's final answer by the verifier's rule; None where it has none."""
    return _RULES[verifier](text)


def answer_opening(text: str, verifier: str = "boxed") -> int | None:
    """Index at which the final answer opens: the last box, or the last ``Answer:``; else None."""
    if verifier == "answer_line":
        found = _answer_line(text)
        return None if found is None else found[0]
    if verifier == "the_answer_is":
        return max((match.start() for match in _THE_ANSWER_IS.finditer(text)), default=None)
    return max(_boxes(text), default=None)


def is_correct(text: str, answer: str, verifier: str = "boxed", choice: bool = False) -> bool:
    """Whether the response ``text`` has a final answer that equals ``answer``.

    With ``choice`` the answer is an option's letter, and only a letter equals it, whatever text of
    the option stands behind; two letters are no answer.

    >>> is_correct(r"so x = \\boxed{1/2}", "0.5"), is_correct("the sum is 12", "12")
    (True, False)
    """
    own = _line(text) if verifier == "answer_line" else extract_answer(text, verifier)
    if own is None:
        return False
    if choice:
        return chosen_option(own) == answer.upper()
    if verifier == "answer_line" and len(own) <= MAX_CHARACTERS and "=" not in answer:
        own = _after_equals(undress(own))
    if verifier != "the_answer_is":
        return answers_equal(own, answer)
    asked = number_or_text(answer)
    if asked is None:
        return False
    if _NUMBER.fullmatch(own) and _NUMBER.fullmatch(asked):
        return Decimal(own) == Decimal(asked)
    return own.casefold() == asked.casefold()


def check_answer(answer: str, verifier: str, where: str) -> None:
    """Refuse a problem's answer that no response could give under the verifier."""
    if verifier == "the_answer_is" and number_or_text(answer) is None:
        raise TokenshiftError(
            f"{where}: the answer {answer[:40]!r} is not one number and no text without numbers, "
            "so that no response is right under 'verifier: the_answer_is'; name another verifier, "
            "as last_boxed, or correct the answer"
        )


def chosen_option(own: str) -> str | None:
    """The letter of the one option that an answer of multiple choice names: B, (B), B) 3 metres."""
    own = re.sub(r"\*\*|`", "", undress(own[: 4 * MAX_CHARACTERS]))
    found = _LETTER.fullmatch(re.sub(r"^[{$\s]+", "", own))
    if not found or (found[1] and not found[3]):
        return None
    rest = found[4].strip(" $}*_")
    return None if rest and _SECOND.fullmatch(rest) else found[2].upper()


def answers_equal(own: str, answer: str) -> bool:
    """Whether two answers are the same number, expression or text.

    ``033`` is 33 and ``1,234`` is 1234. Digits apart (``1 7``) are refused, unless they are groups
    of three; so is what can't be compared in ``SECONDS``. A unit counts where both have one.
    """
    own, answer = own.strip(), answer.strip()
    if own == answer:
        return bool(own)
    if max(len(own), len(answer)) > MAX_CHARACTERS:
        return number(own) is not None and number(own) == number(answer)
    return _equal(unspelled(undress(own)), unspelled(undress(answer)))


def _equal(own: str, answer: str) -> bool:
    """Whether two undressed answers are the same."""
    if not own or not answer:
        return False
    if own == answer:
        return True
    numbers = number(own), number(answer)
    if None not in numbers:
        if numbers[0] == numbers[1]:
            return True
        if not numbers[0][2] and not numbers[1][2]:
            return False
    percent = own.endswith("%"), answer.endswith("%")
    if any(percent):
        return _equal_percent(own.rstrip("% "), answer.rstrip("% "), *percent)
    (value, mine), (right, asked) = unit(own, glued=True), unit(answer)
    if (value, right) != (own, answer):
        return (mine == asked or not mine or not asked) and _equal(value, right)
    if is_prose(own) or is_prose(answer):
        return folded(own) == folded(answer)
    kinds = brackets(own), brackets(answer)
    if all(kinds) and kinds[0] != kinds[1]:
        return False
    if ", " in answer and number(own) and "," in own:
        own = own.replace(",", ", ")
    own, answer = expression(own), expression(answer)
    return bool(own and answer) and (own == answer or _verified(own, answer))


def _equal_percent(own: str, answer: str, mine: bool, asked: bool) -> bool:
    """Two answers of which at least one has a percent sign: 50% is 50 where 50 is asked, and 0.5.

    What is asked below 1 without the sign is a fraction, of which 0.5% is not one half.
    """
    if mine and asked:
        return _equal(own, answer)
    percent, plain = (own, answer) if mine else (answer, own)  # with the sign, without
    value = number(plain)
    if (value is None or value[1] or not value[2]) and _equal(own, answer):
        return True
    return _equal(rf"\frac{{{percent}}}{{100}}", plain)


# The process that compares expressions ----------------------------------------------------------

_judges: dict[int, subprocess.Popen] = {}  # by the process that started it: a fork has its own
_lock = threading.Lock()
# By others: what ends it of itself is SIGPROF, a fault or an error.
_KILLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


@lru_cache(maxsize=4096)
def _verified(own: str, answer: str) -> bool:
    """Ask the judge. Where it ends over a comparison, for its time or memory, they are not equal.

    A judge that was killed gave no verdict: another one is asked.
    """
    with _lock:
        for _ in range(ATTEMPTS):
            judge = _judges.get(os.getpid()) or _start_judge()
            try:
                judge.stdin.write(json.dumps([answer, own, SECONDS]) + "\n")
                judge.stdin.flush()
                verdict = judge.stdout.readline().strip()
            except BrokenPipeError:
                verdict = ""
            if verdict not in ("True", "False"):
                with suppress(subprocess.TimeoutExpired):
                    judge.wait(EXIT_SECONDS)
                stop_judge()
            if verdict or judge.returncode not in _KILLED:
                return verdict == "True"
    raise TokenshiftError(
        f"the process that compares answers was killed {ATTEMPTS} times over {own[:80]!r} and "
        f"{answer[:80]!r}; see whether memory is short, then run the command again"
    )


def _start_judge() -> subprocess.Popen:
    """Start this process's judge: a fresh interpreter, so that any thread may ask it."""
    judge = subprocess.Popen(
        [sys.executable, "-m", "tokenshift_utils.tasks.math_judge"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # math-verify warns that it sets no limit itself
        text=True,
        encoding="utf-8",
    )
    if judge.stdout.readline().strip() != "ready":
        judge.wait()
        raise RuntimeError("the process that compares answers did not start")
    _judges[os.getpid()] = judge
    return judge


@atexit.register
def stop_judge() -> None:
    """End this process's judge; the next comparison starts another."""
    judge = _judges.pop(os.getpid(), None)
    if judge is not None:
        judge.kill()
        judge.communicate()
