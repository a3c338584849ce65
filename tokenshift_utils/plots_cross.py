"""Figures of section 2. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.analysis_cross import FORWARD, REVERSE
from tokenshift_utils.style import color, name_lines

__all__ = ["plot_controls", "plot_curves"]

_TITLES = {FORWARD: "Forward: RL's tokens into base", REVERSE: "Reverse: base's tokens into RL"}


# rule, match, marker, label
_KINDS = (
    ("js", "", "o", "JS rule"),
    ("random", "effective", "s", "random, same effective"),
    ("random", "switched", "D", "random, same switched"),
)


def _kinds_legend(fig: Figure) -> None:
    handles = [
        plt.Line2D(
            [], [], linestyle="", marker=marker, color="#333333", label=label, markersize=5.5,
            markerfacecolor="#333333" if rule == "js" else "white",
        )
        for rule, _, marker, label in _KINDS
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=3)


def _level(ax, row: pd.Series, name: str, hue: str) -> None:
    """A model's own accuracy as a line with its interval as a band."""
    ax.axhline(100 * row[name], color=hue, linewidth=1, linestyle=":")
    ends = (row[f"{name}_low"], row[f"{name}_high"])
    if not np.isnan(ends).any():
        ax.axhspan(100 * ends[0], 100 * ends[1], color=hue, alpha=0.08, linewidth=0)


def _errors(rows: pd.DataFrame, name: str) -> np.ndarray:
    ends = [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
    return 100 * np.maximum(np.nan_to_num(np.array(ends, dtype=float)), 0)


def plot_curves(study, table: pd.DataFrame) -> Figure:
    """Accuracy against the effectively replaced share, per direction (rows) and benchmark.

    Lines: the JS rule over thresholds, from the primary's own accuracy at 0. Open markers: random
    positions, replacing as much or switched as often. Dotted lines with bands: own accuracies.
    """
    benchmarks = [b for b in dict.fromkeys(table["benchmark"])]
    if len(benchmarks) > 1:
        benchmarks = benchmarks[:-1]  # the last one pools them
    fig, axes = plt.subplots(
        2,
        len(benchmarks),
        figsize=(2.45 * max(len(benchmarks), 2), 5.8),
        sharey=True,
        squeeze=False,
    )
    for i, direction in enumerate((FORWARD, REVERSE)):
        for j, benchmark in enumerate(benchmarks):
            ax = axes[i, j]
            here = table[(table["benchmark"] == benchmark) & (table["direction"] == direction)]
            for model in dict.fromkeys(here["model"]):
                _curve(study, ax, here[here["model"] == model], model, direction)
            ax.set(ylim=(-2, 102), title=benchmark if i == 0 else "")
            ax.set_xlim(left=-0.3)
            if i == 1:
                ax.set_xlabel("effectively replaced (%)")
        axes[i, 0].set_ylabel(f"{_TITLES[direction]}\naccuracy (%)")
    models = (study.base, *dict.fromkeys(table["model"]))
    name_lines(
        axes[0, -1], {study.models[m].label: color(study, m) for m in models}, at=(0.97, 0.4)
    )
    _kinds_legend(fig)
    return fig


def _curve(study, ax, rows: pd.DataFrame, model: str, direction: str) -> None:
    hue = color(study, model)
    base, own = ("before", "goal") if direction == FORWARD else ("goal", "before")
    _level(ax, rows.iloc[0], base, color(study, study.base))
    _level(ax, rows.iloc[0], own, hue)
    rule = rows[rows["rule"] == "js"].sort_values("effective_share")
    x = np.concatenate([[0], 100 * rule["effective_share"]])
    y = np.concatenate([[100 * rule["before"].iloc[0]], 100 * rule["after"]])
    ax.plot(x, y, "-", color=hue)
    ax.errorbar(
        x[1:], y[1:], yerr=_errors(rule, "after"), fmt="o", color=hue, markersize=4, linewidth=1
    )
    for _, match, marker, _ in _KINDS[1:]:
        other = rows[(rows["rule"] == "random") & (rows["match"] == match)]
        ax.errorbar(
            100 * other["effective_share"],
            100 * other["after"],
            yerr=_errors(other, "after"),
            fmt=marker,
            color=hue,
            markerfacecolor="white",
            markersize=5,
            linewidth=1,
        )


def plot_controls(study, table: pd.DataFrame) -> Figure:
    """The JS rule and both random controls side by side, pooled over benchmarks, both directions."""
    rows = table[table["benchmark"] == table["benchmark"].iloc[-1]]
    matched = rows[rows["rule"] == "random"][["model", "direction", "threshold"]].drop_duplicates()
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 0.9 + 0.9 * max(len(matched) / 2, 1)), sharey=True)
    names: dict[int, str] = {}
    for ax, direction in zip(axes, (FORWARD, REVERSE)):
        here = matched[matched["direction"] == direction]
        for i, (model, eps) in enumerate(zip(here["model"], here["threshold"])):
            names[-i] = f"{study.models[model].label}\nJS > {eps:g}"
            of = rows[
                (rows["model"] == model)
                & (rows["direction"] == direction)
                & (rows["threshold"] == eps)
            ]
            for k, (rule, match, marker, _) in enumerate(_KINDS):
                one = of[(of["rule"] == rule) & (of["match"] == match)]
                ax.errorbar(
                    100 * one["after"],
                    [-i + 0.22 * (1 - k)] * len(one),
                    xerr=_errors(one, "after"),
                    fmt=marker,
                    color=color(study, model),
                    markerfacecolor=color(study, model) if rule == "js" else "white",
                    markersize=5.5,
                )
            for name, level in (("before", study.base), ("goal", model)):
                if direction == REVERSE:
                    level = model if name == "before" else study.base
                x = 100 * of[name].iloc[0]
                ax.plot([x, x], [-i - 0.38, -i + 0.38], ":", color=color(study, level))
        ax.set(xlim=(-2, 102), xlabel="accuracy (%)", title=_TITLES[direction])
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(list(names), list(names.values()))
    _kinds_legend(fig)
    return fig
