"""Model cards of the shipped models: data, recipe, seed, curve, and accuracy as measured."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from tokenshift_utils.files import read_csv, read_json, write_text
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.report.bootstrap import Bootstrap
from tokenshift_utils.report.tables import to_markdown
from tokenshift_utils.study.study import Study
from tokenshift_utils.training.logs import TRAIN_AGAIN, settings_table
from tokenshift_utils.training.tiny.recipes import OwnAnswersRecipe, Plan, RLRecipe
from tokenshift_utils.training.tiny.runs import ModelRun

DATA = {
    "base": "chains of thought of mixed quality and error-free exercise pages"
    " (`tokenshift_utils/training/tiny/corpus.py`)",
    "rl": "problems drawn afresh for every rollout, rewarded for a correct boxed answer",
    "sft-far": "correct demonstrations in another style"
    " (`write_far` in `tokenshift_utils/training/tiny/demonstrations.py`)",
    "sft-near": "correct demonstrations in the base model's own style"
    " (`write_near` in `tokenshift_utils/training/tiny/demonstrations.py`)",
    "sft": "base's own right answers (rejection sampling), learnt until the model has {like}'s {until}",
    "dpo": "base's own right answers preferred to its wrong ones, until the model has {like}'s {until}",
}


def write_cards(study: Study, plan: Plan, names: list[str]) -> None:
    """Write README.md into the directories of ``names`` and of their checkpoints.

    Accuracy is measured on the shipped weights, on the study's own rollouts, which are kept.
    """
    for name in names:
        run = ModelRun(study, name, plan)
        along = {f"{name}@{step}": place for step, place in run.checkpoints.items()}
        if name in plan.own:
            along |= {place.name: place for place in run.models[1:]}
        for variant, directory in {name: run.models[0], **along}.items():
            write_text(directory / "README.md", _card(run, variant))


def _card(run: ModelRun, variant: str) -> str:
    study, logs, recipe = run.study, run.logs, run.recipe
    summary = read_json(logs / "summary.json", TRAIN_AGAIN)
    is_rl, is_own = isinstance(recipe, RLRecipe), isinstance(recipe, OwnAnswersRecipe)
    stem, _ = run.replicated
    data = DATA["rl" if is_rl else recipe.method if is_own else run.name]
    if is_own:
        until = "KL to base" if variant == run.name else "accuracy"
        data = data.format(like=recipe.like, until=until)
    sections = [
        "---\nlibrary_name: transformers\nlicense: apache-2.0\n---",
        (
            f"# {variant}\n\n{study.model(variant.replace(run.name, stem)).label}, a model of the study *{study.title}*.\n\n"
            f"{study.note}"
        ),
        "## Data\n\n"
        f"{data}. No evaluation problem occurs in it.\n"
        + ("" if run.name == study.base else f"Starts from `{study.base}`."),
        f"## Recipe\n\n{to_markdown(settings_table(asdict(recipe)))}\n\nSeed {summary['seed']}.",
        "## Training curve\n\n" + _curve(logs, recipe),
    ]
    if stem == run.name:  # replicates are measured in notebooks 01 and 03
        measured = (
            "## Accuracy\n\n"
            f"Of the weights as shipped, at temperature {study.sampling.temperature:g} and top-p"
            f" {study.sampling.top_p:g}; {study.statistics.confidence:.0%} intervals from resampling"
            f" problems.\n\n{to_markdown(_accuracy(study, variant))}"
        )
        sections.insert(-1, measured)
    if summary["totals"]:
        totals = ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in summary["totals"].items())
        note = " (discarded groups included in what was generated)" if is_rl else ""
        sections.append(f"## Totals\n\n{totals}{note}.")
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _accuracy(study: Study, variant: str) -> pd.DataFrame:
    """Accuracy by benchmark with its bootstrap interval over problems."""
    rollouts = fetch(study, Rollouts.of(study, variant))
    settings = study.statistics
    rows = []
    for benchmark, part in rollouts.groupby("benchmark", sort=False):
        bootstrap = Bootstrap(part, settings.resamples, settings.confidence, settings.seed)
        rows.append(
            {
                "benchmark": benchmark,
                "problems": part["problem"].nunique(),
                "samples_a_problem": study.accuracy_samples(variant),
                **bootstrap.accuracy(part).columns("accuracy"),
            }
        )
    return pd.DataFrame(rows)


def _curve(logs: Path, recipe) -> str:
    if isinstance(recipe, OwnAnswersRecipe):
        few = "On problems of its own, after so many updates; the KL to base is in nats a token:"
        return f"{few}\n\n{to_markdown(read_csv(logs / 'eval.csv', TRAIN_AGAIN))}"
    if not isinstance(recipe, RLRecipe):
        return to_markdown(read_csv(logs / "log.csv", TRAIN_AGAIN).iloc[::4])
    wide = read_csv(logs / "eval.csv", TRAIN_AGAIN).pivot(
        index="rollout", columns="benchmark", values="accuracy"
    )
    few = "Accuracy of a few samples a problem, after so many rollouts:"
    return f"{few}\n\n{to_markdown(wide.reset_index())}"
