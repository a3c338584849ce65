"""What a study reads, checked before anything is computed or written."""

from tokenshift_utils.study.checkpoints import (
    check_model,
    check_same_size,
    check_weights,
    is_adapter,
)
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import (
    check_same_tokenizer,
    load_tokenizer,
)
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.prompts import prompt_text, stop_token_ids


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
                continue
            size = check_model(directory, study.model(name).trust_remote_code)
            check_same_tokenizer(base, directory)
            check_same_size(base, own_size, directory, size)
    stop_token_ids(load_tokenizer(base), study.stop_tokens)
    prompt_text(study, problems[study.cross_benchmark][0].problem)
