"""Making one arm of the comparison of objectives, and measuring it; see ``runs.TaskArm``."""

from __future__ import annotations

import time
from dataclasses import replace

from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.training import logs
from tokenshift_utils.training.evaluation import Evaluator, measure_shift
from tokenshift_utils.training.position_sets import SHIFT_SAMPLES
from tokenshift_utils.training.tiny import recipes, rlvr
from tokenshift_utils.training.tiny.models import load_base
from tokenshift_utils.training.tiny.problems import questions
from tokenshift_utils.training.tiny.runs import TaskArm
from tokenshift_utils.training.updates import Updates, last_checkpoint


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
