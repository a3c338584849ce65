"""RLVR runs of the tiny study: TRL's GRPOTrainer with DAPO's dynamic sampling."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import GRPOConfig

from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.training.evaluation import Evaluator
from tokenshift_utils.training.logs import (
    LOG_COLUMNS,
    accuracy,
    overlong_penalty,
    tidy_evaluations,
    tidy_log,
)
from tokenshift_utils.training.settings import TASK_SETTINGS
from tokenshift_utils.training.tiny.problems import training_problems
from tokenshift_utils.training.tiny.recipes import RLRecipe
from tokenshift_utils.training.updates import AfterRollouts, last_checkpoint
from tokenshift_utils.training.weighted_trainer import DivergenceWeightedGRPOTrainer

# Of TRL's trainers: what RL runs share with the controls of own answers that are held against them.
TRAINER = {
    "lr_scheduler_type": "constant",
    "adam_beta2": 0.99,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_total_limit": 1,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
MICRO_BATCH = 32  # rows a forward and backward pass, by default; an update accumulates several


@dataclass(frozen=True)
class Group:
    """One problem with its sampled responses and whether each is correct."""

    prompt: str
    prompt_ids: list[int]
    responses: list[Continuation]
    correct: list[bool]

    @property
    def informative(self) -> bool:
        """Whether correctness differs within the group: an all-equal one has no advantage."""
        return len(set(self.correct)) > 1


class RLVRTrainer(DivergenceWeightedGRPOTrainer):
    """TRL's trainer, given rollouts that our own sampler draws before TRL asks for them.

    What TRL lacks and this adds: DAPO's dynamic sampling (groups whose correctness, before length
    shaping, is all equal are dropped and new problems sampled until the batch is full); and
    micro-batches sorted by length within each update, which changes no gradient and halves the
    padding. Every draw depends on (seed, rollout, round, problem) alone, so a resumed run goes on
    with the rollouts that it would have had.

    Parameters
    ----------
    checkpoints
        Where the model is saved along the way, by rollouts made.
    base
        With it the KL to it is logged.
    token_tables
        CSV files for sums of k3 and weights by token, by rollout.
    trim_scoring
        Score a rollout in batches of like length: log-probabilities change by their rounding. The
        shipped models were trained without.
    """

    sampling_rounds = 12  # of dynamic sampling, at most
    columns = LOG_COLUMNS
    first_round = 1.0  # groups of the first round of dynamic sampling, in those wanted

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        recipe: RLRecipe,
        args: GRPOConfig,
        evaluator: Evaluator,
        callbacks: Sequence[TrainerCallback],
        checkpoints: dict[int, Path] | None = None,
        base: HFPolicy | None = None,
        token_tables: dict[int, Path] | None = None,
        trim_scoring: bool = False,
    ):
        rewards = [correctness_reward]
        if recipe.overlong_buffer:
            rewards.append(overlong_penalty(recipe.max_new_tokens, recipe.overlong_buffer))
        super().__init__(
            model,
            rewards,
            args,
            # The rows only drive TRL's dataloader: problems are drawn by rollout, for exact resumption.
            Dataset.from_dict({"prompt": ["-"] * recipe.prompts_per_rollout}),
            processing_class=tokenizer,
            callbacks=[AfterRollouts(recipe.updates_per_rollout, self._after_rollout), *callbacks],
            rollout_func=self._hand_over_rollout,
            weighting=recipe.weighting,
            honest_mask=True,
        )
        self.remove_callback(PrinterCallback)
        self.trim_scoring = trim_scoring
        self.recipe = recipe
        self.base = base
        self.checkpoints = checkpoints or {}
        self.token_tables = token_tables or {}
        self.evaluator = evaluator
        self._groups: list[Group] = []
        self._tokens_generated = 0
        self._by_token = torch.zeros(3, len(self.processing_class), dtype=torch.float64)

    def _generate_and_score_completions(self, inputs):
        rollout = self.state.global_step // self.recipe.updates_per_rollout
        if rollout in self.evaluator.rollouts:
            self.record_evaluation()
        self._tokens_generated = 0
        self.model.eval()
        self._groups, sampled = self._sample_groups(rollout)
        if self.base is not None:
            self._metrics["train"]["kl_base"].append(self._kl_to_base())
        self.model.train()
        rows = [
            {"prompt": group.prompt, "correct": correct}
            for group in self._groups
            for correct in group.correct
        ]
        metrics = self._metrics["train"]
        metrics["tokens_generated"].append(self._tokens_generated)
        metrics["groups_sampled"].append(len(sampled))
        metrics["groups_discarded"].append(len(sampled) - len(self._groups))
        answers = [correct for group in sampled for correct in group.correct]
        metrics["correct/sampled"].append(sum(answers) / len(answers))
        output = super()._generate_and_score_completions(rows)
        metrics["tokens_trained"].append(output["completion_mask"].sum().item())
        return output

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
    ):
        """As TRL's; with ``trim_scoring`` a rollout is scored in batches of like length.

        TRL scores a whole rollout at once, every row padded to the longest: a quarter of the time
        that training takes here. What stands at padding means nothing, and is 0 then.
        """
        score = super()._get_per_token_logps_and_entropies
        if not self.trim_scoring or self._step_inputs is not None:  # a training step
            return score(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        start = input_ids.shape[1] - logits_to_keep
        before, after = attention_mask[:, :start].sum(1), attention_mask[:, start:].sum(1)
        logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        for rows in after.argsort(stable=True).split(self.args.per_device_train_batch_size):
            width = max(1, int(after[rows].max()))
            kept = slice(start - int(before[rows].max()), start + width)
            found = score(model, input_ids[rows, kept], attention_mask[rows, kept], width)
            logps[rows, :width] = found[0]
        return logps, None, None

    def _kl_to_base(self) -> float:
        """Mean over positions of the exact KL(policy || base), nats; one response a group."""
        policy = HFPolicy(self.accelerator.unwrap_model(self.model), self.base.tokenizer, "policy")
        prompts = [group.prompt_ids for group in self._groups]
        responses = [group.responses[0].ids for group in self._groups]
        pairs = score_pair(self.base, policy, prompts, responses, Sampling(), 1, len(prompts))
        return float(np.concatenate([columns["kl_tuned_base"] for _, columns in pairs]).mean())

    def record_evaluation(self) -> None:
        """Put the benchmark accuracies of the model as it is into the log's next row."""
        self.model.eval()
        for name, value in accuracy(self.evaluator.answers(self._sampling_policy())).items():
            self._metrics["train"][f"accuracy/{name}"].append(value)
        self.model.train()

    def _sample_groups(self, rollout: int) -> tuple[list[Group], list[Group]]:
        """The groups to train on and all the groups sampled to find them."""
        wanted, kept, sampled = self.recipe.prompts_per_rollout, [], []
        for round_ in range(self.sampling_rounds):
            rng = random.Random(f"rl {self.args.seed} rollout {rollout} round {round_}")
            count = wanted
            if round_ == 0 and self.recipe.dynamic_sampling:
                count = round(self.first_round * wanted)
            if round_ and not self.recipe.refill_whole:  # about half of the groups are informative
                count = min(wanted, 2 * (wanted - len(kept)))
            groups = self._sample_round(rng, f"rollout {rollout} round {round_}", count)
            sampled += groups
            kept += [g for g in groups if g.informative or not self.recipe.dynamic_sampling]
            if len(kept) >= wanted:
                return kept[:wanted], sampled
        return self._too_few(kept, sampled, rollout), sampled

    def _sample_round(self, rng: random.Random, where: str, count: int) -> list[Group]:
        recipe, tokenizer = self.recipe, self.processing_class
        problems = self._draw_problems(rng, count)
        prompts = [
            tokenizer.encode(problem.prompt, add_special_tokens=False) for problem in problems
        ]
        width = range(recipe.responses_per_prompt)
        responses = self._sampling_policy().sample(
            [ids for ids in prompts for _ in width],
            [
                row_key(self.args.seed, where, problem.expression, sample)
                for problem in problems
                for sample in width
            ],
            Sampling(temperature=1.0, top_p=1.0, max_new_tokens=recipe.max_new_tokens),
        )
        self._tokens_generated += sum(len(response.ids) for response in responses)
        groups = []
        for i, (problem, ids) in enumerate(zip(problems, prompts)):
            own = responses[i * len(width) : (i + 1) * len(width)]
            answer = str(problem.answer)
            correct = [self.evaluator.solves(tokenizer, response, answer) for response in own]
            groups.append(Group(problem.prompt, ids, own, correct))
        return groups

    def _draw_problems(self, rng: random.Random, count: int) -> list:
        """Problems of a round: with a ``prompt``, an ``answer``, and ``expression``, its noise's name."""
        return [*islice(training_problems(self.recipe.tier_mix, rng), count)]

    def _sampling_policy(self) -> HFPolicy:
        """What draws the responses of a round."""
        model = self.accelerator.unwrap_model(self.model)
        return HFPolicy(model, self.processing_class, "policy")

    def _too_few(self, kept: list[Group], sampled: list[Group], rollout: int) -> list[Group]:
        """What to train on where not enough groups were informative."""
        raise RuntimeError(
            f"only {len(kept)} of {len(sampled)} sampled groups were informative at rollout"
            f" {rollout}: the task is too easy or too hard for dynamic sampling."
        )

    def _hand_over_rollout(self, prompts, trainer):
        pairs = [(group, response) for group in self._groups for response in group.responses]
        return {
            "prompt_ids": [group.prompt_ids for group, _ in pairs],
            "completion_ids": [response.ids for _, response in pairs],
            "logprobs": [response.logprobs for _, response in pairs],
        }

    def _observe(self, mask, divergence, weights):
        """Sum k3 and weights by token id over a rollout's updates but the first."""
        rollout, update = divmod(self.state.global_step, self.recipe.updates_per_rollout)
        if rollout + 1 not in self.token_tables or update == 0:
            return
        weights = torch.ones_like(divergence) if weights is None else weights
        ids = self._step_inputs["completion_ids"][mask]
        rows = torch.stack([torch.ones_like(divergence), divergence, weights])[:, mask]
        self._by_token.index_add_(1, ids.cpu(), rows.to(torch.float64).cpu())

    def _after_rollout(self, rollout: int) -> None:
        """Save the model, and write and forget the sums by token, where they are asked for."""
        if rollout in self.checkpoints:
            self._keep(self.checkpoints[rollout])
        if rollout not in self.token_tables:
            return
        count, divergence, weight = self._by_token.numpy()
        seen = np.flatnonzero(count)
        pd.DataFrame(
            {"token": seen, "count": count[seen], "k3": divergence[seen], "weight": weight[seen]}
        ).to_csv(self.token_tables[rollout], index=False)
        self._by_token.zero_()

    def _keep(self, directory: Path) -> None:
        """Save the model as it is."""
        self.model.save_pretrained(directory)

    def _prepare_inputs(self, generation_batch):
        starts_rollout = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        inputs = super()._prepare_inputs(generation_batch)
        if starts_rollout and self.model.training:
            per_update = self.args.gradient_accumulation_steps
            slices = self._buffered_inputs
            self._buffered_inputs = [
                micro_batch
                for i in range(0, len(slices), per_update)
                for micro_batch in sort_rows(slices[i : i + per_update], self._row_order)
            ]
            self._before_updates(self._buffered_inputs)
            inputs = self._buffered_inputs[0]
        return inputs

    def _before_updates(self, micro_batches: list[dict[str, Tensor]]) -> None:
        """A subclass may change a rollout's micro-batches, in their order, here."""

    @staticmethod
    def _row_order(update: dict[str, Tensor]) -> Tensor:
        """In which order the rows of an update go into its micro-batches: the shortest first."""
        return update["completion_mask"].sum(1).argsort(stable=True)


def sort_rows(
    micro_batches: list[dict[str, Tensor]], order_of: Callable[[dict[str, Tensor]], Tensor]
) -> list[dict[str, Tensor]]:
    """The same rows in as many micro-batches, in the order asked for, each cut to its longest row.

    Only tensors with one row a response are touched; prompts are padded on the left, completions
    on the right, as TRL pads them.
    """
    rows = len(micro_batches[0]["completion_mask"])
    merged = {
        key: torch.cat([batch[key] for batch in micro_batches]) if value.dim() else value
        for key, value in micro_batches[0].items()
    }
    result = []
    for chosen in order_of(merged).split(rows):
        batch = {k: v[chosen] if v.dim() else v for k, v in merged.items()}
        prompt_width = int(batch["prompt_mask"].sum(1).max())
        width = int(batch["completion_mask"].sum(1).max())
        for key, value in batch.items():
            if value.dim() == 2:
                batch[key] = value[:, -prompt_width:] if "prompt" in key else value[:, :width]
        result.append(batch)
    return result


def correctness_reward(completions, correct, **kwargs) -> list[float]:
    """1 for a correct response, 0 for any other."""
    return [float(value) for value in correct]


def train_rl(trainer: RLVRTrainer) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train, from the last checkpoint where there is one; returns log and evaluations, see ``logs``."""
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    if trainer.recipe.rollouts in trainer.evaluator.rollouts:
        trainer.record_evaluation()
        trainer.log({})
    history, updates = trainer.state.log_history, trainer.recipe.updates_per_rollout
    benchmarks = dict.fromkeys(question.benchmark for question in trainer.evaluator.questions)
    log = tidy_log(history, updates, trainer.columns)
    return log, tidy_evaluations(history, updates, benchmarks)


def trl_config(
    recipe: RLRecipe, seed: int, output: Path, save_every: int = 1, micro_batch: int = MICRO_BATCH
) -> GRPOConfig:
    """TRL's settings of a recipe: a rollout is ``micro_batches`` of responses, split into updates.

    There is a checkpoint under ``output`` every ``save_every`` rollouts.
    """
    micro_batches = recipe.prompts_per_rollout * recipe.responses_per_prompt // micro_batch
    return GRPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=micro_batches // recipe.updates_per_rollout,
        steps_per_generation=micro_batches,
        num_generations=recipe.responses_per_prompt,
        max_completion_length=recipe.max_new_tokens,
        max_steps=recipe.updates,
        **{name: getattr(recipe, field) for name, field in TASK_SETTINGS.items()},
        temperature=1.0,
        seed=seed,
        save_steps=save_every * recipe.updates_per_rollout,
        log_completions=False,
        **TRAINER,
    )
