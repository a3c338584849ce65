"""Accuracy on the benchmarks while a model trains: few samples, fixed noise."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.tasks.verifier import is_correct
from tokenshift_utils.training.tiny.problems import TIERS, Problem, benchmark


@dataclass(frozen=True)
class Answer:
    """One sampled response to a problem of a benchmark."""

    problem: Problem
    sample: int
    response: Continuation
    correct: bool


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
    ) -> list[Answer]:
        """``samples`` responses to every problem of every benchmark, in that order.

        The first few of many are those that fewer samples would have been.
        """
        was_training = model.training
        model.eval()
        policy = HFPolicy(model, tokenizer, "policy")
        pairs = [(p, s) for tier in TIERS for p in benchmark(tier) for s in range(samples)]
        responses = policy.sample(
            [tokenizer.encode(problem.prompt) for problem, _ in pairs],
            [row_key(self.seed, problem.tier, problem.expression, s) for problem, s in pairs],
            self.sampling,
        )
        model.train(was_training)
        return [
            Answer(problem, sample, response, solves(tokenizer, response, problem.answer))
            for (problem, sample), response in zip(pairs, responses)
        ]


def accuracy(answers: list[Answer]) -> dict[str, float]:
    """Accuracy by benchmark."""
    correct: dict[str, list[bool]] = {}
    for answer in answers:
        correct.setdefault(answer.problem.tier, []).append(answer.correct)
    return {tier: sum(values) / len(values) for tier, values in correct.items()}


def solves(tokenizer: PreTrainedTokenizerFast, response: Continuation, answer: int) -> bool:
    """Whether a finished response boxes the answer; one cut off at its limit does not count."""
    if response.finish_reason != "eos":
        return False
    return is_correct(tokenizer.decode(response.ids, skip_special_tokens=True), str(answer))
