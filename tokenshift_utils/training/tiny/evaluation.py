"""Accuracy on the benchmarks while a model trains: few samples, fixed noise."""

from dataclasses import dataclass

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.tasks.verifier import is_correct
from tokenshift_utils.training.logs import accuracy, answers_table
from tokenshift_utils.training.tiny.problems import TIERS, benchmark, problem_ids


@dataclass(frozen=True)
class Evaluator:
    """Mean accuracy of ``samples`` responses a problem, after the rollouts named."""

    rollouts: tuple[int, ...]
    samples: int
    seed: int
    sampling: Sampling

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> dict[str, float]:
        """Accuracy by benchmark; leaves the model in the mode (train or eval) it was in."""
        return accuracy(self.answers(model, tokenizer, self.samples))

    def answers(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, samples: int
    ) -> pd.DataFrame:
        """``samples`` responses to every problem of every benchmark, see ``logs.answers_table``.

        The first few of many are those that fewer samples would have been.
        """
        was_training = model.training
        model.eval()
        policy = HFPolicy(model, tokenizer, "policy")
        pairs = [(p, s) for tier in TIERS for p in benchmark(tier) for s in range(samples)]
        prompts = [tokenizer.encode(problem.prompt) for problem, _ in pairs]
        keys = [row_key(self.seed, problem.tier, problem.expression, s) for problem, s in pairs]
        responses = policy.sample(prompts, keys, self.sampling)
        model.train(was_training)
        right = [solves(tokenizer, r, problem.answer) for (problem, _), r in zip(pairs, responses)]
        ids = problem_ids()
        named = [(problem.tier, ids[problem], sample) for problem, sample in pairs]
        return answers_table(named, prompts, responses, right)


def solves(tokenizer: PreTrainedTokenizerFast, response: Continuation, answer: int) -> bool:
    """Whether a finished response boxes the answer; one cut off at its limit does not count."""
    if response.finish_reason != "eos":
        return False
    return is_correct(tokenizer.decode(response.ids, skip_special_tokens=True), str(answer))
