"""Controls of RL that learn from base's own answers: rejection-sampling SFT, and DPO on right against
wrong, at RL's learning rate, kept where they have an RL model's KL to base, and its accuracy."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.training.evaluation import Evaluator, Question
from tokenshift_utils.training.runs import digest, work_directory
from tokenshift_utils.training.tiny import rlvr
from tokenshift_utils.training.tiny.problems import TIERS, training_problems
from tokenshift_utils.training.tiny.recipes import OwnAnswersRecipe
from tokenshift_utils.training.tiny.runs import ModelRun
from tokenshift_utils.training.updates import Updates, last_checkpoint


def draw_questions(name: str, count: int, mix: dict[str, float], seed: int) -> list[Question]:
    """So many distinct problems to train on, drawn by a name and seed of their own."""
    rng = random.Random(f"{name} {seed}")
    found: dict[str, Question] = {}
    for problem in training_problems(mix, rng):
        if len(found) == count:
            return [*found.values()]
        expression, answer = problem.expression, str(problem.answer)
        found.setdefault(expression, Question(name, expression, expression, problem.prompt, answer))


def base_answers(base: HFPolicy, run: ModelRun) -> pd.DataFrame:
    """Base's finished answers to training problems, as RL's first rollout would draw them, each text
    once; drawn once for all controls.

    Columns: those of ``Evaluator.answers``, prompt, text (with the end token).
    """
    recipe, seed = run.recipe, run.plan.seed
    questions = draw_questions("own answers", recipe.problems, recipe.tier_mix, seed)
    sampling, count = Sampling(1.0, 1.0, recipe.max_new_tokens), recipe.responses_per_prompt
    of = [run.of(run.study.base).key, count, asdict(sampling), [q.prompt for q in questions], seed]
    file = work_directory(run.study) / f"answers-{digest(of)}.parquet"
    drawn = Evaluator(questions, count, seed, sampling).answers_once(file, lambda: base)
    prompts = {question.problem: question.prompt for question in questions}
    drawn = drawn.assign(prompt=drawn["problem"].map(prompts))
    # A text that is read otherwise than it was written would be another answer.
    texts = zip(drawn["text"], drawn["response_ids"])
    same = [base.tokenizer.encode(text) == ids.tolist() for text, ids in texts]
    return drawn[same].drop_duplicates(["problem", "text"])


def sft_rows(answers: pd.DataFrame, recipe: OwnAnswersRecipe) -> list[dict[str, str]]:
    """Right answers, at most so many a problem."""
    right = answers[answers["correct"]].groupby("problem", sort=False).head(recipe.kept)
    return right.rename(columns={"text": "completion"})[["prompt", "completion"]].to_dict("records")


def dpo_rows(answers: pd.DataFrame, recipe: OwnAnswersRecipe) -> list[dict[str, str]]:
    """Right answers beside wrong ones to the same problem, at most so many a problem."""
    rows = []
    for _, own in answers.groupby("problem", sort=False):
        pairs = zip(own[own["correct"]]["text"], own[~own["correct"]]["text"])
        rows += [
            {"prompt": own["prompt"].iloc[0], "chosen": right, "rejected": wrong}
            for right, wrong in islice(pairs, recipe.kept)
        ]
    return rows


@dataclass(frozen=True)
class Evaluation:
    """Where a model is: share of right answers, and the exact KL(model || base) in nats a token."""

    accuracy: float
    kl: float


def evaluate(
    base: HFPolicy, model: HFPolicy, sampling: Sampling, seed: int, count: int
) -> Evaluation:
    """A model on ``count`` problems of each tier, in no benchmark; four responses to each, drawn as the
    study samples.

    The KL is of the full distributions, a mean over the positions of the first.
    """
    questions = [
        question
        for tier in TIERS
        for question in draw_questions(f"validation {tier}", count, {tier: 1.0}, seed)
    ]
    answers = Evaluator(questions, 4, seed, sampling).answers(model)
    first = answers[answers["sample"] == 0]
    prompts, responses = first["prompt_ids"].tolist(), first["response_ids"].tolist()
    pairs = score_pair(base, model, prompts, responses, Sampling(), 1, len(prompts))
    kl = np.concatenate([columns["kl_tuned_base"] for _, columns in pairs]).mean()
    return Evaluation(float(answers["correct"].mean()), float(kl))


class KeepWhere(TrainerCallback):
    """Measures the model every so many updates, keeps it where it first has the accuracy or the KL of
    another, and stops training once it has had both.

    Parameters
    ----------
    kept : where the models of each quantity go
    measure : of a model, how far it is
    """

    def __init__(self, every: int, goal: Evaluation, kept: dict[str, Path], measure):
        self.every, self.goal, self.kept, self.measure = every, goal, kept, measure

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every:
            return
        model.eval()
        found = self.measure(model)
        # In the trainer's own history, which its checkpoints keep.
        before = [row for row in state.log_history if "accuracy" in row]
        state.log_history.append({"step": state.global_step, **vars(found)})
        there = 0
        for name, place in self.kept.items():
            least = getattr(self.goal, name)
            had = any(row[name] >= least for row in before)
            if not had and getattr(found, name) >= least:
                model.save_pretrained(place)
            there += had or getattr(found, name) >= least
        control.should_training_stop |= there == len(self.kept)
        model.train()


def train_own_answers(
    run: ModelRun, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, progress: Updates
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Train ``model`` in place; returns the log, what was measured along the way, and totals.

    Models from along the way are left in ``run.kept``, the last one where a quantity was not reached.
    A run that was stopped goes on from its last checkpoint.
    """
    study, recipe, seed = run.study, run.recipe, run.plan.seed
    base, target = (HFPolicy.load(study.model_path(n), n) for n in (study.base, recipe.like))
    drawn, is_sft = base_answers(base, run), recipe.method == "sft"
    rows = (sft_rows if is_sft else dpo_rows)(drawn, recipe)
    per_row = 1 if is_sft else 2  # responses
    given = {
        "output_dir": str(run.output),
        "per_device_train_batch_size": rlvr.MICRO_BATCH // per_row,
        "gradient_accumulation_steps": recipe.update // rlvr.MICRO_BATCH,
        "max_steps": recipe.most_updates,
        "learning_rate": recipe.learning_rate,
        "max_length": None,
        "seed": seed,
        "save_steps": recipe.evaluate_every,
        **rlvr.TRAINER,
    }
    if is_sft:
        trainer_class, config = SFTTrainer, SFTConfig(**given)
    else:
        trainer_class, config = DPOTrainer, DPOConfig(**given, beta=recipe.beta)
    sampling = study_sampling(study)
    goal = evaluate(base, target, sampling, seed, recipe.validation)

    def measure(model: LlamaForCausalLM) -> Evaluation:
        policy = HFPolicy(model, tokenizer, "policy")
        return evaluate(base, policy, sampling, seed, recipe.validation)

    trainer = trainer_class(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=config,
        callbacks=[KeepWhere(recipe.evaluate_every, goal, run.kept, measure), progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(run.output))
    history = pd.DataFrame(trainer.state.log_history).rename(columns={"step": "update"})
    log = history.dropna(subset="loss")[["update", "loss", "grad_norm"]]
    curve = history.dropna(subset="accuracy")[["update", *vars(goal)]]
    first = {
        name: curve["update"][curve[name] >= least].min() for name, least in vars(goal).items()
    }
    # Killed after its last update, a run makes a few more once it goes on.
    end = max(first.values()) if not any(np.isnan([*first.values()])) else np.inf
    log, curve = log[log["update"] <= end], curve[curve["update"] <= end]
    totals = {"rows": len(rows), "updates": int(log["update"].max())}
    for name, place in run.kept.items():
        there = not np.isnan(first[name])
        totals[f"{name}_of_{recipe.like}"] = round(getattr(goal, name), 6)
        totals[f"updates_to_its_{name}"] = int(first[name]) if there else None
        if not there:
            model.save_pretrained(place)
    return log, curve, totals
