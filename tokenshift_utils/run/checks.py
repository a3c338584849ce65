"""What a study reads, checked before anything is computed or written."""

import re
import sys
from pathlib import Path

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.adapters import check_adapter
from tokenshift_utils.models.load import check_backend
from tokenshift_utils.pairs.rules import RULE_KINDS, Rule
from tokenshift_utils.study import tokenizers
from tokenshift_utils.study.checkpoints import FINGERPRINTED, check_trained_on, is_adapter
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.weights import check_model, check_same_size
from tokenshift_utils.tasks.answers import undress
from tokenshift_utils.tasks.benchmarks import Problem, load_benchmark
from tokenshift_utils.tasks.prompts import check_prompt, prompt_text, stop_token_ids
from tokenshift_utils.tasks.verifier import check_answer, last_boxed

_GSM8K = re.compile(r"^\s*####", re.MULTILINE)  # before the final answer in GSM8K's solutions


def check_rules(study: Study) -> None:
    """Refuse rules that there are not, thresholds that mean nothing, and what an engine lacks."""
    shown = study.explorer.rules
    if unknown := [name for name in shown or () if name not in RULE_KINDS]:
        raise TokenshiftError(
            f"'explorer.rules' of study {study.name} names '{unknown[0]}': the rules are "
            f"{', '.join(RULE_KINDS)}"
        )
    partial = study.engines is not None and study.engines.top_logprobs != -1
    for name, thresholds in study.cross_sampling.rules.thresholds.items():
        key = f"'cross_sampling.rules.{name}' of study {study.name}"
        for threshold in thresholds:
            try:
                rule = Rule(name, threshold)
            except TokenshiftError as error:
                raise TokenshiftError(f"{key}: {error}") from None
            if rule.kind.parameter != "threshold":
                raise TokenshiftError(f"{key}: rule {name} has no threshold; leave it out")
            if partial and rule.kind.reads_full:
                raise TokenshiftError(
                    f"'vllm.top_logprobs' is {study.vllm.top_logprobs}, but {key} takes the "
                    "log-probs of the whole vocabulary: set it to -1, or leave the rule out"
                )


def check_answers(benchmark: str, problems: list[Problem]) -> None:
    """Refuse right answers that no response's final answer equals: whole solutions, and what the
    problem's verifier can't read."""
    for problem in problems:
        answer = problem.answer
        if _GSM8K.search(answer):
            how = "behind '####'"
        elif "box" in answer and last_boxed(answer) and last_boxed(undress(answer)):
            how = "in a box"
        else:
            if problem.options is None:
                where = f"problem '{problem.id}' of benchmark {benchmark}"
                check_answer(answer, problem.verifier, where)
            continue
        raise TokenshiftError(
            f"the right answer of problem '{problem.id}' of benchmark {benchmark} is a whole "
            f"solution with its final answer {how}, which no response's answer equals; give the final "
            "answer alone"
        )


def check_inputs(study: Study) -> None:
    """Look at all benchmarks and models of a study, without loading a weight.

    Said on stderr are a chat template that writes the date, and models whose own templates write
    other prompts than the study's.

    Raises
    ------
    TokenshiftError
        For a backend that isn't there, a missing or empty benchmark, an
        answer that is a whole solution, a missing or damaged model, a tokenizer that doesn't
        survive its loading or differs from the base's, another vocabulary, a stop token that is
        none, a chat template that isn't there or makes no prompt, or a rule that isn't one.
    """
    check_backend(study)
    check_rules(study)
    problems = {name: load_benchmark(study, name) for name in study.benchmarks}
    for name, rows in problems.items():
        check_answers(name, rows)
    base = study.model_path(study.base)
    trusted = study.model(study.base).trust_remote_code
    own_size = check_model(base, trusted)
    compared: set[frozenset] = set()

    def check_tokenizer_of(directory: Path) -> None:
        files = {f for p in FINGERPRINTED for f in directory.glob(p) if f.suffix != ".safetensors"}
        texts = frozenset((file.name, file.read_bytes()) for file in files)
        if texts not in compared:  # of many checkpoints one stands for all
            tokenizers.check_same_tokenizer(base, directory)
            compared.add(texts)

    for name in study.every_model:
        directory = study.model_path(name)
        if name != study.base and is_adapter(directory):
            check_adapter(directory, base, trusted, study.engines is not None)
            check_tokenizer_of(directory)
            check_trained_on(directory, base)
        elif name != study.base:
            size = check_model(directory, study.model(name).trust_remote_code)
            check_tokenizer_of(directory)
            check_same_size(base, own_size, directory, size)
    stop_token_ids(tokenizers.load_tokenizer(base), study.stop_tokens)
    if remark := check_prompt(study):
        print(f"warning: {remark}", file=sys.stderr)
    for name in study.every_model if study.prompt.chat is not None else ():
        chat = study.model_path(study.prompt.chat)
        if example := tokenizers.templates_differ(chat, study.model_path(name)):
            print(
                f"warning: the chat template of '{name}' is not that of '{study.prompt.chat}', which "
                f"writes all prompts here, as the study's 'prompt.chat' says ({example})",
                file=sys.stderr,
            )
    prompt_text(study, problems[study.cross_benchmark][0].problem)
