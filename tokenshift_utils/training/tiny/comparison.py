"""`tokenshift train --arms`: the comparison of objectives, run by run, resumable, on two processes.

A finished run leaves a directory ``<log_dir>/arms/<arm>/seed-<n>`` (no weights):

- ``log.csv``      one row an update, as of the shipped models;
- ``eval.csv``     accuracy along training;
- ``final.csv``    right answers of each problem at the end, for pass@k, intervals and paired tests;
- ``tokens.csv``   k3 and weight by token, early and late in the run, without each rollout's first
  update, where both are trivial;
- ``summary.json`` recipe, totals, and the shift from base: shares of positions by JS on the run's
  own responses and on base's, and on base's the set of high ones, so that arms can be compared.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.records.shifts import shift_table
from tokenshift_utils.study.checkpoints import directory_fingerprint
from tokenshift_utils.study.study import Study
from tokenshift_utils.training import logs
from tokenshift_utils.training.position_sets import pack_positions
from tokenshift_utils.training.tiny import recipes, rlvr
from tokenshift_utils.training.tiny.evaluation import Answer, Evaluator, accuracy
from tokenshift_utils.training.tiny.models import PROCESSES, load_base, one_thread
from tokenshift_utils.training.tiny.problems import problem_ids
from tokenshift_utils.training.tiny.progress import Progress
from tokenshift_utils.training.tiny.recipes import Comparison

Run = tuple[str, int]  # arm, seed


def train_arms(
    study: Study,
    arm: str | None = None,
    seed: int | None = None,
    fresh: bool = False,
    comparison: Comparison = recipes.ARMS,
) -> None:
    """Make the runs that are not there yet, by priority; ``arm`` and ``seed`` select some.

    Each process takes the next run that is neither done nor under way, so that several of these
    commands can share the work. One that is stopped, however, loses at most a rollout a process.

    Raises
    ------
    TokenshiftError
        If there is no such arm or seed, the base model is missing, or a run that is to be made
        afresh is under way in another command.
    """
    if study.weighted is None:
        raise TokenshiftError(
            f"study {study.name} has nothing to train: neither a 'training' section nor 'weighted', as "
            "the embedded study has."
        )
    runs = _selected(comparison, arm, seed)
    directory_fingerprint(study.model_path(study.base))  # refuses a base that is not there
    for run in runs if fresh else ():
        _forget(study, run)
    todo = [run for run in runs if not is_done(study, comparison, run)]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done; {len(todo)} to go", flush=True)
    if not todo:
        return
    processes = min(PROCESSES, len(todo))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, one_thread) as pool:
        futures = [pool.submit(_work_through, study, comparison, todo) for _ in range(processes)]
        _watch(study, comparison, todo, futures)


def _forget(study: Study, run: Run) -> None:
    try:
        with _lock(study, run):
            shutil.rmtree(_work(study, run), ignore_errors=True)
            (run_directory(study, *run) / "summary.json").unlink(missing_ok=True)
    except Timeout:
        raise TokenshiftError(
            f"the run of {run[0]} with seed {run[1]} is under way in another command: stop that one, "
            "or leave out --fresh."
        ) from None


def is_done(study: Study, comparison: Comparison, run: Run) -> bool:
    """Whether a run's summary is there and of this recipe, seed, base model and measurement."""
    summary = run_directory(study, *run) / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["key"] == _key(
        study, comparison, run
    )


def run_directory(study: Study, arm: str, seed: int) -> Path:
    """Where a run's logs and summary are."""
    return paths.resolve(study.weighted.log_dir) / "arms" / arm / f"seed-{seed}"


def _selected(comparison: Comparison, arm: str | None, seed: int | None) -> list[Run]:
    if arm is not None and arm not in comparison.arms:
        raise TokenshiftError(f"there is no arm '{arm}'; there are {', '.join(comparison.arms)}.")
    runs = [r for r in comparison.runs() if arm in (None, r[0]) and seed in (None, r[1])]
    if not runs:
        seeds = max(comparison.arms[name].seeds for name in ([arm] if arm else comparison.arms))
        raise TokenshiftError(f"there is no seed {seed} here; give one from 1 to {seeds}.")
    return runs


def _key(study: Study, comparison: Comparison, run: Run) -> str:
    """What determined a run: its recipe and seed, the base model, and how it is measured."""
    measured = {k: v for k, v in asdict(replace(comparison, arms={})).items() if k != "arms"}
    content = {
        "recipe": recipes.settings(comparison.arms[run[0]].recipe),
        "seed": run[1],
        "base": directory_fingerprint(study.model_path(study.base)),
        "measured": measured,
        "sampling": asdict(study_sampling(study)),
        "thresholds": study.thresholds.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _work(study: Study, run: Run) -> Path:
    """Where an unfinished run keeps its checkpoint: an ignored place, removed at the end."""
    return paths.resolve(study.weighted.log_dir) / "work" / "arms" / f"{run[0]}-seed-{run[1]}"


def _beside(study: Study, run: Run, ending: str) -> Path:
    work = _work(study, run)
    return work.with_name(f"{work.name}.{ending}")  # an arm's name may have a dot in it


def _lock(study: Study, run: Run) -> FileLock:
    """Held while a run is made; a second one to ask for it gets a ``Timeout`` at once."""
    file = _beside(study, run, "lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file, timeout=0)


def _progress_file(study: Study, run: Run) -> Path:
    return _beside(study, run, "progress")


# Processes ----------------------------------------------------------------------------------------


class _WithParent(Progress):
    """Progress that ends the process when the one that started it is gone."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt


def _work_through(study: Study, comparison: Comparison, runs: list[Run]) -> None:
    """Make every run that nobody else has made or is making; in a worker process."""
    for run in runs:
        try:
            with _lock(study, run):
                if not is_done(study, comparison, run):
                    train_run(study, comparison, run, _WithParent(_progress_file(study, run)))
        except Timeout:
            continue


def _watch(study: Study, comparison: Comparison, runs: list[Run], futures: list[Future]) -> None:
    """Show progress until the processes are through; raise what stopped one."""
    updates = {
        run: comparison.arms[run[0]].recipe.rollouts
        * comparison.arms[run[0]].recipe.updates_per_rollout
        for run in runs
    }
    finished: set[Run] = set()
    with tqdm(total=sum(updates.values()), unit="update", smoothing=0.05, mininterval=2) as bar:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            for run in runs:
                if run not in finished and is_done(study, comparison, run):
                    finished.add(run)
                    tqdm.write(f"trained {run[0]}, seed {run[1]}")
            count = sum(
                updates[run] if run in finished else Progress.read(_progress_file(study, run))[0]
                for run in runs
            )
            if count and not bar.n:
                bar.initial = bar.n = count  # what an earlier command did says nothing of the rate
            bar.set_description(f"{len(finished)} of {len(runs)} runs", refresh=False)
            bar.update(count - bar.n)


# One run ------------------------------------------------------------------------------------------


def train_run(study: Study, comparison: Comparison, run: Run, progress: Progress) -> None:
    """Train one arm with one seed from the base model, measure it, and write its directory."""
    started, work, (arm, seed) = time.time(), _work(study, run), run
    recipe, key = comparison.arms[arm].recipe, _key(study, comparison, run)
    begun = work / "key"  # of the run that a checkpoint is of: another one's is no use
    resumed = begun.is_file() and begun.read_text() == key
    if not resumed:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        begun.write_text(key)
    base = HFPolicy.load(study.model_path(study.base), study.base)
    model, tokenizer = load_base(study)
    evaluator = Evaluator(
        comparison.evaluations, comparison.evaluation_samples, seed, study_sampling(study)
    )
    tables = {
        rollout: work / f"tokens-{rollout}.csv"
        for rollouts in comparison.token_tables
        for rollout in rollouts
    }
    history = rlvr.train_rl(
        model,
        tokenizer,
        recipe,
        seed,
        work,
        {},
        evaluator,
        progress,
        base,
        tables,
        trim_scoring=True,
    )
    log = logs.tidy_log(history, recipe.updates_per_rollout)
    evaluations = logs.tidy_evaluations(history, recipe)
    answers = evaluator.answers(model, tokenizer, comparison.final_samples)
    few = accuracy([a for a in answers if a.sample < comparison.evaluation_samples])
    last = pd.DataFrame(
        [(recipe.rollouts, benchmark, value) for benchmark, value in few.items()],
        columns=list(evaluations.columns),
    )
    summary = {
        "arm": arm,
        "seed": seed,
        "key": key,
        "recipe": recipes.settings(recipe),
        "accuracy": {k: round(v, 6) for k, v in accuracy(answers).items()},
        "totals": {
            column: int(log[column].sum())
            for column in ("tokens_generated", "tokens_trained", "groups_sampled")
        },
        "shift": measure_shift(
            study, comparison, base, HFPolicy(model.eval(), tokenizer, arm), answers
        ),
        "seconds": round(time.time() - started),
        "resumed": resumed,
    }
    final = run_directory(study, arm, seed)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    log.to_csv(partial / "log.csv", index=False, float_format="%.5g")
    pd.concat([evaluations, last]).to_csv(partial / "eval.csv", index=False, float_format="%.6g")
    _final(answers).to_csv(partial / "final.csv", index=False)
    _token_table(tokenizer, comparison, tables).to_csv(
        partial / "tokens.csv", index=False, float_format="%.5g"
    )
    (partial / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    shutil.rmtree(work)
    progress.file.unlink(missing_ok=True)


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


def _token_table(tokenizer, comparison: Comparison, tables: dict[int, Path]) -> pd.DataFrame:
    """Mean k3 and weight by token, over the early and over the late rollouts."""
    parts = []
    for phase, rollouts in zip(("early", "late"), comparison.token_tables):
        sums = pd.concat([pd.read_csv(tables[rollout]) for rollout in rollouts])
        sums = sums.groupby("token").sum()
        parts.append(
            pd.DataFrame(
                {
                    "phase": phase,
                    "token": tokenizer.convert_ids_to_tokens(sums.index.tolist()),
                    "count": sums["count"].astype(int),
                    "k3_mean": sums["k3"] / sums["count"],
                    "weight_mean": sums["weight"] / sums["count"],
                }
            ).sort_values("count", ascending=False)
        )
    return pd.concat(parts)


def measure_shift(
    study: Study,
    comparison: Comparison,
    base: HFPolicy,
    tuned: HFPolicy,
    answers: list[Answer],
) -> dict:
    """JS between base and tuned on the tuned model's responses and on base's own, which are fixed.

    ``high`` is the set of positions of base's responses, in order, whose JS is above the study's
    threshold: one bit a position, packed and in base64 (``position_sets``). ``responses`` tells
    whether two runs were measured on the same ones.
    """
    samples, sampling = comparison.shift_samples, study_sampling(study)
    fixed = Evaluator((), samples, recipes.SEED, sampling).answers(
        base.model, base.tokenizer, samples
    )
    own = [answer for answer in answers if answer.sample < samples]
    ids, found = problem_ids(), {}
    for source, some in (("own", own), ("base", fixed)):
        trajectories = pd.DataFrame(
            {
                "benchmark": [answer.problem.tier for answer in some],
                "problem": [ids[answer.problem] for answer in some],
                "sample": [answer.sample for answer in some],
                "prompt_ids": [tuned.tokenizer.encode(answer.problem.prompt) for answer in some],
                "response_ids": [answer.response.ids for answer in some],
            }
        )
        table = shift_table(base, tuned, source, trajectories, sampling, 1, study.batch.score)
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
            responses = json.dumps([answer.response.ids for answer in some])
            found[source]["responses"] = hashlib.sha256(responses.encode()).hexdigest()[:16]
            found[source]["high_set"] = pack_positions(js > study.thresholds.high_js)
    return found
