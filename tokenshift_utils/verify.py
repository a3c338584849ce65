"""Is a response's final answer right? Judged on the decoded text.

The final answer is the content of the response's one ``\\boxed{...}``, found by matching braces (so
that ``\\boxed{\\frac{1}{3}}`` is a third). A response with no box, two boxes or an unclosed one has
no answer. Integers are compared as integers, everything else by math-verify.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache

BOX = "\\boxed{"
LONGEST = 500  # characters; longer contents are no answers
SECONDS = 5  # math-verify's limit for one expression, which it can keep in a main thread only
_INTEGER = re.compile(r"[+-]?\d+")
_SPLIT_DIGITS = re.compile(r"\d\s+\d")


def box_start(text: str) -> int | None:
    """Index of the one ``\\boxed{`` in ``text``, or None where there is none or more than one."""
    start = text.find(BOX)
    return None if start < 0 or text.find(BOX, start + 1) >= 0 else start


def extract_answer(text: str) -> str | None:
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


def is_correct(text: str, answer: str) -> bool:
    """Whether the response ``text`` boxes exactly one answer, and it equals ``answer``."""
    own = extract_answer(text)
    return own is not None and answers_equal(own, str(answer))


def answers_equal(own: str, answer: str) -> bool:
    """Whether two answers are the same number or expression.

    ``033`` is 33. Digits apart (``1 7``) are refused: math-verify would read them as a sum.
    """
    own, answer = own.strip(), answer.strip()
    if _INTEGER.fullmatch(own) and _INTEGER.fullmatch(answer):
        return int(own) == int(answer)
    if own == answer:
        return True
    if len(own) > LONGEST or _SPLIT_DIGITS.search(own):
        return False
    return _verified(own, answer, threading.current_thread() is threading.main_thread())


@lru_cache(maxsize=4096)
def _verified(own: str, answer: str, in_main_thread: bool) -> bool:
    # Imported late: it takes a second, and most answers are integers.
    from math_verify import parse, verify

    # The limits rest on SIGALRM, which raises outside the main thread.
    seconds = SECONDS if in_main_thread else None
    parsed = [
        parse(f"${text}$", fallback_mode="no_fallback", parsing_timeout=seconds)
        for text in (answer, own)
    ]
    return all(parsed) and bool(verify(*parsed, timeout_seconds=seconds))
