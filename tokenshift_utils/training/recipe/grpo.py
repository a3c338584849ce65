"""One run of a study's ``training`` section, in every process that accelerate starts.

``accelerate launch ... -m tokenshift_utils.training.recipe.grpo --study NAME --arm ARM --seed N``, which is
what ``tokenshift train`` runs. Nothing of DAPO is missing but dynamic sampling: TRL's trainer keeps
groups whose rewards are all equal, whose advantages are 0 and whose tokens still count in the mean.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
from transformers import TrainerCallback
from trl import GRPOConfig

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.store.local_pool import end_with
from tokenshift_utils.study.study import load_study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.tasks.verifier import is_correct
from tokenshift_utils.training.logs import LOG_COLUMNS, overlong_penalty, tidy_log, totals
from tokenshift_utils.training.recipe.runs import (
    COMMAND_VARIABLE,
    RecipeArm,
    problems_file,
    read_prepared,
    start_directory,
)
from tokenshift_utils.training.runs import arm_runs
from tokenshift_utils.training.settings import check_settings
from tokenshift_utils.training.updates import AfterRollouts, Updates, last_checkpoint
from tokenshift_utils.training.weighted_trainer import DivergenceWeightedGRPOTrainer

COLUMNS = LOG_COLUMNS | {"groups_equal_share": "frac_reward_zero_std"}


def grpo_config(run: RecipeArm, **settings) -> GRPOConfig:
    """TRL's settings of a run; ``settings`` go before the study's.

    Raises
    ------
    TokenshiftError
        Where TRL refuses a value.
    """
    training, sizes = run.study.training, check_settings(run.study)
    given = {"report_to": "none", "logging_steps": 1, "log_completions": False, **run.trl}
    given |= {
        "output_dir": str(run.output),
        "seed": run.seed,
        "shuffle_dataset": False,  # see problems_in_order
        "max_steps": run.rollouts * sizes.updates,
        "save_strategy": "steps",
        "save_steps": training.save_every * sizes.updates,
    }
    if training.server is not None:
        given |= {"use_vllm": True, "vllm_mode": "server"}
        given |= {f"vllm_server_{k}": training.server[k] for k in ("host", "port") if k in training.server}  # fmt: skip
    try:
        return GRPOConfig(**(given | settings))
    except (TypeError, ValueError, ImportError) as error:
        raise TokenshiftError(
            f"study {run.study.name}: TRL refuses 'training.trl' ({first_line(error)})"
        ) from error


def problems_in_order(run: RecipeArm, count: int) -> datasets.Dataset:
    """So many problems, each once before any comes again, in an order of the run's seed.

    TRL would shuffle at every pass, and a resumed run would see the first pass again.
    """
    found = datasets.Dataset.from_parquet(str(problems_file(run.study)))
    passes = range(-(-count // len(found)))
    order = [np.random.default_rng([run.seed, i]).permutation(len(found)) for i in passes]
    return found.select(np.concatenate(order)[:count])


def correctness(verifier: str):
    """DAPO's reward: 1 for a right final answer, -1 for any other, by the study's verifier.

    A response cut at its limit is judged like the others; the overlong penalty is its own.
    """

    def correct(completions, answer, **kwargs) -> list[float]:
        return [1.0 if is_correct(t, a, verifier) else -1.0 for t, a in zip(completions, answer)]

    return correct


class RecipeTrainer(DivergenceWeightedGRPOTrainer):
    """Logs what ``log.csv`` has of a rollout; prompts are tokens as analyses read them."""

    def _tokenize_prompts(self, prompts: list):
        """TRL would put the tokenizer's special tokens around a prompt that has its own."""
        return self.processing_class(prompts, add_special_tokens=False)["input_ids"], None, {}

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            metrics, responses = self._metrics["train"], self.args.generation_batch_size
            groups = responses // self.args.num_generations
            metrics["correct/sampled"].append((metrics["rewards/correct/mean"][-1] + 1) / 2)
            metrics["groups_sampled"].append(groups)
            metrics["groups_discarded"].append(0)
            tokens = metrics["completions/mean_length"][-1] * responses
            metrics["tokens_generated"].append(round(tokens))
            metrics["tokens_trained"].append(int(output["num_items_in_batch"]))
        return output

    def keep_model(self, directory: Path) -> None:
        """Save the model whole, or not at all; every process has its part in it."""
        partial = directory.with_name(f".{directory.name}.partial")
        self.save_model(str(partial))
        if self.accelerator.is_main_process:
            (partial / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        self.accelerator.wait_for_everyone()


def train_run(run: RecipeArm, *callbacks: TrainerCallback, **settings) -> None:
    """Make a run, from its last checkpoint where there is one: model, checkpoints, log, summary."""
    started, study, training = time.time(), run.study, run.study.training
    config, sizes = grpo_config(run, **settings), check_settings(run.study)
    with config.main_process_first(desc="preparing"):
        run.prepare()
        run.begin()
        last = last_checkpoint(run.output)
    if config.world_size != training.accelerate.get("num_processes", 1):
        raise TokenshiftError(
            f"{run.name} runs in {config.world_size} processes, where 'training.accelerate' of study "
            f"{study.name} has num_processes {training.accelerate.get('num_processes', 1)}: start it with "
            "'tokenshift train'"
        )
    rewards = [correctness(study.verifier)]
    if run.overlong_buffer is not None:
        rewards.append(overlong_penalty(config.max_completion_length, run.overlong_buffer))

    def keep(rollout: int) -> None:
        if rollout in run.checkpoints:
            trainer.keep_model(run.checkpoints[rollout])

    trainer = RecipeTrainer(
        model=str(start_directory(study)),
        reward_funcs=rewards,
        args=config,
        train_dataset=problems_in_order(run, run.rollouts * sizes.problems),
        processing_class=load_tokenizer(start_directory(study)),
        weighting=run.objective.weighting,
        honest_mask=True,
        callbacks=[AfterRollouts(sizes.updates, keep), Updates(run.progress_file), *callbacks],
    )
    trainer.train(resume_from_checkpoint=last)
    trainer.keep_model(run.model)
    if trainer.accelerator.is_main_process:
        log = tidy_log(trainer.state.log_history, sizes.updates, COLUMNS)
        summary = {
            "arm": run.arm,
            "seed": run.seed,
            "key": run.key,
            **run.settings,
            "sizes": asdict(sizes),
            "data": read_prepared(study)["counts"],
            "totals": totals(log),
            "seconds": round(time.time() - started),  # of the last command alone, where it went on
            "resumed": last is not None,
        }
        run.finish(summary, log=(log, "%.5g"))
    trainer.accelerator.wait_for_everyone()


def main() -> None:
    """Make the run that the command line names; a user's mistake is one sentence, exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("study", str), ("arm", str), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    if command := os.environ.get(COMMAND_VARIABLE):  # it holds the run's lock
        end_with(int(command))
    try:
        (run,) = arm_runs(load_study(given.study), given.arm, given.seed)
        if run.study.training.lora is not None:
            from tokenshift_utils.training.recipe.adapters import train_adapter

            train_adapter(run)
        else:
            train_run(run)
    except TokenshiftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
