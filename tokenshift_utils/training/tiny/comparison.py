"""Making one arm of the comparison of objectives, and measuring it; see ``runs.TaskArm``."""

from __future__ import annotations

import hashlib
import json
import time

import pandas as pd

from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.records.shifts import shift_table
from tokenshift_utils.study.study import Study
from tokenshift_utils.training import logs
from tokenshift_utils.training.position_sets import pack_positions
from tokenshift_utils.training.tiny import recipes, rlvr
from tokenshift_utils.training.tiny.evaluation import Answer, Evaluator, accuracy
from tokenshift_utils.training.tiny.models import load_base
from tokenshift_utils.training.tiny.problems import problem_ids
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
    evaluations = logs.tidy_evaluations(history, recipe)
    answers = evaluator.answers(model, tokenizer, evaluate.final_samples)
    few = accuracy([a for a in answers if a.sample < evaluate.samples])
    last = pd.DataFrame(
        [(recipe.rollouts, benchmark, value) for benchmark, value in few.items()],
        columns=list(evaluations.columns),
    )
    phases = {phase: [tables[r] for r in made] for phase, made in run.token_tables.items()}
    summary = {
        "arm": run.arm,
        "seed": run.seed,
        "key": run.key,
        **run.settings,
        "accuracy": {k: round(v, 6) for k, v in accuracy(answers).items()},
        "totals": logs.totals(log),
        "shift": measure_shift(study, base, HFPolicy(model.eval(), tokenizer, run.arm), answers),
        "seconds": round(time.time() - started),
        "resumed": resumed,
    }
    run.finish(
        summary,
        log=(log, "%.5g"),
        eval=(pd.concat([evaluations, last]), "%.6g"),
        final=(_final(answers), None),
        tokens=(logs.token_table(tokenizer, phases), "%.5g"),
    )


def _final(answers: list[Answer]) -> pd.DataFrame:
    """One row a problem: benchmark, problem, samples, how many are right, mean length in tokens."""
    ids = problem_ids()
    rows = pd.DataFrame(
        {
            "benchmark": [answer.problem.tier for answer in answers],
            "problem": [ids[answer.problem] for answer in answers],
            "correct": [answer.correct for answer in answers],
            "length": [len(answer.response.ids) for answer in answers],
        }
    )
    grouped = rows.groupby(["benchmark", "problem"], sort=False)
    table = grouped.agg(samples=("correct", "size"), correct=("correct", "sum"))
    table["length_mean"] = grouped["length"].mean().round(2)
    return table.reset_index()


def measure_shift(study: Study, base: HFPolicy, tuned: HFPolicy, answers: list[Answer]) -> dict:
    """JS between base and tuned on the tuned model's responses and on base's own, which are fixed.

    ``high`` is the set of positions of base's responses, in order, whose JS is above the study's
    threshold: one bit a position, packed and in base64 (``position_sets``). ``responses`` tells
    whether two runs were measured on the same ones.
    """
    samples, sampling = SHIFT_SAMPLES, study_sampling(study)
    fixed = Evaluator((), samples, recipes.SEED, sampling).answers(
        base.model, base.tokenizer, samples
    )
    own = [answer for answer in answers if answer.sample < samples]
    ids = problem_ids()
    return shift_summary(
        study,
        base,
        tuned,
        {
            source: pd.DataFrame(
                {
                    "benchmark": [answer.problem.tier for answer in some],
                    "problem": [ids[answer.problem] for answer in some],
                    "sample": [answer.sample for answer in some],
                    "prompt_ids": [tuned.tokenizer.encode(a.problem.prompt) for a in some],
                    "response_ids": [answer.response.ids for answer in some],
                }
            )
            for source, some in (("own", own), ("base", fixed))
        },
    )


def shift_summary(
    study: Study, base: HFPolicy, tuned: HFPolicy, trajectories: dict[str, pd.DataFrame]
) -> dict:
    """JS between two models on responses of ``own`` and of ``base``; see ``measure_shift``."""
    sampling, found = study_sampling(study), {}
    for source, some in trajectories.items():
        table = shift_table(base, tuned, source, some, sampling, 1, study.batch.score)
        js = table["js"].to_numpy()
        found[source] = {
            "positions": len(js),
            "mean_js": round(float(js.mean()), 7),
            "near_zero": {
                f"{cut:g}": round(float((js < cut).mean()), 6) for cut in study.thresholds.near_zero
            },
            "high": round(float((js > study.thresholds.high_js).mean()), 6),
        }
        if source == "base":
            responses = json.dumps(some["response_ids"].tolist())
            found[source]["responses"] = hashlib.sha256(responses.encode()).hexdigest()[:16]
            found[source]["high_set"] = pack_positions(js > study.thresholds.high_js)
    return found
