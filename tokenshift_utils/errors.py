"""The one exception that stands for a user's mistake."""

from __future__ import annotations


class TokenshiftError(Exception):
    """A mistake in what the user gave: one clear sentence saying what, where and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, cut to a readable length, or its class."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
