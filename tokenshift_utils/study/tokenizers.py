"""Tokenizers that can be trusted: they survive their own loading, and a pair shares one.

``AutoTokenizer`` picks a class by the model type and may thereby replace a directory's tokenizer by
another that maps text to other ids without a word; two models of one size may still number their
tokens differently. Both are found here before anything is computed, by what tokenizers do.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.files import read_json, texts_in
from tokenshift_utils.study.checkpoints import is_adapter, load_config, load_generation
from tokenshift_utils.study.tokenizer_probes import backend, first_difference

PROBES = 256  # tokens, evenly spread over the vocabulary, whose text must survive a round trip
FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
FILES += ("chat_template*", "config.json", "*.model", "*.tiktoken")
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_known: dict[tuple, tuple[Any, dict]] = {}  # what is known to load some files unchanged


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory brings a tokenizer."""
    names = ("tokenizer.json", "tokenizer_config.json")
    return any((directory / name).is_file() for name in names)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local model directory; code that lies beside it is never run.

    Where ``AutoTokenizer`` makes something else of its tokenizer.json, the class that takes that
    file as it stands is used, with the special tokens and the chat template that the directory names.

    Raises
    ------
    TokenshiftError
        Where there is none, it cannot be loaded, or none of the classes loads it unchanged.
    """
    directory = Path(directory)
    if not has_tokenizer(directory):
        raise TokenshiftError(
            f"there is no tokenizer in {directory} (no tokenizer.json); "
            "the model is incomplete: train or fetch it again"
        )
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # (seconds, so not above)

    state = _state(directory)
    if state in _known:
        loader, named = _known[state]
        return _load(loader, directory, named)
    try:
        tokenizer = _load(AutoTokenizer, directory)
    except TokenshiftError:
        if not (directory / "tokenizer.json").is_file():
            raise
        tokenizer, named = None, {}
    else:
        if _change(tokenizer, directory) is None:
            _known[state] = AutoTokenizer, {}
            return tokenizer
        named = {name: getattr(tokenizer, name, None) for name in NAMED}
    plain = _load(PreTrainedTokenizerFast, directory, named)
    if _change(plain, directory) is not None:
        _refuse_change(plain if tokenizer is None else tokenizer, directory)
    _known[state] = PreTrainedTokenizerFast, named
    return plain


def _state(directory: Path) -> tuple:
    """What tells whether the files of a tokenizer have changed."""
    files = sorted({file for pattern in FILES for file in directory.glob(pattern)})
    status = [file.stat() for file in files]
    found = [(f.name, s.st_size, s.st_mtime_ns) for f, s in zip(files, status, strict=True)]
    return (str(directory.resolve()), *found)


def _load(loader: Any, directory: Path, named: dict[str, str | None] | None = None) -> Any:
    """A tokenizer by one class; ``named`` are special tokens, used where the files name none."""
    try:
        tokenizer = loader.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise _damaged(directory, first_line(error)) from error
    tokenizer.encode("a", add_special_tokens=False)  # forgets a truncation or padding in its files
    if isinstance(tokenizer.chat_template, str):  # (a byte order mark of its file is no prompt)
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    vocabulary = tokenizer.get_vocab() if named else {}
    for name, token in (named or {}).items():
        if token in vocabulary and getattr(tokenizer, name) is None:
            setattr(tokenizer, name, token)
    return tokenizer


def _damaged(directory: Path, why: str) -> TokenshiftError:
    return TokenshiftError(
        f"the tokenizer in {directory} cannot be loaded ({why}); its files may be damaged: train or "
        "fetch the model again"
    )


def _own(tokenizer: Any, directory: Path) -> tuple[Tokenizer, dict[str, int]]:
    """A directory's tokenizer.json as the library reads it, with its vocabulary.

    What its other files add to ``tokenizer`` is added, as they say.
    """
    try:
        own = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:
        raise _damaged(directory, f"tokenizer.json: {first_line(error)}") from error
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = bool(tokenizer.split_special_tokens)
    vocabulary, declared = own.get_vocab(), _declared(directory)
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        if str(token) not in vocabulary and str(token) in declared:
            own.add_tokens([token])
            vocabulary[str(token)] = own.token_to_id(str(token))
    return own, vocabulary


def _declared(directory: Path) -> set[str]:
    """Every string in the files that may name tokens beside tokenizer.json."""
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    files = [directory / name for name in names if (directory / name).is_file()]
    return {t for file in files for t in texts_in(read_json(file, "fetch or save the model again"))}


def _special(added: dict[int, Any]) -> dict[str, int]:
    return {str(token): i for i, token in added.items() if token.special}


def _change(tokenizer: Any, directory: Path) -> str | None:
    """What a loaded tokenizer does otherwise than its directory's tokenizer.json, as the end of a
    sentence; None where nothing."""
    own, vocabulary = _own(tokenizer, directory)
    loaded = tokenizer.get_vocab()
    if loaded != vocabulary:
        token, *ids = _first_entry(loaded, vocabulary)
        return (
            f"numbers {token!r} differently from its own tokenizer.json ({ids[0]}, there {ids[1]})"
        )
    added = [tokenizer.added_tokens_decoder, own.get_added_tokens_decoder()]
    special = [_special(tokens) for tokens in added]
    promoted = set(map(str, tokenizer.all_special_tokens))
    extra = {t: i for t, i in special[0].items() if t in special[1] or t not in promoted}
    if extra != special[1]:
        token, *ids = _first_entry(extra, special[1])
        kinds = ["no special token" if i == "absent" else "a special token" for i in ids]
        return f"has {token!r} as {kinds[0]}, which is {kinds[1]} in its own tokenizer.json"
    found = first_difference(
        backend(tokenizer) or tokenizer, own, vocabulary, _suspects(*added), skip=False
    )
    if found is None:
        return None
    made = f"({_short(found.first)}, there {_short(found.second)})"
    if isinstance(found.given, str):
        return f"numbers {found.given!r} differently from its own tokenizer.json {made}"
    return f"turns the ids {found.given} into another text than its own tokenizer.json {made}"


def _short(made: Any) -> str:
    """Ids or a text, cut to a readable length."""
    text = repr(made) if isinstance(made, str) else str(made)
    return text if len(text) <= 120 else f"{text[:120]}…"


def _first_entry(a: dict[str, int], b: dict[str, int]) -> tuple[str, Any, Any]:
    """The lowest id where two vocabularies part: its token, and the token's id in each."""
    token = min(
        (t for t in a.keys() | b.keys() if a.get(t) != b.get(t)),
        key=lambda t: (a.get(t, b.get(t)), t),
    )
    return token, a.get(token, "absent"), b.get(token, "absent")


def _suspects(a: dict[int, Any], b: dict[int, Any]) -> list[str]:
    """Added tokens of two tokenizers by their text, those that they treat differently first."""
    kinds = [{str(t): _flags(t) for t in added.values()} for added in (a, b)]
    tokens = dict.fromkeys([*kinds[0], *kinds[1]])
    return sorted(tokens, key=lambda t: kinds[0].get(t) == kinds[1].get(t))


def _flags(token: Any) -> tuple[bool, ...]:
    return token.lstrip, token.rstrip, token.single_word, token.normalized, token.special


def _refuse_change(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    change = _change(tokenizer, directory)
    if change is not None:
        raise TokenshiftError(
            f"the tokenizer in {directory} loads as a {type(tokenizer).__name__} that {change}; "
            "save it with a model type and tokenizer class that load it unchanged"
        )


def _is_text(text: str) -> bool:
    """Whether a token's text could stand in a response: no half character, no reserved marker."""
    marker = re.fullmatch(r"<\S+>|\[\S+\]", text)
    intact = "\ufffd" not in text and unicodedata.normalize("NFC", text) == text
    return bool(text) and intact and marker is None


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, directory: str | Path
) -> None:
    """Refuse a tokenizer that did not survive its loading from ``directory``.

    Its ids must lie inside the model's vocabulary, it must number text and turn ids into text as
    the directory's tokenizer.json does, and encoding then decoding must not change a text.
    """
    directory = Path(directory)
    vocabulary = tokenizer.get_vocab()
    token, highest = max(vocabulary.items(), key=lambda item: item[1])
    if highest >= vocab_size:
        raise TokenshiftError(
            f"the tokenizer in {directory} numbers the token {token!r} {highest}, but the model's "
            f"vocabulary has only {vocab_size} ids; give the model its own tokenizer"
        )
    if (directory / "tokenizer.json").is_file():
        _refuse_change(tokenizer, directory)
    special = set(tokenizer.all_special_ids)
    plain = [i for i in sorted(vocabulary.values()) if i not in special]
    texts = [tokenizer.decode([i]) for i in plain[:: max(1, len(plain) // PROBES)]]
    for text in filter(_is_text, texts):
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if back != text:
            raise TokenshiftError(
                f"the tokenizer in {directory} turns {text!r} into {back!r} by encoding and "
                "decoding it; repair its decoder or pre-tokenizer"
            )


def check_same_tokenizer(first: str | Path, second: str | Path) -> None:
    """Refuse two model directories whose tokenizers do something differently.

    Compared are the whole vocabulary, the merges or scores, the special tokens, the ids of many
    texts and the texts of many ids. How the files say it, which version saved them and which
    special token ends a response may differ (generation stops on either model's), and so may the
    chat templates (see `templates_differ`). An adapter that brings no tokenizer is run with its base
    model's.
    """
    first, second = Path(first), Path(second)
    if is_adapter(second) and not has_tokenizer(second):
        return
    a, b = load_tokenizer(first), load_tokenizer(second)
    if type(a) is type(b) and _contents(first) == _contents(second):
        return
    difference = _difference(a, b)
    if difference is not None:
        raise TokenshiftError(
            f"the tokenizers of {first} and {second} differ in their {difference}; "
            "compare models that share one tokenizer"
        )


def _contents(directory: Path) -> dict[str, bytes]:
    """The files that say what a tokenizer does, beside the class that loads them."""
    files = {f for pattern in FILES if pattern != "config.json" for f in directory.glob(pattern)}
    return {file.name: file.read_bytes() for file in files}


def _difference(a: Any, b: Any) -> str | None:
    """Where two tokenizers part, with an example."""
    vocabularies = [t.get_vocab() for t in (a, b)]
    if vocabularies[0] != vocabularies[1]:
        return f"vocabulary ({_entry(*vocabularies)})"
    added = [t.added_tokens_decoder for t in (a, b)]
    special = [_special(tokens) for tokens in added]
    if special[0] != special[1]:
        return f"special tokens ({_entry(*special)})"
    found = first_difference(a, b, vocabularies[0], _suspects(*added))
    rule = _rules_differ(a, b)
    if rule is not None:
        example = "" if found is None else f"; {found}"
        return f"{rule}{example})"
    return None if found is None else f"text processing ({found})"


def _entry(a: dict[str, int], b: dict[str, int]) -> str:
    token, *ids = _first_entry(a, b)
    return f"{token!r} is {ids[0]} in the first, {ids[1]} in the second"


def _rules_differ(a: Any, b: Any) -> str | None:
    """Where the merges or the scores of two vocabularies part, as the beginning of a remark."""
    inner = [backend(t) for t in (a, b)]
    if None in inner:
        return None
    # The model is the last part, and most of it, so it is only read where it isn't the same text.
    models = [t.to_str().partition('"model":{')[2] for t in inner]
    if models[0] == models[1]:
        return None
    x, y = (json.loads("{" + text[:-1]) for text in models)
    if isinstance(x.get("vocab"), list) and x["vocab"] != y.get("vocab"):  # Unigram's
        at = next((i for i, (p, q) in enumerate(zip(x["vocab"], y["vocab"])) if p != q), 0)
        return f"scores (the first difference is at token {at}"
    merges = [model.get("merges") or [] for model in (x, y)]
    if merges[0] != merges[1]:
        same = (p == q for p, q in zip(*merges))
        at = next((i for i, equal in enumerate(same) if not equal), min(map(len, merges)))
        return f"merges (the first difference is at rule {at}"
    return None


CHATS = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 1+2?\n"}],
    [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "<think>\nc\n</think>\n\nd "},
        {"role": "user", "content": "e"},
    ],
)


def templates_differ(first: Path, second: Path) -> str | None:
    """An example where the chat templates of two model directories write different prompts.

    None where they write alike, or one has none.
    """
    if not has_tokenizer(first) or not has_tokenizer(second):
        return None
    a, b = load_tokenizer(first), load_tokenizer(second)
    if None in (a.chat_template, b.chat_template) or a.chat_template == b.chat_template:
        return None
    for chat in CHATS:
        one, two = (_written(t, chat) for t in (a, b))
        if one != two:
            return f"of {chat[-1]['content']!r} one makes {_short(one)}, the other {_short(two)}"
    return None


def _written(tokenizer: Any, chat: list) -> str:
    """What a chat template makes of a chat, be it an error."""
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001 (a template may raise anything)
        return f"no prompt ({first_line(error)})"


def eos_ids(
    config: PreTrainedConfig,
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, ...]:
    """Every id that ends a response: by both configurations (or None) and by the tokenizer."""
    named = [config.get_text_config(decoder=True).eos_token_id, tokenizer.eos_token_id]
    named.append(generation.eos_token_id if generation is not None else None)
    ids: set[int] = set()
    for value in named:
        ids.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return tuple(sorted(int(i) for i in ids))


def model_ends(directory: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a model's response, read without its weights."""
    return eos_ids(load_config(directory), load_generation(directory), load_tokenizer(directory))
