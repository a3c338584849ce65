"""What the choice between two tokens decides, told from their texts alone, by the first rule that holds.

format      one of them ends the response, or has to do with the answer's form (box, answer)
arithmetic  both are digits or numbers: which number stands there
strategy    one of them is in ``STEPS``, words that name a method or a step; or they are of different
            kinds (number, sign, word, punctuation): to calculate or to explain, to work or to guess
wording     what is left: two words, or two marks, for the same thing
"""

from __future__ import annotations

import re

DECIDES = ("format", "arithmetic", "strategy", "wording")
STEPS = (
    "multiply divide add subtract product total sum difference left right start just take check wait "
    "guess maybe looks done ones tens carry borrow each every times plus minus"
)
_FORM = re.compile(r"boxed|answer|final|[{}]|^$|^<.+>$")
_KINDS = (("number", r"[-−]?\d"), ("sign", r"[+\-−*/=×÷<>]|x$"), ("word", r"\w"))


def token_kind(text: str) -> str:
    """ "number", "sign", "word" or "punctuation", by how a token's text begins."""
    return next((n for n, begins in _KINDS if re.match(begins, text.strip())), "punctuation")


def decides(one: str, other: str) -> str:
    """Which of ``DECIDES`` the choice between two tokens is; special tokens have the text "".

    >>> decides(" 1", " 2"), decides(" multiply", " just"), decides(" we", " this")
    ('arithmetic', 'strategy', 'wording')
    """
    texts = one.strip(), other.strip()
    kinds = {token_kind(text) for text in texts}
    if any(_FORM.search(text) for text in texts):
        return "format"
    if kinds == {"number"}:
        return "arithmetic"
    if len(kinds) > 1 or any(text.lower() in STEPS.split() for text in texts):
        return "strategy"
    return "wording"
