"""Figures of section 4. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.analysis_objective import Training
from tokenshift_utils.style import color, name_lines

__all__ = ["plot_training", "plot_weights"]

_CURVES = (
    ("correct_mean", "right among sampled (%)", 100.0),
    ("accuracy", "accuracy in training (%)", 100.0),
    ("length_mean", "response length (tokens)", 1.0),
    ("entropy", "entropy (nats)", 1.0),
    ("k3_mean", "KL estimate (nats)", 1.0),
    ("weight_mean", "mean weight", 1.0),
)


def plot_weights(study, curves: pd.DataFrame, training: dict[str, Training]) -> Figure:
    """The weight against the KL estimate; points show the KL met in training.

    They are its 50th, 90th and 99th percentile over tokens, averaged over all updates but the first
    of each rollout.
    """
    fig, ax = plt.subplots(figsize=(5.6, 3.1))
    names = {}
    for model in dict.fromkeys(curves["model"]):
        rows, hue = curves[curves["model"] == model], color(study, model)
        ax.plot(rows["kl"], rows["weight"], color=hue)
        names[study.models[model].label] = hue
        log = training[model].log
        later = log[log["rollout"].duplicated()]
        for share in (50, 90, 99):
            met = later[f"k3_p{share}"].mean() if f"k3_p{share}" in later else 0.0
            if met > 0:
                weight = float(np.interp(met, rows["kl"], rows["weight"]))
                ax.plot([met], [weight], "o", color=hue, markersize=5)
                ax.annotate(
                    f"{share}%",
                    (met, weight),
                    xytext=(-4, 5 if weight >= 1 else -12),
                    textcoords="offset points",
                    ha="right",
                    fontsize=8.5,
                    color=hue,
                )
    ax.axhline(1, color="#999999", linewidth=0.8)
    ax.set(xscale="log", xlim=(1e-6, 1))
    ax.margins(y=0.12)
    ax.set(xlabel="KL estimate of a token (nats)", ylabel="weight of its advantage")
    name_lines(ax, names, at=(0.03, 0.97))
    return fig


def _curve(run: Training, column: str) -> pd.Series:
    if column != "accuracy":
        return run.by_rollout(column)
    if run.evaluations.empty:
        return pd.Series(dtype=float)
    return run.evaluations.groupby("rollout")["accuracy"].mean()


def plot_training(study, training: dict[str, Training]) -> Figure:
    """Training curves of the baseline and its weighted variants, one point a rollout."""
    fig, axes = plt.subplots(2, 3, figsize=(7.6, 4.6), sharex=True)
    for ax, (column, title, scale) in zip(axes.flat, _CURVES):
        drawn = False
        for model, run in training.items():
            values = _curve(run, column)
            if len(values):
                marker = "o-" if column == "accuracy" else "-"
                ax.plot(values.index, scale * values, marker, color=color(study, model),
                        markersize=3.5, linewidth=1.5)  # fmt: skip
                drawn = True
        if not drawn:
            ax.text(0.5, 0.5, "not logged", ha="center", transform=ax.transAxes)
        ax.set_title(title, fontsize=9.5)
        ax.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    for ax in axes[1]:
        ax.set_xlabel("rollout")
    names = {study.models[m].label: color(study, m) for m in training}
    name_lines(axes[0, 0], names, at=(0.97, 0.45))
    return fig
