"""What is said before anything runs where a study's texts are longer than its models were made for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.checkpoints import directory_fingerprint, is_adapter, load_config
from tokenshift_utils.study.positions import alike_up_to, made_for, position_limit
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.prompts import prompt_parts, prompt_text


@dataclass(frozen=True)
class _Context:
    """Room for ``length`` tokens in a model; ``firm``: more cannot be read at all."""

    length: int
    firm: bool
    what: str  # what they are, behind "more than the {length}"
    remedy: str


def check_lengths(
    study: Study,
    limit: int | None = None,
    benchmarks: Iterable[str] | None = None,
    models: Iterable[str] | None = None,
) -> str:
    """Compare the longest prompt and response with what the models were made for.

    Only what is on this machine is looked at. Returns one sentence where a text may be longer than
    those that a model was made for, "" where none may.

    Parameters
    ----------
    limit : new tokens a response, at most; None for the study's
    benchmarks, models : names; None for all of the study's, checkpoints included

    Raises
    ------
    TokenshiftError
        Where a text may have more tokens than a model, or its vLLM engine, can read at all.
    """
    limit = study.sampling.max_new_tokens if limit is None else limit
    models = study.every_model if models is None else models
    prompts = {name: _longest_prompt(study, name) for name in benchmarks or study.benchmarks}
    where, prompt = max(prompts.items(), key=lambda item: item[1])
    passed = [found for m in models if (found := _passed(study, m, prompt + limit)) is not None]
    if not passed:
        return ""
    least = min(passed, key=lambda context: (not context.firm, context.length))
    sentence = (
        f"study {study.name}: prompts of benchmark {where} have up to {prompt} tokens and responses "
        f"up to {limit} more ('sampling.max_new_tokens'), in all {prompt + limit}, which is more "
        f"than the {least.length} {least.what}; lower 'sampling.max_new_tokens', leave out the "
        f"longest problems, or {least.remedy}"
    )
    if least.firm:
        raise TokenshiftError(sentence)
    return sentence


def _longest_prompt(study: Study, benchmark: str) -> int:
    """Tokens of a benchmark's longest prompt; 0 where what makes it is not on this machine."""
    try:
        problems = tuple(problem.problem for problem in load_benchmark(study, benchmark))
        tokenizer = study.model_path(study.base)
        prompts = str(prompt_parts(study)), directory_fingerprint(tokenizer)
    except TokenshiftError:
        return 0
    return _longest(study, problems, tokenizer, prompts)


@lru_cache(maxsize=64)
def _longest(study: Study, problems: tuple[str, ...], tokenizer: Path, prompts: tuple) -> int:
    texts = [prompt_text(study, problem) for problem in problems]
    encoded = load_tokenizer(tokenizer)(texts, add_special_tokens=False)["input_ids"]
    return max(map(len, encoded))


def _passed(study: Study, model: str, tokens: int) -> _Context | None:
    """The context of a model that a text of so many tokens passes; None where none is known to."""
    try:
        if is_adapter(study.model_path(model)):
            model = study.base
        path, spec = study.model_path(model), study.model(model)
        config = load_config(path, spec.trust_remote_code)
    except TokenshiftError:
        return None
    own = made_for(config)
    made = spec.max_position_embeddings or own
    if study.engines is not None:
        room = study.engines.of(model).max_model_len or made
        # What an engine scores it is asked to go on from by a token.
        if room is None or tokens < room:
            return None
        what = f"that the vLLM engine of '{model}' takes, beside one that scoring adds"
        return _Context(room - 1, True, what, "raise 'vllm.max_model_len' where the model can")
    alike = alike_up_to(config)
    if alike is not None and tokens > alike:
        what = f"up to which '{model}' reads a text alike in any batch ({path}), by its RoPE"
        remedy = "take the backend vllm, or models of another scaling"
        return _Context(alike, True, f"{what} scaling", remedy)
    if own is not None and tokens > own:
        has = _limit_of(path, directory_fingerprint(path), spec.trust_remote_code)
        if has is not None:
            what = f"positions that '{model}' has ({path})"
            return _Context(has, True, what, "take models with more")
    if made is None or tokens <= made:
        return None
    what = f"that '{model}' was made for ({path}), so that what lies beyond says little about it"
    key = f"models.{model.partition('@')[0]}.max_position_embeddings"
    return _Context(made, False, what, f"say in '{key}' that it reads more")


@lru_cache(maxsize=64)
def _limit_of(path: Path, fingerprint: str, trusted: bool) -> int | None:
    """``position_limit`` of a model whose weights are not loaded."""
    config = load_config(path, trusted)
    with torch.device("meta"):
        return position_limit(AutoModelForCausalLM.from_config(config, trust_remote_code=trusted))


_told: set[tuple[str, int]] = set()


def tell_lengths(study: Study, parts: Sequence[dict]) -> None:
    """Say on stderr what ``check_lengths`` says of artefacts; once a process, study and limit.

    ``parts`` are those of ``executor.Artefact``: what has no models, benchmark and sampling is
    passed over.
    """
    limits: dict[tuple[str, ...], int] = {}
    for part in parts:
        if {"benchmark", "models", "sampling"} <= part.keys():
            of = part["benchmark"], *part["models"]
            limits[of] = max(limits.get(of, 0), part["sampling"]["max_new_tokens"])
    for (benchmark, *models), limit in limits.items():
        sentence = check_lengths(study, limit, [benchmark], models)
        if sentence and (study.name, limit) not in _told:
            _told.add((study.name, limit))
            print(f"warning: {sentence}", file=sys.stderr)
