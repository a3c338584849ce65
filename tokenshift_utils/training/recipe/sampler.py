"""What draws responses while an adapter trains: the base with the adapter merged, in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.prompts import prompt_text
from tokenshift_utils.tasks.verifier import is_correct
from tokenshift_utils.training.logs import answers_table

BATCH = {"cuda": 512, "cpu": 256}  # responses drawn together


def device() -> str:
    """Where adapters are trained: on a GPU where there is one, else on the CPU, in one thread."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class MergedSampler:
    """A copy of the base in bfloat16, into which an adapter can be merged again and again.

    The training model stays as it is: what is merged is computed from its float32 weights, so that
    nothing adds up over a run.
    """

    def __init__(self, directory: Path):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        self.policy = HFPolicy(model.to(device()).eval(), load_tokenizer(directory), "sampler")

    @torch.no_grad()
    def merge(self, model: PeftModel) -> None:
        """Make the copy what ``model`` is with its adapter."""
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                (adapter,) = module.active_adapters
                whole = module.get_base_layer().weight.float() + module.get_delta_weight(adapter)
                self.policy.model.get_submodule(name).weight.copy_(whole)

    def sample(
        self, prompts: list[list[int]], keys: list[int], sampling: Sampling
    ) -> list[Continuation]:
        """Responses, as ``policy.Policy.sample`` draws them."""
        return self.policy.sample(prompts, keys, sampling, batch_size=BATCH[device()])


def solves(study: Study, tokenizer, response: Continuation, answer: str) -> bool:
    """Whether a finished response is right, by the study's verifier, as ``rollouts`` judges it."""
    text = tokenizer.decode(response.ids, skip_special_tokens=True)
    return response.finish_reason == "eos" and is_correct(text, answer, study.verifier)


@dataclass(frozen=True)
class BenchmarkEvaluator:
    """Responses to the study's benchmarks as it samples them, and whether they are right."""

    study: Study
    seed: int
    rollouts: tuple[int, ...] = ()  # after which a run is evaluated

    def answers(
        self, sampler: MergedSampler, samples: int, problems: int | None = None
    ) -> pd.DataFrame:
        """``samples`` responses to the first ``problems`` of every benchmark (None: to all), see
        ``logs.answers_table``. The first few of many are those that fewer would have been."""
        study, tokenizer, rows = self.study, sampler.policy.tokenizer, []
        for name in study.benchmarks:
            for problem in load_benchmark(study, name)[:problems]:
                ids = tokenizer.encode(
                    prompt_text(study, problem.problem), add_special_tokens=False
                )
                rows += [
                    (name, problem.id, sample, ids, problem.answer) for sample in range(samples)
                ]
        named, prompts, answers = ([row[at] for row in rows] for at in (slice(3), 3, 4))
        keys = [row_key(self.seed, *key) for key in named]
        responses = sampler.sample(prompts, keys, study_sampling(study))
        right = [solves(study, tokenizer, r, answer) for r, answer in zip(responses, answers)]
        return answers_table(named, prompts, responses, right)
