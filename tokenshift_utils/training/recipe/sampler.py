"""What draws responses while an adapter trains: the base with the adapter merged, in bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.prompts import prompt_text
from tokenshift_utils.training.evaluation import Question

SAMPLE_BATCH = {"cuda": 512, "cpu": 256}  # responses drawn together


def device() -> str:
    """Where adapters are trained: on a GPU where there is one, else on the CPU, in one thread."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class MergedSampler(HFPolicy):
    """A copy of the base in bfloat16, into which an adapter can be merged again and again.

    The training model stays as it is: what is merged is computed from its float32 weights, so that
    nothing adds up over a run.
    """

    def __init__(self, directory: Path):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        super().__init__(model.to(device()).eval(), load_tokenizer(directory), "sampler")

    @torch.no_grad()
    def merge(self, model: PeftModel) -> None:
        """Make the copy what ``model`` is with its adapter."""
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                (adapter,) = module.active_adapters
                merged = module.get_base_layer().weight.float() + module.get_delta_weight(adapter)
                self.model.get_submodule(name).weight.copy_(merged)

    def sample(self, prompts, row_keys, sampling: Sampling) -> list[Continuation]:
        """Responses, as ``policy.Policy.sample`` draws them."""
        return super().sample(prompts, row_keys, sampling, batch_size=SAMPLE_BATCH[device()])


def benchmark_questions(study: Study, first: int | None = None) -> list[Question]:
    """The ``first`` problems of every benchmark (None: all) in the study's prompt."""
    return [
        Question(name, p.id, p.id, prompt_text(study, p.problem), p.answer)
        for name in study.benchmarks
        for p in load_benchmark(study, name)[:first]
    ]
