"""Figures of section 3. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.report.style import (
    color,
    interval_line,
    label_ends,
    line_look,
    log_scale,
)
from tokenshift_utils.sections.mechanics.numbers import FLOOR, RANKS, RARE


def _panels(table: pd.DataFrame, rows: int = 1, height: float = 3.1):
    """(figure, axes [rows, 2], [(panels below each other, rows of the table)]): high JS, and all."""
    sets = [at for at in dict.fromkeys(table["at"]) if not at.startswith("full")]
    fig, axes = plt.subplots(rows, len(sets), figsize=(7.4, height), sharey="row", squeeze=False)
    for ax, at in zip(axes[0], sets):
        ax.set_title(f"at {'all positions' if at == 'all' else 'positions with ' + at}")
    return fig, axes, [(column, table[table["at"] == at]) for column, at in zip(axes.T, sets)]


def _curves(study, ax, rows: pd.DataFrame, names: list[str], label: bool) -> None:
    """One line a model through columns `names` (shares), with a band for the interval."""
    ends, x = {}, range(len(names))
    for _, row in rows[rows["positions"] > 0].iterrows():
        model, hue = row["model"], color(study, row["model"])
        values = pd.DataFrame(
            {f"y{end}": [100 * float(row[n + end]) for n in names] for end in ("", "_low", "_high")}
        )
        interval_line(ax, x, values, "y", hue, **line_look(study, model))
        ends[study.models[model].label] = (x[-1], values["y"].iloc[-1], hue)
    ax.set(ylim=(0, 104), xlim=(-0.2, len(names) - 0.8))
    if label:
        label_ends(ax, ends)


def plot_overlap(study, table: pd.DataFrame) -> Figure:
    """Overlap of the top-k sets against k."""
    widths = [c for c in table.columns if c[1:].isdigit() and c[0] == "k"]
    fig, axes, panels = _panels(table)
    for (ax,), rows in panels:
        _curves(study, ax, rows, widths, ax is axes[0, -1])
        ax.set_xticks(range(len(widths)), [c[1:] for c in widths])
        ax.set(xlabel="k")
    axes[0, 0].set_ylabel("overlap of top-k sets (%)")
    return fig


def plot_rank(study, table: pd.DataFrame, shifts: dict[str, pd.DataFrame]) -> Figure:
    """Base's rank of the tuned top-1 (above) and the base probability it had (below)."""
    fig, axes, panels = _panels(table, rows=2, height=5.4)
    grid = np.logspace(-5, 0, 120)
    for (above, below), rows in panels:
        _curves(study, above, rows, [f"top{k}" for k in RANKS], above is axes[0, -1])
        above.set_xticks(range(len(RANKS)), [f"≤ {k}" for k in RANKS])
        above.set(xlabel="base's rank of the tuned top-1")
        for model, frame in shifts.items():
            high = frame["js"] > study.thresholds.high_js
            chosen = frame if rows["at"].iloc[0] == "all" else frame[high]
            chance = np.sort(np.exp(chosen["logp_base_of_tuned_top1"].to_numpy()))
            if len(chance):
                share = 100 * np.searchsorted(chance, grid, side="left") / len(chance)
                look = line_look(study, model) | {"markevery": 24, "markersize": 3.5}
                below.plot(grid, share, color=color(study, model), **look)
        below.axvline(RARE, color="#999999", linewidth=0.8)
        log_scale(below, "x")
        below.set(xlabel="x, base's probability of it", ylim=(0, 104))
    axes[0, 0].set_ylabel("positions (%)")
    axes[1, 0].set_ylabel("with less than x (%)")
    return fig


def plot_mass(study, table: pd.DataFrame) -> Figure:
    """Share of the gained probability that goes to tokens in base's top k."""
    widths = [k for k in RANKS if f"gained_in_top{k}" in table.columns]
    fig, axes, panels = _panels(table)
    for (ax,), rows in panels:
        _curves(study, ax, rows, [f"gained_in_top{k}" for k in widths], ax is axes[0, -1])
        ax.set_xticks(range(len(widths)), [f"top {k}" for k in widths])
        ax.set(xlabel="candidates of base")
    axes[0, 0].set_ylabel("of the probability gained (%)")
    return fig


def plot_evolution(study, table: pd.DataFrame, model: str) -> Figure:
    """Over training: percentiles of JS, share of high-JS positions, and their overlap with the final
    ones. Dotted: over the full vocabulary."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.8, 3.1))
    hue, ends = color(study, model), {}
    nucleus, full = (table[table["support"] == s] for s in ("nucleus", "full"))
    for name in ("p75", "p90", "p95", "mean", "p99"):
        shown = nucleus[[name, f"{name}_low", f"{name}_high"]].clip(lower=FLOOR / 2)
        dashed = {"linestyle": "--"} if name == "mean" else {}
        interval_line(left, nucleus["step"], shown, name, hue, **dashed)
        ends[name] = (float(nucleus["step"].iloc[-1]), float(shown[name].iloc[-1]), hue)
    log_scale(left, "y")
    left.set(xlabel="training step", ylabel="JS (nats; lowest: below 1e-6)", title="Percentiles")
    left.set_ylim(FLOOR / 3, 1)
    label_ends(left, ends)
    share = f"share_gt_{study.thresholds.high_js:g}"
    for ax, name, factor in ((middle, share, 100), (right, "jaccard", 1)):
        for rows, look in ((nucleus, {}), (full, {"linestyle": ":", "marker": ""})):
            shown = factor * rows[[name, f"{name}_low", f"{name}_high"]]
            interval_line(ax, rows["step"], shown, name, hue, **look)
        ax.set(xlabel="training step", ylim=(0, None))
    middle.set(
        ylabel=f"positions with JS > {study.thresholds.high_js:g} (%)", title="Share of high JS"
    )
    right.set(ylabel="Jaccard overlap", ylim=(0, 1.03), title="The set, against the final")
    return fig
