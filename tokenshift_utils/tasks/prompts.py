"""Prompts: how a problem becomes the text that a model goes on from, and what ends a response."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from tokenshift_utils.study.study import Study


@lru_cache(maxsize=8)
def _chat_tokenizer(directory: Path) -> Any:
    tokenizer = load_tokenizer(directory)
    if tokenizer.chat_template is None:
        raise TokenshiftError(
            f"the tokenizer in {directory}, which the study's 'prompt.chat' names, has no chat "
            "template; name another model there, or write the turns into 'prompt.template'"
        )
    return tokenizer


def prompt_text(study: Study, problem: str) -> str:
    """A problem's prompt.

    Raises
    ------
    TokenshiftError
        Where the study names a chat template that isn't there.
    """
    text, system = study.prompt.template.format(problem=problem), study.prompt.system
    if study.prompt.chat is None:
        return text
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": text})
    tokenizer = _chat_tokenizer(study.model_path(study.prompt.chat))
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def prompt_parts(study: Study) -> dict:
    """All that determines the prompts of given problems and their ends, for the store's keys."""
    chat = study.prompt.chat
    template = chat and _chat_tokenizer(study.model_path(chat)).chat_template
    content = {"text": study.prompt.template, "system": study.prompt.system, "chat": template}
    return content | {"stop_tokens": list(study.stop_tokens)}


def stop_token_ids(tokenizer: Any, tokens: Sequence[str]) -> tuple[int, ...]:
    """Ids of the tokens that a study names as ends of a response.

    Raises
    ------
    TokenshiftError
        For one that is no single token of the tokenizer.
    """
    vocabulary = tokenizer.get_vocab() if tokens else {}
    for token in tokens:
        if token not in vocabulary:
            raise TokenshiftError(
                f"the study's 'stop_tokens' has {token!r}, which is no token of the models' tokenizer"
            )
    return tuple(vocabulary[token] for token in tokens)
