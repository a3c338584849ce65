"""What draws responses while an adapter trains: the base with the adapter merged, in bfloat16."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenshift_utils.measures.noise import uniform
from tokenshift_utils.models.attention import group_queries
from tokenshift_utils.models.decoding import generate
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.prompts import prompt_text
from tokenshift_utils.training.evaluation import Question
from tokenshift_utils.training.recipe.runs import start_directory

SAMPLE_BATCH = {"cuda": 512, "cpu": 256}  # responses drawn together


def device() -> str:
    """Where adapters are trained: on a GPU where there is one, else on the CPU, in one thread."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_start(study: Study, dtype: torch.dtype) -> PreTrainedModel:
    """The model that adapters go on, where they are trained, with the attention that is fast there."""
    attention = "eager" if device() == "cpu" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(
        start_directory(study), dtype=dtype, attn_implementation=attention
    )
    if attention == "eager":
        group_queries(model)
    return model.to(device())


class MergedSampler(HFPolicy):
    """A copy of the base in bfloat16, into which an adapter can be merged again and again.

    The training model stays as it is: what is merged is computed from its float32 weights, so that
    nothing adds up over a run.
    """

    def __init__(self, study: Study):
        tokenizer = load_tokenizer(start_directory(study))
        super().__init__(load_start(study, torch.bfloat16).eval(), tokenizer, "sampler")

    @torch.no_grad()
    def merge(self, model: PeftModel) -> None:
        """Make the copy what ``model`` is with its adapter."""
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                (adapter,) = module.active_adapters
                merged = module.get_base_layer().weight.float() + module.get_delta_weight(adapter)
                self.model.get_submodule(name).weight.copy_(merged)

    def sample(self, prompts, row_keys, sampling: Sampling) -> list[Continuation]:
        """Responses, as ``policy.Policy.sample`` draws them, but from all tokens by one number.

        Gumbel noise for each of a vocabulary takes a CPU longer than the forward.
        """

        def draw(logp: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
            return draw_by_cdf(logp, uniform(keys, positions))

        size, own = SAMPLE_BATCH[device()], None if sampling.top_p < 1.0 else draw
        return generate(self, prompts, row_keys, sampling, self.eos_ids, size, draw=own)


def draw_by_cdf(logp: Tensor, uniforms: Tensor) -> Tensor:
    """The first token of each row at which the cumulative probability exceeds ``uniforms`` [B].

    ``logp`` [B, V] in nats; uniforms within (0, 1). A token of probability 0 is never drawn.
    """
    total = logp.exp().double().cumsum(-1)
    return torch.searchsorted(total, uniforms[:, None] * total[:, -1:], right=True)[:, 0]


def benchmark_questions(study: Study, first: int | None = None) -> list[Question]:
    """The ``first`` problems of every benchmark (None: all) in the study's prompt."""
    return [
        Question(
            name, p.id, p.id, prompt_text(study, p.problem), p.answer, p.verifier, bool(p.options)
        )
        for name in study.benchmarks
        for p in load_benchmark(study, name)[:first]
    ]
