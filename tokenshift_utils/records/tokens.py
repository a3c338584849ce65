"""The texts of token ids, by the tokenizer that all models of a study share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pandas as pd

from tokenshift_utils.study.tokenizers import load_tokenizer

NATURAL_VOCABULARY = 1000  # tokens, at least, of a tokenizer of natural language


@lru_cache(maxsize=4)
def tokenizer(study):
    """The tokenizer of the study's base, which all its models share."""
    return load_tokenizer(study.model_path(study.base))


def is_natural_language(study) -> bool:
    """Whether texts are taken for natural language: by the size of the vocabulary."""
    return len(tokenizer(study)) >= NATURAL_VOCABULARY


def token_decoder(study) -> Callable[[int], str]:
    """What tells the text of a token from its id."""
    return lambda token: tokenizer(study).decode([int(token)])


def token_texts(study, shifts: dict[str, pd.DataFrame]) -> dict[int, str]:
    """Token id -> its text, of all tokens in some shifts, with line breaks made visible."""
    ids = {int(i) for frame in shifts.values() for i in frame["token"].unique()}
    return {i: tokenizer(study).decode([i]).replace("\n", "\\n") for i in sorted(ids)}
