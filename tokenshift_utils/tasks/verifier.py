"""Is a response's final answer right? Judged on the decoded text.

A study names the rule by which the final answer is found:

- ``boxed``: the content of the response's one ``\\boxed{...}``, found by matching braces (so that
  ``\\boxed{\\frac{1}{3}}`` is a third). No box, two boxes or an unclosed one: no answer.
- ``answer_line``: what follows the last ``Answer:`` on its line, as DAPO's own verifier has it
  (the last match of ``(?i)Answer\\s*:\\s*([^\\n]+)``); dollar signs around it and a box are removed.

Integers are compared as integers, letters of multiple choice as letters, everything else by
math-verify, in a process of its own that is ended when an expression takes too long.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from functools import lru_cache

BOX = "\\boxed{"
LONGEST = 500  # characters; longer contents are no answers
SECONDS = 5.0  # of processor time for one comparison; what takes longer is not equal
_INTEGER = re.compile(r"[+-]?\d+")
_SPLIT_DIGITS = re.compile(r"\d\s+\d")
_ANSWER_LINE = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
# a letter by itself, or with its option's text behind it: B, (B), \text{B}, **B**, B) 3 metres
_LETTER = re.compile(
    r"\**(?:\\(?:text|textbf|mathrm)\{)?\(?([A-Za-z])(?:[).:}*](?!.*\([A-Za-z]\)).*)?"
)


def box_start(text: str) -> int | None:
    """Index of the one ``\\boxed{`` in ``text``, or None where there is none or more than one."""
    start = text.find(BOX)
    return None if start < 0 or text.find(BOX, start + 1) >= 0 else start


def boxed(text: str) -> str | None:
    """The content of the one closed ``\\boxed{...}``, stripped; None where there is no such box."""
    start = box_start(text)
    if start is None:
        return None
    depth = 0
    for i in range(start + len(BOX) - 1, len(text)):
        if text[i - 1] == "\\" and text[i - 2 : i] != "\\\\":
            continue  # \{ and \} are characters, not braces
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + len(BOX) : i].strip() or None
    return None


def answer_line(text: str) -> str | None:
    """What follows the last ``Answer:``, to the end of its line; None where there is none."""
    matches = _ANSWER_LINE.findall(text)
    if not matches:
        return None
    last = matches[-1].strip().strip("$").strip()
    return boxed(last) or last or None


_RULES = {"boxed": boxed, "answer_line": answer_line}


def extract_answer(text: str, verifier: str = "boxed") -> str | None:
    """A response's final answer by the verifier's rule; None where it has none."""
    return _RULES[verifier](text)


def answer_opening(text: str, verifier: str = "boxed") -> int | None:
    """Index at which the final answer opens: the last box, or the last ``Answer:``; else None."""
    if verifier == "boxed":
        start = text.rfind(BOX)
        return None if start < 0 else start
    return max((match.start() for match in _ANSWER_LINE.finditer(text)), default=None)


def is_correct(text: str, answer: str, verifier: str = "boxed", choice: bool = False) -> bool:
    """Whether the response ``text`` has a final answer that equals ``answer``.

    With ``choice`` the answer is an option's letter, and only a letter equals it.
    """
    own = extract_answer(text, verifier)
    if own is None:
        return False
    if choice:
        letter = _LETTER.fullmatch(own)
        return letter is not None and letter[1].upper() == answer.upper()
    return answers_equal(own, str(answer))


def answers_equal(own: str, answer: str) -> bool:
    """Whether two answers are the same number or expression.

    ``033`` is 33. Digits apart (``1 7``) are refused: math-verify would read them as a sum. So is
    what can't be compared within ``SECONDS``.
    """
    own, answer = own.strip(), answer.strip()
    if _INTEGER.fullmatch(own) and _INTEGER.fullmatch(answer):
        return int(own) == int(answer)
    if own == answer:
        return True
    if len(own) > LONGEST or _SPLIT_DIGITS.search(own):
        return False
    return _verified(own, answer)


# The process that compares expressions ----------------------------------------------------------

_judges: dict[int, subprocess.Popen] = {}  # by the process that started it: a fork has its own
_lock = threading.Lock()


@lru_cache(maxsize=4096)
def _verified(own: str, answer: str) -> bool:
    """Ask the judge. Where it is ended for its time or memory, the answers are not equal."""
    with _lock:
        judge = _judges.get(os.getpid()) or _start_judge()
        try:
            judge.stdin.write(json.dumps([answer, own, SECONDS]) + "\n")
            judge.stdin.flush()
            verdict = judge.stdout.readline().strip()
        except BrokenPipeError:
            verdict = ""
        if verdict not in ("True", "False"):
            stop_judge()
        return verdict == "True"


def _start_judge() -> subprocess.Popen:
    """Start this process's judge: a fresh interpreter, so that any thread may ask it."""
    judge = subprocess.Popen(
        [sys.executable, "-m", "tokenshift_utils.tasks.math_judge"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # math-verify warns that it sets no limit itself
        text=True,
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
