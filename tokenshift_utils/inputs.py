"""What a study reads, checked before anything is computed or written."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tokenshift_utils.benchmarks import load_benchmark
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.fingerprints import check_model_directory, check_trained_on, is_adapter
from tokenshift_utils.hf_policy import load_config
from tokenshift_utils.prompts import prompt_text, stop_token_ids
from tokenshift_utils.study import Study
from tokenshift_utils.tokenizer_checks import (
    check_same_tokenizer,
    check_tokenizer,
    load_tokenizer,
)


def check_inputs(study: Study) -> None:
    """Look at all benchmarks and models of a study, without loading a weight.

    Raises
    ------
    TokenshiftError
        For a missing or empty benchmark, a missing or damaged model, a tokenizer that doesn't
        survive its loading or differs from the base's, another vocabulary, a stop token that is
        none, or a chat template that isn't there.
    """
    problems = {name: load_benchmark(study, name) for name in study.benchmarks}
    names = [
        *study.models,
        *(step for name in study.models for step in study.checkpoint_names(name)),
    ]
    base = study.model_path(study.base)
    own_size = check_model(base, study.model(study.base).trust_remote_code)
    for name in names:
        if name != study.base:
            directory = study.model_path(name)
            if is_adapter(directory):  # (which has the base model's tokenizer)
                check_weights(directory)
                check_trained_on(directory, base)
                continue
            size = check_model(directory, study.model(name).trust_remote_code)
            check_same_tokenizer(base, directory)
            check_same_size(base, own_size, directory, size)
    stop_token_ids(load_tokenizer(base), study.stop_tokens)
    prompt_text(study, problems[study.cross_benchmark][0].problem)


def check_same_size(base: Path, base_size: int, tuned: Path, tuned_size: int) -> None:
    """Refuse two models that give probabilities to different numbers of tokens."""
    if base_size != tuned_size:
        raise TokenshiftError(
            f"{base} and {tuned} give probabilities to {base_size} and {tuned_size} tokens; compare "
            "models whose vocabularies have one size"
        )


def check_model(directory: Path, trust_remote_code: bool = False) -> int:
    """Refuse a model directory whose configuration, weight files or tokenizer can't be used.

    Of the weights only the headers are read; a file that was cut short doesn't match its header.
    Returns how many tokens the model gives probabilities to.
    """
    config = load_config(directory, trust_remote_code)
    check_weights(directory)
    vocab_size = config.get_text_config(decoder=True).vocab_size
    check_tokenizer(load_tokenizer(directory), vocab_size, directory)
    return vocab_size


def check_weights(directory: Path) -> None:
    """Refuse weight files that are missing or were cut short, by their headers."""
    check_model_directory(directory)
    for index in directory.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (directory / name).is_file():
                raise TokenshiftError(
                    f"the model in {directory} lacks {name}, which {index.name} lists; fetch it again"
                )
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise TokenshiftError(
                f"the weights in {file} are damaged ({error}); fetch or train the model again"
            ) from None
