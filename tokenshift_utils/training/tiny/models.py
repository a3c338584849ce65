"""`tokenshift train` for the embedded study: every model from nothing, and arms; resumable."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import atomic_directory, write_text
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import load_tokenizer
from tokenshift_utils.training import logs
from tokenshift_utils.training.evaluation import Evaluator, measure_shift
from tokenshift_utils.training.manager import PROCESSES, make_runs
from tokenshift_utils.training.position_sets import SHIFT_SAMPLES
from tokenshift_utils.training.runs import arm_runs
from tokenshift_utils.training.tiny import own_answers, recipes, rlvr, supervised
from tokenshift_utils.training.tiny.cards import write_cards
from tokenshift_utils.training.tiny.problems import TIERS, questions
from tokenshift_utils.training.tiny.recipes import OwnAnswersRecipe, Plan, RLRecipe
from tokenshift_utils.training.tiny.runs import ModelRun, TaskArm
from tokenshift_utils.training.tiny.tokenizer import build_tokenizer
from tokenshift_utils.training.updates import Updates, last_checkpoint


def train(
    study: Study,
    only: list[str] | None = None,
    fresh: bool = False,
    dry: bool = False,
    processes: int | None = None,
    plan: Plan = recipes.TINY,
) -> None:
    """Train the models of ``plan`` into the directories that ``study`` names.

    A model whose directory and summary match its recipe is kept; a run that was stopped goes on
    from its last checkpoint.

    ``only`` names some, whose base must exist; None: all. ``dry`` prints what would be run, no more.
    ``processes`` runs go side by side; None: two.

    Raises
    ------
    TokenshiftError
        If the study does not declare the plan's models and benchmarks, or ``only`` names others.
    """
    names = [study.base, *plan.names]
    _check(study, plan, names, only)
    chosen = only or names
    rl = [name for name in plan.names if name not in plan.sft | plan.own]
    # Stages of a kind run together, so that the progress bar counts updates of one cost.
    stages = [
        [ModelRun(study, name, plan) for name in stage if name in chosen]
        for stage in ([study.base], rl, plan.sft, plan.own)
    ]
    if dry:
        print("\n".join(run.line for stage in stages for run in stage))
        return
    write_benchmarks(study)
    for stage in filter(None, stages):
        make_runs(stage, fresh, processes or PROCESSES)
    write_cards(study, plan, chosen)


def write_benchmarks(study: Study) -> None:
    """Write the held-out problems where the study's benchmarks are."""
    for tier in TIERS:
        rows = [
            {"id": q.problem, "problem": q.prompt, "answer": q.answer}
            for q in questions()
            if q.benchmark == tier
        ]
        path = study.benchmark_path(tier)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _check(study: Study, plan: Plan, names: list[str], only: list[str] | None) -> None:
    arm_runs(study)  # refuses a study without a training
    for name in names:
        study.model(name.partition("-seed-")[0])
    for tier in TIERS:
        study.benchmark_path(tier)
    for name in only or []:
        if name not in names:
            raise TokenshiftError(f"no recipe for model '{name}': there are {', '.join(names)}.")
    needed = {study.base: "from which the others start"} if only else {}
    needed |= {
        plan.own[n].like: f"that '{n}' is trained to be like" for n in only or () if n in plan.own
    }
    for name, why in needed.items():
        if name not in only and not ModelRun(study, name, plan).is_done():
            raise TokenshiftError(
                f"model '{name}', {why}, is missing or does not match its"
                f" recipe: run `tokenshift train --only {name}` first."
            )


def make_model(run: ModelRun, progress: Updates) -> None:
    """Train one model; runs in a worker process."""
    started, study, recipe = time.time(), run.study, run.recipe
    resumed = last_checkpoint(run.output) is not None
    seed = run.replicated[1]
    if run.name == study.base:
        tokenizer = build_tokenizer()
        model = supervised.new_model(tokenizer, seed)
    else:
        model, tokenizer = load_base(study)
    totals, tables = {}, {}
    if isinstance(recipe, RLRecipe):
        kept = {rollout: run.work / f"rollout-{rollout}" for rollout in run.checkpoints}
        evaluator = Evaluator(
            questions(),
            run.plan.evaluation_samples,
            seed,
            study_sampling(study),
            rollouts=run.plan.evaluations,
        )
        config = rlvr.trl_config(recipe, seed, run.output)
        trainer = rlvr.RLVRTrainer(model, tokenizer, recipe, config, evaluator, [progress], kept)
        log, evaluations = rlvr.train_rl(trainer)
        tables["eval"] = evaluations, "%.6g"
        totals = logs.totals(log)
        for rollout, directory in run.checkpoints.items():
            ship(LlamaForCausalLM.from_pretrained(kept[rollout]), tokenizer, directory)
    elif isinstance(recipe, OwnAnswersRecipe):
        log, curve, totals = own_answers.train_own_answers(run, model, tokenizer, progress)
        tables["eval"] = curve, "%.6g"
        model, other = (LlamaForCausalLM.from_pretrained(place) for place in run.kept.values())
        for directory in run.models[1:]:
            ship(other, tokenizer, directory)
    else:
        style = "base" if run.name == study.base else run.name
        log = pd.DataFrame(
            supervised.train_supervised(model, tokenizer, recipe, style, seed, run.output, progress)
        )
    ship(model, tokenizer, run.models[0])
    summary = {
        "model": run.name,
        "key": run.key,
        "seed": seed,
        "recipe": recipes.settings(recipe),
        "totals": totals,
        "seconds": round(time.time() - started),
        "resumed": resumed,
    }
    run.finish(summary, log=(log, "%.6g"), **tables)


def make_arm(run: TaskArm, progress: Updates) -> None:
    """Train one arm with one seed from the base model, measure it, and write its directory."""
    started, study, recipe = time.time(), run.study, run.recipe
    evaluate, resumed = study.training.evaluate, last_checkpoint(run.output) is not None
    base = HFPolicy.load(study.model_path(study.base), study.base)
    model, tokenizer = load_base(study)
    evaluator = Evaluator(
        questions(), evaluate.samples, run.seed, study_sampling(study), rollouts=run.evaluations
    )
    micro_batch = run.trl["per_device_train_batch_size"]
    trainer = rlvr.RLVRTrainer(
        model,
        tokenizer,
        recipe,
        rlvr.trl_config(recipe, run.seed, run.output, study.training.save_every, micro_batch),
        evaluator,
        [progress],
        base=base,
        token_tables=run.token_tables,
        trim_scoring=True,
    )
    log, curve = rlvr.train_rl(trainer)
    tuned = HFPolicy(model.eval(), tokenizer, run.arm)
    answers = replace(evaluator, samples=evaluate.final_samples).answers(tuned)
    fixed = replace(evaluator, samples=SHIFT_SAMPLES, seed=recipes.SEED).answers(base)
    summary = {
        "arm": run.arm,
        "seed": run.seed,
        "key": run.key,
        **run.settings,
        "accuracy": {k: round(v, 6) for k, v in logs.accuracy(answers).items()},
        "totals": logs.totals(log),
        "shift": measure_shift(study, base, tuned, answers, fixed),
        "seconds": round(time.time() - started),
        "resumed": resumed,
    }
    run.finish(summary, **logs.arm_tables(run, tokenizer, log, curve, answers))


def load_base(study: Study) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The base model in float32, to be trained on, and its tokenizer."""
    directory = study.model_path(study.base)
    model = LlamaForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model, load_tokenizer(directory)


def ship(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save in half precision, whole or not at all."""
    model.set_attn_implementation("sdpa")
    with atomic_directory(directory) as draft:
        model.half().save_pretrained(draft)
        tokenizer.save_pretrained(draft)
