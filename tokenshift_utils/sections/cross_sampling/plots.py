"""Figures of section 2: curves and random controls. Each function draws one from numbers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.report.style import color, name_lines
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, REVERSE, threshold_name

__all__ = ["TITLES", "curve", "errors", "level", "plot_controls", "plot_curves", "share_axis"]

TITLES = {FORWARD: "Forward: RL's tokens into base", REVERSE: "Reverse: base's tokens into RL"}


# rule, match, marker, label
_KINDS = (
    ("js", "", "o", "JS rule"),
    ("random", "effective", "s", "random, same effective"),
    ("random", "switched", "D", "random, same switched"),
)


def share_axis(ax, shares, label: str = "effectively replaced (%)") -> None:
    """The horizontal axis for effective shares in [0, 1], from 0 to the largest.

    It is linear, so that an area between two lines is the area that the summaries measure.
    """
    ax.set_xlim(0, 1.06 * max(100 * float(max(shares, default=0.0)), 0.02))
    ax.locator_params(axis="x", nbins=4)
    ax.set_xlabel(label)


def curve(ax, rows: pd.DataFrame, hue: str, marker: str = "o", line: str = "-", **look) -> None:
    """Accuracy (percent) against effective share from the primary's own, with an interval band."""
    rows = rows.sort_values("effective_share", kind="stable")
    x = np.concatenate([[0], 100 * rows["effective_share"]])
    y, low, high = (
        100 * np.concatenate([rows[f"before{end}"].iloc[:1], rows[f"after{end}"]])
        for end in ("", "_low", "_high")
    )
    band = ~np.isnan(low) & ~np.isnan(high)
    ax.fill_between(x[band], low[band], high[band], color=hue, alpha=0.15, linewidth=0)
    ax.plot(x, y, line, color=hue, marker=marker, markevery=range(1, len(x)), **look)


def _kinds_legend(fig: Figure) -> None:
    handles = [
        plt.Line2D(
            [], [], linestyle="", marker=marker, color="#333333", label=label, markersize=5.5,
            markerfacecolor="#333333" if rule == "js" else "white",
        )
        for rule, _, marker, label in _KINDS
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=3)


def level(ax, row: pd.Series, name: str, hue: str) -> None:
    """A model's own accuracy as a line with its interval as a band."""
    ax.axhline(100 * row[name], color=hue, linewidth=1, linestyle=":")
    ends = (row[f"{name}_low"], row[f"{name}_high"])
    if not np.isnan(ends).any():
        ax.axhspan(100 * ends[0], 100 * ends[1], color=hue, alpha=0.08, linewidth=0)


def errors(rows: pd.DataFrame, name: str) -> np.ndarray:
    ends = [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
    return 100 * np.maximum(np.nan_to_num(np.array(ends, dtype=float)), 0)


def plot_curves(study, table: pd.DataFrame) -> Figure:
    """Accuracy against the effectively replaced share, per direction (rows) and benchmark.

    Filled markers and bands: the JS rule over thresholds, from the primary's own accuracy at 0 to
    every position switched where the study asks for that. Open ones: random positions, replacing as
    much (line and band) or switched as often. Dotted lines with bands: own accuracies.
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
            share_axis(ax, here["effective_share"], "effectively replaced (%)" if i else "")
            for model in dict.fromkeys(here["model"]):
                _pair(study, ax, here[here["model"] == model], model, direction)
            ax.set(ylim=(-2, 102), title=benchmark if i == 0 else "")
        axes[i, 0].set_ylabel(f"{TITLES[direction]}\naccuracy (%)")
    models = (study.base, *dict.fromkeys(table["model"]))
    name_lines(
        axes[0, -1], {study.models[m].label: color(study, m) for m in models}, at=(0.03, 0.74)
    )
    _kinds_legend(fig)
    return fig


def _pair(study, ax, rows: pd.DataFrame, model: str, direction: str) -> None:
    hue = color(study, model)
    base, own = ("before", "goal") if direction == FORWARD else ("goal", "before")
    level(ax, rows.iloc[0], base, color(study, study.base))
    level(ax, rows.iloc[0], own, hue)
    curve(ax, rows[rows["rule"] == "js"], hue, markersize=4)
    for _, match, marker, _ in _KINDS[1:]:
        other = rows[(rows["rule"] == "random") & (rows["match"] == match)]
        if other.empty:
            continue
        open_ones = {"markerfacecolor": "white", "markersize": 5, "linewidth": 1}
        if match == "effective":
            curve(ax, other, hue, marker, "--", **open_ones)
        else:
            ax.plot(
                100 * other["effective_share"],
                100 * other["after"],
                marker,
                color=hue,
                **open_ones,
            )


def plot_controls(study, table: pd.DataFrame) -> Figure:
    """The JS rule and both random controls side by side, pooled over benchmarks, both directions.

    Controls that are not matched are faint.
    """
    rows = table[table["benchmark"] == table["benchmark"].iloc[-1]]
    matched = rows[rows["rule"] == "random"][["model", "direction", "threshold"]].drop_duplicates()
    fig, axes = plt.subplots(
        1, 2, figsize=(7.2, 1.1 + 0.62 * max(len(matched) / 2, 1)), sharey=True
    )
    names: dict[int, str] = {}
    for ax, direction in zip(axes, (FORWARD, REVERSE)):
        here = matched[matched["direction"] == direction]
        for i, (model, eps) in enumerate(zip(here["model"], here["threshold"])):
            names[-i] = f"{study.models[model].label}\n{threshold_name(eps)}"
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
                    xerr=errors(one, "after"),
                    fmt=marker,
                    color=color(study, model),
                    markerfacecolor=color(study, model) if rule == "js" else "white",
                    markersize=5.5,
                    alpha=0.35 if (one["matched"] == "not matched").any() else 1,
                )
            for name, level in (("before", study.base), ("goal", model)):
                if direction == REVERSE:
                    level = model if name == "before" else study.base
                x = 100 * of[name].iloc[0]
                ax.plot([x, x], [-i - 0.38, -i + 0.38], ":", color=color(study, level))
        ax.set(xlim=(-2, 102), xlabel="accuracy (%)", title=TITLES[direction])
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(list(names), list(names.values()))
    _kinds_legend(fig)
    return fig
