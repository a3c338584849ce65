"""Figures of section 3. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.report.style import color, label_ends, name_lines
from tokenshift_utils.sections.mechanics.numbers import RANKS, RARE

__all__ = ["plot_evolution", "plot_mass", "plot_overlap", "plot_rank"]


def _names(study, table: pd.DataFrame) -> dict[str, str]:
    return {study.models[m].label: color(study, m) for m in dict.fromkeys(table["model"])}


def _panels(table: pd.DataFrame, height: float = 3.1):
    """One panel a set of positions, with the rows that go into it."""
    sets = list(dict.fromkeys(table["at"]))
    fig, axes = plt.subplots(1, len(sets), figsize=(7.2, height), sharey=True, squeeze=False)
    for ax, at in zip(axes[0], sets):
        ax.set_title(f"at {'all positions' if at == 'all' else 'positions with ' + at}")
    return fig, [(ax, table[table["at"] == at]) for ax, at in zip(axes[0], sets)]


def _curves(study, ax, rows: pd.DataFrame, names: list[str], x: list[int]) -> None:
    """One line a model through columns `names` (shares), with a band for the interval."""
    for _, row in rows[rows["positions"] > 0].iterrows():
        hue = color(study, row["model"])
        values = [[100 * float(row[n + end]) for n in names] for end in ("", "_low", "_high")]
        style = "--" if study.models[row["model"]].kind == "sft" else "-"
        ax.plot(x, values[0], "o" + style, color=hue, markersize=3.5)
        ax.fill_between(x, values[1], values[2], color=hue, alpha=0.18, linewidth=0)


def plot_overlap(study, table: pd.DataFrame) -> Figure:
    """Overlap of the top-k sets against k."""
    widths = [int(c[1:]) for c in table.columns if c[1:].isdigit() and c[0] == "k"]
    fig, panels = _panels(table)
    for ax, rows in panels:
        _curves(study, ax, rows, [f"k{k}" for k in widths], widths)
        ax.set(xlabel="k", ylim=(0, 102), xticks=widths)
    panels[0][0].set_ylabel("overlap of top-k sets (%)")
    name_lines(panels[-1][0], _names(study, table), at=(0.97, 0.86))
    return fig


def plot_rank(study, table: pd.DataFrame, shifts: dict[str, pd.DataFrame]) -> Figure:
    """At high-JS positions: base rank of the tuned top-1, and the base probability it had."""
    high = study.thresholds.high_js
    rows = table[table["at"] != "all"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.1))
    _curves(study, left, rows, [f"top{k}" for k in RANKS], list(range(len(RANKS))))
    left.set_xticks(range(len(RANKS)), [f"≤ {k}" for k in RANKS])
    left.set(xlabel="rank under base", ylim=(0, 102))
    left.set_ylabel(f"positions with JS > {high:g} (%)")
    left.set_title("Base's rank of the tuned top-1")
    grid = np.logspace(-5, 0, 200)
    for model, frame in shifts.items():
        logs = frame.loc[frame["js"] > high, "logp_base_of_tuned_top1"].to_numpy()
        if len(logs) == 0:
            continue
        below = np.searchsorted(np.sort(np.exp(logs)), grid, side="left") / len(logs)
        style = "--" if study.models[model].kind == "sft" else "-"
        right.plot(grid, 100 * below, style, color=color(study, model))
    right.axvline(RARE, color="#999999", linewidth=0.8)
    right.set(xscale="log", xlabel="x", ylabel="with base probability < x (%)", ylim=(0, 102))
    right.set_title("Base's probability of it")
    name_lines(right, _names(study, table), at=(0.03, 0.97))
    return fig


def plot_mass(study, table: pd.DataFrame) -> Figure:
    """Share of the gained probability that goes to tokens in base's top k."""
    widths = [k for k in RANKS if f"gained_in_top{k}" in table.columns]
    fig, panels = _panels(table)
    for ax, rows in panels:
        _curves(study, ax, rows, [f"gained_in_top{k}" for k in widths], list(range(len(widths))))
        ax.set_xticks(range(len(widths)), [f"top {k}" for k in widths])
        ax.set(xlabel="candidates of base", ylim=(0, 102))
    panels[0][0].set_ylabel("of the probability gained (%)")
    name_lines(panels[-1][0], _names(study, table), at=(0.97, 0.86))
    return fig


def plot_evolution(study, table: pd.DataFrame, model: str) -> Figure:
    """Percentiles of JS over training, and the Jaccard overlap with the final high-JS set."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.1))
    hue, steps = color(study, model), table["step"].to_numpy()
    ends = {}
    for name, alpha in (("p75", 0.35), ("p90", 0.5), ("mean", 0.65), ("p95", 0.8), ("p99", 1.0)):
        left.plot(steps, table[name], "o-", color=hue, alpha=alpha, markersize=3.5)
        left.fill_between(
            steps, table[f"{name}_low"], table[f"{name}_high"], color=hue, alpha=0.12, linewidth=0
        )
        ends[name] = (float(steps[-1]), float(table[name].iloc[-1]), hue)
    left.set(xlabel="training step", ylabel="JS (nats)", ylim=(0, None), title="Percentiles of JS")
    label_ends(left, ends)
    right.plot(steps, table["jaccard"], "o-", color=hue, markersize=3.5)
    right.fill_between(
        steps, table["jaccard_low"], table["jaccard_high"], color=hue, alpha=0.18, linewidth=0
    )
    right.set(xlabel="training step", ylabel="Jaccard overlap", ylim=(0, 1.03))
    right.set_title("High-JS set against the final one")
    return fig
