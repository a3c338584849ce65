"""`tokenshift train`: every model of the embedded study, from nothing, resumable."""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.study import Study
from tokenshift_utils.training import logs as training_logs
from tokenshift_utils.training.tiny import recipes, rlvr, supervised
from tokenshift_utils.training.tiny.cards import write_cards
from tokenshift_utils.training.tiny.evaluation import Evaluator
from tokenshift_utils.training.tiny.problems import TIERS, benchmark, problem_ids
from tokenshift_utils.training.tiny.progress import Progress
from tokenshift_utils.training.tiny.recipes import Plan, RLRecipe, SupervisedRecipe
from tokenshift_utils.training.tiny.tokenizer import build_tokenizer

PROCESSES = 2  # of one thread each


def train(
    study: Study, only: list[str] | None = None, fresh: bool = False, plan: Plan = recipes.TINY
) -> None:
    """Train the models of ``plan`` into the directories that ``study`` names.

    A model whose directory and summary match its recipe is kept; a run that was stopped goes on
    from its last checkpoint.

    Parameters
    ----------
    only
        Names of models to train; None is all of them. The base model they start from must exist.
    fresh
        Train again what is there already.

    Raises
    ------
    TokenshiftError
        If the study does not declare the plan's models and benchmarks, or ``only`` names others.
    """
    names = [study.base, *plan.rl, *plan.sft]
    _check(study, plan, names, only)
    chosen = only or names
    for name in chosen:
        if fresh:
            shutil.rmtree(_work(study, name), ignore_errors=True)
            _summary_path(study, name).unlink(missing_ok=True)
    write_benchmarks(study)
    todo = [name for name in chosen if not _is_done(study, plan, name)]
    print(f"to train: {', '.join(todo) or 'nothing, every model matches its recipe'}")
    # Stages of a kind run together, so that the progress bar counts updates of one cost.
    for stage in ([study.base], plan.rl, plan.sft):
        _run_stages(study, plan, [name for name in stage if name in todo])
    write_cards(study, plan, chosen)


def write_benchmarks(study: Study) -> None:
    """Write the held-out problems where the study's benchmarks are."""
    ids = problem_ids()
    for tier in TIERS:
        rows = [
            {"id": ids[problem], "problem": problem.prompt, "answer": str(problem.answer)}
            for problem in benchmark(tier)
        ]
        path = study.benchmark_path(tier)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _check(study: Study, plan: Plan, names: list[str], only: list[str] | None) -> None:
    for name in names:
        if name not in study.models or study.weighted is None:
            raise TokenshiftError(
                f"study {study.name} lacks the model '{name}' or the key 'weighted': there are training"
                f" recipes for the embedded study only, whose models are {', '.join(names)}."
            )
    for tier in TIERS:
        study.benchmark_path(tier)
    for name in only or []:
        if name not in names:
            raise TokenshiftError(f"no recipe for model '{name}': there are {', '.join(names)}.")
    if only and study.base not in only and not _is_done(study, plan, study.base):
        raise TokenshiftError(
            f"model '{study.base}', from which the others start, is missing or does not match its"
            f" recipe: run `tokenshift train --only {study.base}` first."
        )


def _run_stages(study: Study, plan: Plan, names: list[str]) -> None:
    if not names:
        return
    files = {name: _work(study, name).parent / f"{name}.progress" for name in names}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(min(PROCESSES, len(names)), context, one_thread) as pool,
        tqdm(total=0, desc=", ".join(names), unit="update") as bar,
    ):
        futures: dict[Future, str] = {
            pool.submit(_stage, study, plan, name, files[name]): name for name in names
        }
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=2, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                tqdm.write(f"trained {futures[future]}")
            counts = [Progress.read(file) for file in files.values()]
            bar.total = sum(total for _, total in counts)
            bar.update(sum(finished for finished, _ in counts) - bar.n)
            bar.refresh()
    for file in files.values():
        file.unlink(missing_ok=True)


def one_thread() -> None:
    """Set a worker process up."""
    torch.set_num_threads(1)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental; TRL is pinned
    transformers_logging.disable_progress_bar()


def _stage(study: Study, plan: Plan, name: str, progress_file: Path) -> None:
    """Train one model; runs in a worker process."""
    started, work = time.time(), _work(study, name)
    recipe, resumed = _recipe(study, plan, name), work.exists()
    work.mkdir(parents=True, exist_ok=True)
    progress = Progress(progress_file)
    if name == study.base:
        tokenizer = build_tokenizer()
        model = supervised.new_model(tokenizer, plan.seed)
    else:
        model, tokenizer = load_base(study)
    logs = _logs(study, name)
    logs.mkdir(parents=True, exist_ok=True)
    totals = {}
    if isinstance(recipe, RLRecipe):
        checkpoints = {
            rollout: work / f"rollout-{rollout}" for rollout in plan.checkpoints.get(name, ())
        }
        evaluator = Evaluator(plan.evaluations, plan.evaluation_samples, plan.seed, study.sampling)
        history = rlvr.train_rl(
            model, tokenizer, recipe, plan.seed, work, checkpoints, evaluator, progress
        )
        log = training_logs.tidy_log(history, recipe.updates_per_rollout)
        evaluations = training_logs.tidy_evaluations(history, recipe)
        evaluations.to_csv(logs / "eval.csv", index=False, float_format="%.6g")
        for rollout, directory in checkpoints.items():
            checkpoint = LlamaForCausalLM.from_pretrained(directory)
            ship(checkpoint, tokenizer, study.model_path(f"{name}@{rollout}"))
        totals = {
            column: int(log[column].sum())
            for column in ("tokens_generated", "tokens_trained", "groups_sampled")
        }
    else:
        log = pd.DataFrame(
            supervised.train_supervised(
                model, tokenizer, recipe, _style(study, name), plan.seed, work, progress
            )
        )
    log.to_csv(logs / "log.csv", index=False, float_format="%.6g")
    ship(model, tokenizer, study.model_path(name))
    summary = {
        "model": name,
        "key": _key(study, plan, name),
        "seed": plan.seed,
        "recipe": recipes.settings(recipe),
        "totals": totals,
        "seconds": round(time.time() - started),
        "resumed": resumed,
    }
    _summary_path(study, name).write_text(json.dumps(summary, indent=1) + "\n")
    shutil.rmtree(work)


def load_base(study: Study) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The base model in float32, to be trained on, and its tokenizer."""
    directory = study.model_path(study.base)
    model = LlamaForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model, AutoTokenizer.from_pretrained(directory)


def ship(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save in half precision, whole or not at all: written beside ``directory``, then renamed."""
    temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.set_attn_implementation("sdpa")
    model.half().save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def _recipe(study: Study, plan: Plan, name: str) -> SupervisedRecipe | RLRecipe:
    return plan.base if name == study.base else {**plan.rl, **plan.sft}[name]


def _style(study: Study, name: str) -> str:
    return "base" if name == study.base else name


def _key(study: Study, plan: Plan, name: str) -> str:
    """What determined a model: its recipe, the seed and, but for the base, the base's key."""
    content = {
        "recipe": recipes.settings(_recipe(study, plan, name)),
        "architecture": recipes.ARCHITECTURE,
        "seed": plan.seed,
        "checkpoints": plan.checkpoints.get(name, ()),
        "base": None if name == study.base else _key(study, plan, study.base),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _is_done(study: Study, plan: Plan, name: str) -> bool:
    summary = _summary_path(study, name)
    models = [name, *(f"{name}@{n}" for n in plan.checkpoints.get(name, ()))]
    return (
        summary.exists()
        and json.loads(summary.read_text())["key"] == _key(study, plan, name)
        and all((study.model_path(model) / "model.safetensors").exists() for model in models)
    )


def _logs(study: Study, name: str) -> Path:
    return paths.resolve(study.weighted.log_dir) / name


def _summary_path(study: Study, name: str) -> Path:
    return _logs(study, name) / "summary.json"


def _work(study: Study, name: str) -> Path:
    return paths.resolve(study.weighted.log_dir) / "work" / name
