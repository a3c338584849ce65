"""Tokenizers that can be trusted: they survive their own loading, and a pair shares one.

``AutoTokenizer`` picks a class by the model type and may thereby replace a directory's tokenizer by
another that maps text to other ids without a word; two models of one size may still number their
tokens differently. Both are found here before anything is computed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from tokenshift_utils.errors import TokenshiftError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = 256  # tokens, evenly spread over the vocabulary, whose text must survive a round trip


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local model directory; code that lies beside it is never run."""
    directory = Path(directory)
    if not any(
        (directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        raise TokenshiftError(
            f"there is no tokenizer in {directory} (no tokenizer.json); "
            "the model is incomplete: train or fetch it again"
        )
    try:
        from transformers import AutoTokenizer  # (seconds, which a run with records need not wait)

        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise TokenshiftError(
            f"the tokenizer in {directory} cannot be loaded ({first_line(error)}); "
            "its files may be damaged: train or fetch the model again"
        ) from error


def _is_text(text: str) -> bool:
    """Whether a token's text could stand in a response: no half character, no reserved marker."""
    marker = re.fullmatch(r"<\S+>|\[\S+\]", text)
    whole = "\ufffd" not in text and unicodedata.normalize("NFC", text) == text
    return bool(text) and whole and marker is None


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, directory: str | Path
) -> None:
    """Refuse a tokenizer that did not survive its loading from ``directory``.

    Its ids must lie inside the model's vocabulary, it must number text as the directory's
    tokenizer.json does, and encoding then decoding must not change a text.
    """
    directory = Path(directory)
    vocabulary = tokenizer.get_vocab()
    token, highest = max(vocabulary.items(), key=lambda item: item[1])
    if highest >= vocab_size:
        raise TokenshiftError(
            f"the tokenizer in {directory} numbers the token {token!r} {highest}, but the model's "
            f"vocabulary has only {vocab_size} ids; give the model its own tokenizer"
        )
    special = set(tokenizer.all_special_ids)
    plain = [i for i in sorted(vocabulary.values()) if i not in special]
    texts = [tokenizer.decode([i]) for i in plain[:: max(1, len(plain) // PROBES)]]
    texts = [t for t in texts if _is_text(t)]
    file = directory / "tokenizer.json"
    own = Tokenizer.from_file(str(file)) if file.is_file() else None
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if own is not None and ids != own.encode(text, add_special_tokens=False).ids:
            raise TokenshiftError(
                f"the tokenizer in {directory} loads as a {type(tokenizer).__name__} that numbers "
                f"{text!r} differently from its own tokenizer.json; save it with a model type and "
                "tokenizer class that load it unchanged"
            )
        back = tokenizer.decode(ids)
        if back != text:
            raise TokenshiftError(
                f"the tokenizer in {directory} turns {text!r} into {back!r} by encoding and "
                "decoding it; repair its decoder or pre-tokenizer"
            )


def _description(directory: Path) -> dict[str, Any]:
    """What must be equal for two tokenizers to be one, by the name it has in messages."""
    tokenizer = load_tokenizer(directory)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text()) if file.is_file() else {}
    model = content.get("model") or {}
    added = tokenizer.added_tokens_decoder
    return {
        "vocabulary": tokenizer.get_vocab(),
        "merges": [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []],
        "special tokens": {str(t): i for i, t in added.items() if t.special},
        "text processing": [
            content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")
        ],
        "chat template": tokenizer.chat_template,
    }


def _difference(what: str, a: Any, b: Any) -> str:
    """Where two descriptions part, in a few words."""
    if isinstance(a, dict):
        token = min(
            (t for t in a.keys() | b.keys() if a.get(t) != b.get(t)),
            key=lambda t: (a.get(t, b.get(t)), t),
        )
        numbers = [d.get(token, "absent") for d in (a, b)]
        return (
            f"in their {what} ({token!r} is {numbers[0]} in the first, {numbers[1]} in the second)"
        )
    if what == "merges":
        first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        return f"in their merges (the first difference is at rule {first})"
    return f"in their {what}"


def check_same_tokenizer(first: str | Path, second: str | Path) -> None:
    """Refuse two model directories whose tokenizers differ.

    Compared are the whole vocabulary, merges, special tokens, text processing and chat template.
    Which special token ends a response may differ (generation stops on either model's), and one of
    the two may lack a chat template.
    """
    first, second = Path(first), Path(second)
    a, b = _description(first), _description(second)
    for what in a:
        if what == "chat template" and None in (a[what], b[what]):
            continue
        if a[what] != b[what]:
            raise TokenshiftError(
                f"the tokenizers of {first} and {second} differ {_difference(what, a[what], b[what])}; "
                "compare models that share one tokenizer"
            )
