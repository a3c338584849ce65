"""Making one arm of the comparison of objectives, and measuring it; see ``runs.TaskArm``."""

from __future__ import annotations

import json
import time

import pandas as pd

from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.records.shifts import shift_table
from tokenshift_utils.study.study import Study
from tokenshift_utils.training import logs
from tokenshift_utils.training.position_sets import high_set, shift_summary
from tokenshift_utils.training.tiny import recipes, rlvr
from tokenshift_utils.training.tiny.evaluation import Evaluator
from tokenshift_utils.training.tiny.models import load_base
from tokenshift_utils.training.tiny.problems import TIERS
from tokenshift_utils.training.tiny.runs import SHIFT_SAMPLES, TaskArm
from tokenshift_utils.training.updates import Updates


def make_arm(run: TaskArm, progress: Updates) -> None:
    """Train one arm with one seed from the base model, measure it, and write its directory."""
    started, resumed, study, recipe = time.time(), run.resumed, run.study, run.recipe
    evaluate = study.training.evaluate
    base = HFPolicy.load(study.model_path(study.base), study.base)
    model, tokenizer = load_base(study)
    evaluator = Evaluator(run.evaluations, evaluate.samples, run.seed, study_sampling(study))
    counted = [rollout for rollouts in run.token_tables.values() for rollout in rollouts]
    tables = {rollout: run.work / f"tokens-{rollout}.csv" for rollout in counted}
    history = rlvr.train_rl(
        model,
        tokenizer,
        recipe,
        run.seed,
        run.work,
        {},
        evaluator,
        progress,
        base,
        tables,
        trim_scoring=True,
        save_every=study.training.save_every,
        micro_batch=run.trl["per_device_train_batch_size"],
    )
    log = logs.tidy_log(history, recipe.updates_per_rollout)
    evaluations = logs.tidy_evaluations(history, recipe.updates_per_rollout, TIERS)
    answers = evaluator.answers(model, tokenizer, evaluate.final_samples)
    few = logs.accuracy(answers[answers["sample"] < evaluate.samples])
    last = pd.DataFrame(
        [(recipe.rollouts, benchmark, value) for benchmark, value in few.items()],
        columns=list(evaluations.columns),
    )
    fixed = Evaluator((), SHIFT_SAMPLES, recipes.SEED, study_sampling(study)).answers(
        base.model, base.tokenizer, SHIFT_SAMPLES
    )
    tuned = HFPolicy(model.eval(), tokenizer, run.arm)
    phases = {phase: [tables[r] for r in made] for phase, made in run.token_tables.items()}
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
    run.finish(
        summary,
        log=(log, "%.5g"),
        eval=(pd.concat([evaluations, last]), "%.6g"),
        final=(logs.final_table(answers), None),
        tokens=(logs.token_table(tokenizer, phases), "%.5g"),
    )


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
