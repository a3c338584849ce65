"""What a cell of people's data means as text: as it stands where that is plain, else refused.

Text is itself; bytes are UTF-8; a number is its decimal digits (33.0 is "33", as pandas makes of
whole numbers where one is missing); a list of one thing is that thing. Of the layout of verl's data
a prompt of one user message is its content, and a ``reward_model`` its ``ground_truth``.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.tasks.rows import Unreadable

MAX_DIGITS = 400  # digits before or behind the point of a number that is no plain integer


def text_of(value: Any, where: str, column: str) -> str:
    """A problem, answer, option or id as text; ``where`` names file and row in the sentence.

    Raises
    ------
    TokenshiftError
        Where the cell is blank, no text and no number, or several; never Python's own notation.
    """
    text = _as_text(value, where, column)
    if not text.strip():
        raise TokenshiftError(f"{where}: '{column}' is blank; fill it or leave the row out")
    return text


def plain_text(value: Any, where: str, column: str) -> str:
    """Text to be read by a model as it stands: a str, or bytes of UTF-8.

    Raises
    ------
    TokenshiftError
        For anything else; chat messages have no text before a template is applied.
    """
    if isinstance(value, list) and value and all(_is_message(item) for item in value):
        raise TokenshiftError(
            f"{where}: '{column}' holds chat messages; apply the models' chat template and give "
            f"its text, or token ids as '{column}_ids'"
        )
    if not isinstance(value, (str, bytes)):
        raise TokenshiftError(f"{where}: '{column}' is {type_name(value)}; give text")
    return _as_text(value, where, column)


def _as_text(value: Any, where: str, column: str) -> str:
    try:
        return _text(value)
    except ValueError as error:
        raise TokenshiftError(f"{where}: '{column}' {error}") from None


def as_integer(value: Any) -> int | None:
    """An integer, also one written as 3.0 or "3"; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, (float, Decimal)):
        number = Decimal(value)
        small = number.is_finite() and number.adjusted() < 16
        return int(number) if small and number == number.to_integral_value() else None
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", value):
        return int(value.strip())  # (int itself takes fewer signs for spaces)
    return None


def type_name(value: Any) -> str:
    """What a cell is, in words."""
    words = {type(None): "empty", bool: "true or false", str: "text", bytes: "bytes"}
    words |= dict.fromkeys((int, float, Decimal), "a number") | {list: "a list", dict: "a record"}
    return words.get(type(value), f"a {type(value).__name__}")


def _text(value: Any) -> str:
    match value:
        case None:
            raise ValueError("is empty; fill it or leave the row out")
        case bool():
            raise ValueError("is true or false; give text or a number")
        case str():
            return _clean(value)
        case bytes():
            try:
                return _clean(value.decode("utf-8"))
            except UnicodeDecodeError:
                raise ValueError("is bytes that are not UTF-8; store it as text") from None
        case int():
            return str(value)
        case float() | Decimal():
            return _number(value)
        case [_, _, *_] if all(map(_is_message, value)):
            raise ValueError(
                f"holds {len(value)} chat messages; give the user's one, and what the system says "
                "as the study's 'prompt.system'"
            )
        case [item]:
            return _text(item)
        case []:
            raise ValueError("is a list of nothing; fill it or leave the row out")
        case list():
            raise ValueError(f"is a list of {len(value)}; give one text or number")
        case dict() if _is_message(value):
            return _content(value)
        case {"ground_truth": answer}:
            return _ground_truth(answer)
        case dict():
            raise ValueError(
                f"is a record of {', '.join(map(str, value))[:80]}; give one text or number"
            )
        case Unreadable():
            raise ValueError(f"can't be read ({value.reason}); store it as text")
    raise ValueError(f"is a {type(value).__name__}; give text or a number")


def _clean(text: str) -> str:
    bad = re.search("[\ud800-\udfff\0]", text)
    if bad is None:
        return text
    what = "NUL" if bad[0] == "\0" else "half a character (a lone surrogate)"
    raise ValueError(f"holds {what}, \\u{ord(bad[0]):04x}; remove or repair it")


def _number(value: float | Decimal) -> str:
    number = value if isinstance(value, Decimal) else Decimal(repr(value))
    if not number.is_finite():
        raise ValueError(f"is {number}, no number; fill it or leave the row out")
    if isinstance(value, float) and abs(value) >= 2**53:
        raise ValueError(f"is {value}, a float too large to be exact; store it as text")
    if number and abs(number.adjusted()) > MAX_DIGITS:
        raise ValueError(f"is {number}, too large or small to write out; store it as text")
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits in ("", "-0") else digits


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= set(value)


def _content(message: dict) -> str:
    if message["role"] != "user":
        raise ValueError(f"is a message of the role {message['role']!r}; give the user's")
    match message["content"]:
        case [{"type": "text", "text": text}]:
            return _text(text)
        case str() | bytes() as text:
            return _text(text)
    raise ValueError("is a message of more than text; give text")


def _ground_truth(answer: Any) -> str:
    """verl's ``ground_truth``: an answer, or JSON text of a list of them."""
    if isinstance(answer, str) and re.fullmatch(r'\s*\[\s*".*"\s*\]\s*', answer, re.DOTALL):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            pass  # then it is text that looks alike
    return _text(answer)
