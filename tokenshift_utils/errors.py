"""The one exception that stands for a user's mistake."""


class TokenshiftError(Exception):
    """A mistake in what the user gave: one clear sentence saying what, where and what to do."""
