"""Responses to the benchmarks while a model trains and at its end, and the shift from base on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from filelock import FileLock

from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.records.shifts import shift_table
from tokenshift_utils.study.study import Study
from tokenshift_utils.tasks.verifier import is_correct
from tokenshift_utils.training.position_sets import SHIFT_SAMPLES, high_set, shift_summary

if TYPE_CHECKING:
    from tokenshift_utils.models.huggingface import HFPolicy


class Question(NamedTuple):
    """A problem as it is asked; ``expression`` names it in the noise of its responses."""

    benchmark: str
    problem: str | int  # its id; of training data, its row
    expression: str
    prompt: str
    answer: str
    verifier: str | None = None  # of its own
    choice: bool = False  # the answer is an option's letter


@dataclass(frozen=True)
class Evaluator:
    """Draws ``samples`` responses to every question and judges them by a verifier.

    Noise is of (seed, benchmark, expression, sample), so that the first few of many samples are those
    that fewer would have been.
    """

    questions: Sequence[Question]
    samples: int
    seed: int
    sampling: Sampling
    verifier: str = "boxed"
    rollouts: tuple[int, ...] = ()  # after which a run is evaluated

    def answers(self, policy: HFPolicy) -> pd.DataFrame:
        """Columns: benchmark, problem, sample, prompt_ids, response_ids, correct, length, finished."""
        rows = [(question, sample) for question in self.questions for sample in range(self.samples)]
        prompts = [policy.tokenizer.encode(q.prompt, add_special_tokens=False) for q, _ in rows]
        keys = [row_key(self.seed, q.benchmark, q.expression, sample) for q, sample in rows]
        responses = policy.sample(prompts, keys, self.sampling)
        return pd.DataFrame(
            {
                "benchmark": [q.benchmark for q, _ in rows],
                "problem": [q.problem for q, _ in rows],
                "sample": [sample for _, sample in rows],
                "prompt_ids": prompts,
                "response_ids": [response.ids for response in responses],
                "correct": [
                    self.solves(policy.tokenizer, response, q.answer, q.verifier, q.choice)
                    for (q, _), response in zip(rows, responses)
                ],
                "length": [len(response.ids) for response in responses],
                "finished": [response.finish_reason == "eos" for response in responses],
            }
        )

    def answers_once(self, file: Path, load: Callable[[], HFPolicy]) -> pd.DataFrame:
        """The finished ones of ``answers``, with their ``text`` (end token included).

        Kept in ``file``: of several processes the first draws them, with the policy that ``load`` gives.
        """
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                policy = load()
                table = self.answers(policy)
                table["text"] = [policy.tokenizer.decode(ids) for ids in table["response_ids"]]
                table.to_parquet(file.with_suffix(".partial"))
                file.with_suffix(".partial").replace(file)
        table = pd.read_parquet(file)
        return table[table["finished"]]

    def solves(
        self,
        tokenizer,
        response: Continuation,
        answer: str,
        verifier: str | None = None,
        choice: bool = False,
    ) -> bool:
        """Whether a response is right; one cut off at its limit is not."""
        text = tokenizer.decode(response.ids, skip_special_tokens=True)
        right = is_correct(text, answer, verifier or self.verifier, choice)
        return response.finish_reason == "eos" and right


def measure_shift(
    study: Study, base: HFPolicy, tuned: HFPolicy, own: pd.DataFrame, fixed: pd.DataFrame
) -> dict:
    """JS between base and tuned on the first of the tuned model's ``own`` responses and on base's,
    which are ``fixed``; see ``position_sets``."""
    found, own = {}, own[own["sample"] < SHIFT_SAMPLES]
    for source, some in (("own", own), ("base", fixed)):
        sampling, rows = study_sampling(study), study.batch.score
        js = shift_table(base, tuned, source, some, sampling, 1, rows)["js"].to_numpy()
        found[source] = shift_summary(js, study.thresholds)
    responses = json.dumps(fixed["response_ids"].tolist())  # which js is of, after the loop
    found["base"] |= high_set(js, study.thresholds, responses)
    return found
