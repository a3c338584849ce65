"""Figures of section 3. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn.objects as so
from matplotlib.figure import Figure

from tokenshift_utils.report.style import (
    add_lines,
    as_interval,
    color,
    draw_facets,
    label_ends,
    log_scale,
    model_looks,
)
from tokenshift_utils.sections.mechanics.numbers import FLOOR, RANKS, RARE


def _sets(table: pd.DataFrame) -> list[str]:
    """The sets of positions that have a panel: high JS, and all."""
    return [at for at in dict.fromkeys(table["at"]) if not at.startswith("full")]


def _panels(
    study, table: pd.DataFrame, names: dict[str, str], labels: tuple[str, str], below=None
) -> Figure:
    """A line a model through columns (shares), by their names on the axis, and a panel a set.

    ``labels`` are of the axes. ``below`` are rows (x, below, at, label) of lines in a second row of
    panels.
    """
    sets, looks = _sets(table), model_looks(study, table["model"])
    rows = table[table["positions"] > 0]
    rows = rows.assign(label=rows["model"].map({m: study.models[m].label for m in rows["model"]}))
    parts = [as_interval(rows, name).assign(x=i) for i, name in enumerate(names)]
    rows = pd.concat(parts, ignore_index=True)[["x", "at", "label", "value", "low", "high"]]
    order = {"col": sets, "row": [0] if below is None else [0, 1]}
    every = pd.concat([rows.assign(row=0), pd.DataFrame(below).assign(row=1)], ignore_index=True)
    plot = so.Plot(every, x="x", color="label", linestyle="label", marker="label")
    plot = add_lines(plot, so.Line(pointsize=3.5))
    if below is not None:
        sparse = so.Line(pointsize=3.5, artist_kws={"markevery": 24})
        plot = plot.add(sparse, y="below", legend=False)
    plot = plot.facet("at", "row", order=order).share(x="row", y="row").scale(**looks)
    titles = (f"at {'all positions' if at == 'all' else 'positions with ' + at}" for at in sets)
    fig, axes = draw_facets(plot, (7.4, 3.1 if below is None else 5.4), titles)
    for ax, at in zip(axes, sets):
        ax.set_xticks(range(len(names)), names.values())
        ax.set(xlabel=labels[0], ylim=(0, 104), xlim=(-0.2, len(names) - 0.8))
    axes[0].set_ylabel(labels[1])
    label_ends(ax, rows[rows["at"] == at], "x", "label", looks["color"])
    return fig


def plot_overlap(study, table: pd.DataFrame) -> Figure:
    """Overlap of the top-k sets against k."""
    names = {c: c[1:] for c in table if c[1:].isdigit() and c[0] == "k"}
    return _panels(study, table, names, ("k", "overlap of top-k sets (%)"))


def plot_rank(study, table: pd.DataFrame, shifts: dict[str, pd.DataFrame]) -> Figure:
    """Base's rank of the tuned top-1 (above) and the base probability it had (below)."""
    grid, parts = np.logspace(-5, 0, 120), []
    for at in _sets(table):
        for model, frame in shifts.items():
            chosen = frame if at == "all" else frame[frame["js"] > study.thresholds.high_js]
            chance = np.sort(np.exp(chosen["logp_base_of_tuned_top1"].to_numpy()))
            share = 100 * np.searchsorted(chance, grid, side="left") / max(len(chance), 1)
            lines = pd.DataFrame({"x": grid, "below": share if len(chance) else np.nan})
            parts.append(lines.assign(at=at, label=study.models[model].label))
    names = {f"top{k}": f"≤ {k}" for k in RANKS}
    labels = ("base's rank of the tuned top-1", "positions (%)")
    fig = _panels(study, table, names, labels, pd.concat(parts, ignore_index=True))
    below = fig.axes[len(fig.axes) // 2 :]
    for ax in below:
        ax.axvline(RARE, color="#999999", linewidth=0.8)
        log_scale(ax, "x")
        ax.set(xlabel="x, base's probability of it", ylim=(0, 104))
    below[0].set_ylabel("with less than x (%)")
    return fig


def plot_mass(study, table: pd.DataFrame) -> Figure:
    """Share of the gained probability that goes to tokens in base's top k."""
    names = {f"gained_in_top{k}": f"top {k}" for k in RANKS if f"gained_in_top{k}" in table}
    return _panels(study, table, names, ("candidates of base", "of the probability gained (%)"))


def plot_evolution(study, table: pd.DataFrame, model: str) -> Figure:
    """Over training: percentiles of JS, share of high-JS positions, and their overlap with the final
    ones. Dotted: over the full vocabulary."""
    titles = ("Percentiles", "Share of high JS", "The set, against the final")
    share, supports = f"share_gt_{study.thresholds.high_js:g}", table.groupby("support")
    nucleus = supports.get_group("nucleus")
    percentiles = pd.concat(
        as_interval(nucleus, name, 1).assign(panel=titles[0], line=name)
        for name in ("p75", "p90", "p95", "mean", "p99")
    )
    ends = ["value", "low", "high"]
    percentiles[ends] = percentiles[ends].clip(lower=FLOOR / 2)
    rows = [percentiles]
    for panel, name, factor in ((titles[1], share, 100), (titles[2], "jaccard", 1)):
        rows += [as_interval(r, name, factor).assign(panel=panel, line=s) for s, r in supports]
    rows = pd.concat(rows, ignore_index=True)
    lines, hue = rows["line"].unique(), color(study, model)
    looks = {
        "linestyle": dict.fromkeys(lines, "-") | {"mean": "--", "full": ":"},
        "marker": dict.fromkeys(lines, "o") | {"full": ""},
        "color": dict.fromkeys(lines, hue),
    }
    plot = so.Plot(rows, x="step", color="line", linestyle="line", marker="line")
    plot = add_lines(plot.facet("panel", order=[*titles]), so.Line(pointsize=3.5))
    plot = plot.scale(**looks).share(x=False, y=False)
    fig, (left, middle, right) = draw_facets(plot, (7.8, 3.1), titles)
    log_scale(left, "y")
    left.set(ylabel="JS (nats; lowest: below 1e-6)", ylim=(FLOOR / 3, 1))
    label_ends(left, percentiles, "step", "line", looks["color"])
    middle.set(ylabel=f"positions with JS > {study.thresholds.high_js:g} (%)", ylim=(0, None))
    right.set(ylabel="Jaccard overlap", ylim=(0, 1.03))
    for ax in fig.axes:
        ax.set(xlabel="training step")
    return fig
