"""Prompts: how a problem becomes the text that a model goes on from, and what ends a response."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenshift_utils.errors import TokenshiftError, first_line
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
        Where the study names a chat template that isn't there, or that makes no prompt of a problem.
    """
    text = study.prompt.template.format(problem=problem)
    return text if study.prompt.chat is None else _render(study, text)


def _render(study: Study, text: str, **given: Any) -> str:
    """The chat template's prompt of a user's turn; ``given`` stands for names of the template's."""
    chat, system = study.prompt.chat, study.prompt.system
    turns = [] if system is None else [{"role": "system", "content": system}]
    for example in study.prompt.examples:
        asked = study.prompt.template.format(problem=example.problem)
        turns.append({"role": "user", "content": asked})
        turns.append({"role": "assistant", "content": example.response})
    turns.append({"role": "user", "content": text})
    directory = study.model_path(chat)
    tokenizer = _chat_tokenizer(directory)
    try:
        prompt = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **given
        )
        prompt.encode("utf-8")  # (raises for half a character)
        return prompt
    except Exception as error:
        advice = "name another model there, or write the turns into 'prompt.template'"
        if system is not None:
            advice = f"leave 'prompt.system' out if it is not for this model, {advice}"
        raise TokenshiftError(
            f"the chat template of the model '{chat}' ({directory}), which the study's 'prompt.chat' "
            f"names, makes no prompt: {first_line(error)} ({type(error).__name__}); {advice}"
        ) from error


def check_prompt(study: Study) -> str | None:
    """Look at what a chat template makes of a problem; a remark where it writes the date.

    Raises
    ------
    TokenshiftError
        Where it writes nothing, leaves the problem out, or writes something else every time or
        with the time of day, so that no prompt could be made again.
    """
    if study.prompt.chat is None:
        prompt_text(study, "1")
        return None
    whose = f"the chat template of the model '{study.prompt.chat}'"
    advice = "write the turns into 'prompt.template' in place of 'prompt.chat'"
    texts = [study.prompt.template.format(problem=f"What is {p}?") for p in ("1+2", "3+4")]
    if any(text.strip() not in _render(study, text) for text in texts):
        raise TokenshiftError(
            f"{whose} leaves the problem out of the prompt, or writes it otherwise; {advice}"
        )

    def at(*moment: int) -> str:
        return _render(study, texts[0], strftime_now=datetime(*moment).strftime)

    moment = (2001, 1, 1, 0, 0, 0)
    made = at(*moment)
    if any(at(*moment) != made for _ in range(8)):
        raise TokenshiftError(f"{whose} writes something else every time it is asked; {advice}")
    if at(2001, 1, 1, 13, 59, 58, 7) != made:
        raise TokenshiftError(
            f"{whose} writes the time of day, so that no prompt could be made again; {advice}"
        )
    if any(at(*day) != made for day in ((2001, 1, 2), (2001, 3, 1), (2026, 1, 1))):
        return (
            f"{whose} writes the date, so that records of another day are other records, and are "
            f"computed anew; to keep one prompt, {advice}"
        )
    return None


def prompt_parts(study: Study) -> dict:
    """All that determines the prompts of given problems and their ends, for the store's keys.

    Of a chat that is what its template writes around two problems, besides the template itself: the
    date, where it writes that.
    """
    content: dict = {"text": study.prompt.template, "system": study.prompt.system, "chat": None}
    if study.prompt.chat is not None:
        tokenizer = _chat_tokenizer(study.model_path(study.prompt.chat))
        written = [prompt_text(study, problem) for problem in ("1+2", "Why?\n\nSay so. ")]
        content["chat"] = {"template": tokenizer.chat_template, "written": written}
    if study.prompt.examples:
        content["examples"] = [example.model_dump() for example in study.prompt.examples]
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
