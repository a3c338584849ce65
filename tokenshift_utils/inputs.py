"""What a study reads, checked before anything is computed or written."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from tokenshift_utils.benchmarks import load_benchmark
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.hf_policy import load_config
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
        survive its loading, or one that differs from the base's.
    """
    for name in study.benchmarks:
        load_benchmark(study, name)
    names = [
        *study.models,
        *(step for name in study.models for step in study.checkpoint_names(name)),
    ]
    base = study.model_path(study.base)
    for name in names:
        directory = study.model_path(name)
        check_model(directory)
        if name != study.base:
            check_same_tokenizer(base, directory)


def check_model(directory: Path) -> None:
    """Refuse a model directory whose configuration, weight files or tokenizer can't be used.

    Of the weights only the headers are read; a file that was cut short doesn't match its header.
    """
    config = load_config(directory)
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise TokenshiftError(
                f"the weights in {file} are damaged ({error}); fetch or train the model again"
            ) from None
    vocab_size = config.get_text_config(decoder=True).vocab_size
    check_tokenizer(load_tokenizer(directory), vocab_size, directory)
