"""Figures of section 1. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from tokenshift_utils.report.style import color, name_lines, panels_width
from tokenshift_utils.sections.common import of_kind
from tokenshift_utils.sections.divergence.numbers import SUPPORTS

__all__ = [
    "plot_controls",
    "plot_entropy_bins",
    "plot_identity",
    "plot_js_distribution",
    "plot_js_entropy",
    "plot_positions",
]

LN2 = float(np.log(2))
_FLOOR = 1e-6  # nats; smaller JS, zero included, is drawn there
_NOISE = "#8C8C8C"  # what rounding makes
_TOP = 0.6932  # nats; above ln 2 in single precision too


def plot_js_distribution(
    study, shifts: dict[str, pd.DataFrame], floor: pd.DataFrame | None = None
) -> Figure:
    """Histogram of JS on a log axis, and the share of positions above each JS.

    ``floor`` are shifts that bfloat16 alone makes, shown in the histogram.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.1))
    edges = np.concatenate([[_FLOOR / 3], np.logspace(np.log10(_FLOOR), np.log10(_TOP), 19)])
    grid = np.logspace(np.log10(_FLOOR), np.log10(_TOP), 200)

    def histogram(frame: pd.DataFrame, **looks) -> None:
        js = np.maximum(frame["js"].to_numpy(), _FLOOR / 2)
        counts, _ = np.histogram(js, edges)
        left.stairs(100 * counts / len(js), edges, **looks)

    names = _names(study, shifts)
    if floor is not None:
        histogram(floor, color=_NOISE, fill=True, alpha=0.5)
        names |= {"bfloat16 alone": _NOISE}
    for model, frame in shifts.items():
        hue = color(study, model)
        histogram(frame, color=hue, linewidth=1.6)
        for column, support in SUPPORTS.items():
            ordered = np.sort(frame[column].to_numpy())
            above = 1 - np.searchsorted(ordered, grid, side="right") / len(ordered)
            style = "-" if support == "nucleus" else ":"
            right.plot(grid, 100 * above, style, color=hue)
    left.set(xscale="log", yscale="log", xlabel="JS (nats; leftmost bar: below 1e-6)")
    left.set_ylabel("positions (%)")
    left.set_title("Histogram, truncated distributions")
    right.set(xscale="log", xlabel="x (nats)", ylabel="positions with JS > x (%)", ylim=(0, None))
    right.set_title("Survival: truncated —, full ····")
    name_lines(left, names, at=(0.85, 0.97))
    return fig


def _names(study, models) -> dict[str, str]:
    return {study.models[m].label: color(study, m) for m in models}


def _line(ax, study, part: pd.DataFrame, model: str, x) -> None:
    hue = color(study, model)
    ax.plot(x, part["mean"], "o-", color=hue, markersize=3.5)
    ax.fill_between(x, part["mean_low"], part["mean_high"], color=hue, alpha=0.18, linewidth=0)


def plot_positions(study, profiles: dict[str, pd.DataFrame]) -> Figure:
    """Mean JS by relative position, by absolute position and around the answer.

    `profiles` maps "relative", "absolute" and "answer" to what `position_profile` returns.
    """
    titles = {
        "relative": ("By tenth of the response", "position / length (%)"),
        "absolute": ("By absolute position", "token (first of a bin)"),
        "answer": ("Around the answer", "tokens after it opens"),
    }
    fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.9))
    for ax, (by, (title, xlabel)) in zip(axes, titles.items()):
        table = profiles[by]
        ticks = table.drop_duplicates("x").sort_values("x")
        for model in dict.fromkeys(table["model"]):
            part = table[table["model"] == model]
            x = 10 * part["x"] + 5 if by == "relative" else part["x"]
            _line(ax, study, part, model, x)
        if by == "relative":
            ax.set(ylabel="mean JS (nats)", xlim=(0, 100), xticks=[0, 50, 100])
            name_lines(ax, _names(study, dict.fromkeys(table["model"])))
        if by == "absolute" and len(ticks):
            every = ticks.iloc[:: max(1, len(ticks) // 4)]
            ax.set_xticks(every["x"], [name.split("–")[0] for name in every["label"]])
        if by == "answer":
            ax.axvline(0, color="#999999", linewidth=0.8)
        if table.empty:
            ax.text(0.5, 0.5, "nothing to show", ha="center", transform=ax.transAxes)
        ax.set(title=title, xlabel=xlabel)
    for ax in axes:
        ax.set_ylim(bottom=0)
    return fig


def plot_entropy_bins(study, table: pd.DataFrame) -> Figure:
    """Entropies of base and tuned in bins of JS (boxes: 25 to 75%, whiskers: 10 to 90%)."""
    models = list(dict.fromkeys(table["model"]))
    fig, axes = plt.subplots(
        1, len(models), figsize=(panels_width(len(models)), 3.1), sharey=True, squeeze=False
    )
    for ax, model in zip(axes[0], models):
        part = table[table["model"] == model]
        bins = part.drop_duplicates("bin").sort_values("bin")
        place = {b: i for i, b in enumerate(bins["bin"])}
        for side, shift in (("base", -0.19), ("tuned", 0.19)):
            hue = color(study, study.base if side == "base" else model)
            rows = part[part["side"] == side]
            stats = [
                {"whislo": r.p10, "q1": r.p25, "med": r.p50, "q3": r.p75, "whishi": r.p90}
                for r in rows.itertuples()
            ]
            ax.bxp(
                stats,
                positions=[place[b] + shift for b in rows["bin"]],
                widths=0.3,
                showfliers=False,
                patch_artist=True,
                manage_ticks=False,
                boxprops={"facecolor": hue, "alpha": 0.35, "edgecolor": hue},
                medianprops={"color": hue, "linewidth": 2},
                whiskerprops={"color": hue},
                capprops={"color": hue},
            )
        name_lines(ax, _names(study, (study.base, model)), at=(0.03, 0.97))
        ax.axhline(LN2, color="#999999", linewidth=0.8, linestyle="--")
        names = [f"{n}\n{c:,}" for n, c in zip(bins["js_bin"], bins["positions"])]
        ax.set_xticks(range(len(names)), names, fontsize=8.5)
        ax.set_xlabel("JS (nats), number of positions below")
        ax.set_title(study.models[model].label)
    axes[0, 0].set_ylabel("entropy (nats; dashes: ln 2)")
    return fig


def plot_js_entropy(study, shifts: dict[str, pd.DataFrame]) -> Figure:
    """2-D histogram of base entropy and JS, one panel a model; colour is the number of positions."""
    models = list(shifts)
    fig, axes = plt.subplots(
        1, len(models), figsize=(panels_width(len(models)), 3.2), sharey=True, squeeze=False
    )
    tallest = max((f["entropy_base"].max() for f in shifts.values()), default=1.0)
    y_edges = np.linspace(0, max(float(tallest), 0.1), 41)
    x_edges = np.concatenate([[_FLOOR / 3], np.logspace(np.log10(_FLOOR), np.log10(_TOP), 40)])
    counts = {
        m: np.histogram2d(np.maximum(f["js"], _FLOOR / 2), f["entropy_base"], [x_edges, y_edges])[0]
        for m, f in shifts.items()
    }
    norm = LogNorm(1, max([2, *(c.max() for c in counts.values())]))
    mesh = None
    for ax, model in zip(axes[0], models):
        shown = np.ma.masked_equal(counts[model].T, 0)
        mesh = ax.pcolormesh(x_edges, y_edges, shown, norm=norm, cmap="cividis", rasterized=True)
        ax.axvline(study.thresholds.high_js, color="#D55E00", linewidth=1)
        ax.set(xscale="log", xlabel="JS (nats; leftmost: below 1e-6)")
        ax.set_title(study.models[model].label)
    axes[0, 0].set_ylabel("entropy of base (nats)")
    if mesh is not None:
        fig.colorbar(mesh, ax=axes[0].tolist(), label="positions", aspect=30)
    return fig


def plot_identity(study, table: pd.DataFrame) -> Figure:
    """For the tokens most frequent at high JS: how their occurrences split by JS."""
    models = list(dict.fromkeys(table["model"]))
    fig, axes = plt.subplots(1, max(len(models), 1), figsize=(7.2, 3.4), squeeze=False)
    parts = (("near_zero", "#D9D9D9"), ("between", "#8FB8D8"), ("high", "#D55E00"))
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    names = {"near_zero": f"JS ≤ {low:g}", "between": "between", "high": f"JS > {high:g}"}
    for ax, model in zip(axes[0], models):
        rows = table[table["model"] == model].iloc[::-1]
        left = np.zeros(len(rows))
        for column, hue in parts:
            ax.barh(range(len(rows)), 100 * rows[column], left=left, color=hue, label=names[column])
            left = left + 100 * rows[column].to_numpy()
        text = [
            f"{t.strip() or repr(t)}  ({n:,})" for t, n in zip(rows["token"], rows["occurrences"])
        ]
        ax.set_yticks(range(len(rows)), [t.replace("$", r"\$") for t in text], fontsize=9)
        ax.set(xlim=(0, 100), xlabel="occurrences (%)", title=study.models[model].label)
        ax.grid(False)
    if models:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3)
    else:
        axes[0, 0].text(0.5, 0.5, f"no position with JS > {high:g}", ha="center")
        axes[0, 0].set_xlabel("occurrences (%)")
    return fig


def plot_controls(study, table: pd.DataFrame) -> Figure:
    """Share of high-JS positions of RL models and SFT controls, per benchmark, with intervals."""
    column = f"share_gt_{study.thresholds.high_js:g}"
    table = table[table["support"] == "nucleus"]
    models = [m for m in of_kind(study, "rl", "weighted", "sft") if (table["model"] == m).any()]
    benchmarks = list(dict.fromkeys(table["benchmark"]))
    fig, ax = plt.subplots(figsize=(5.6, 1.1 + 0.55 * len(models)))
    for i, model in enumerate(models):
        for j, benchmark in enumerate(benchmarks):
            row = table[(table["model"] == model) & (table["benchmark"] == benchmark)].iloc[0]
            y = -i - 0.14 * (j - (len(benchmarks) - 1) / 2)
            ends = [
                [100 * (row[column] - row[f"{column}_low"])],
                [100 * (row[f"{column}_high"] - row[column])],
            ]
            pooled = j == len(benchmarks) - 1 and len(benchmarks) > 1
            ax.errorbar(
                [100 * row[column]],
                [y],
                xerr=np.maximum(np.nan_to_num(ends), 0),
                fmt="D" if pooled else "o",
                color=color(study, model),
                markersize=5,
                markerfacecolor=color(study, model) if pooled else "white",
            )
    ax.set_yticks([-i for i in range(len(models))], [study.models[m].label for m in models])
    for tick, model in zip(ax.get_yticklabels(), models):
        tick.set_color(color(study, model))
    ax.set(
        xlim=(0, None),
        ylim=(0.5 - len(models), 0.5),
        xlabel=f"positions with JS > {study.thresholds.high_js:g} (%)\n"
        f"top to bottom: {', '.join(benchmarks)}",
    )
    ax.grid(axis="y", visible=False)
    return fig
