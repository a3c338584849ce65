"""Figures of section 1. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn.objects as so
from matplotlib.figure import Figure

from tokenshift_utils.records.tokens import tokenizer
from tokenshift_utils.report.heatmap import show_shifts
from tokenshift_utils.report.style import (
    JS_FLOOR,
    add_lines,
    add_points,
    as_interval,
    color,
    draw_facets,
    draw_on,
    histograms,
    js_edges,
    label_ends,
    log_scale,
    mark,
    model_looks,
    name_lines,
    panels_width,
)
from tokenshift_utils.sections.common import SUPPORTS
from tokenshift_utils.sections.divergence.numbers import (
    answer_place,
    js_bins,
    survival_table,
)

_NOISE = "#8C8C8C"  # what rounding makes
_ROUNDING = "bfloat16 alone"
_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)  # of boxes and their whiskers
_PARTS = {"near_zero": "#DADADA", "between": "#7FA8C9", "high": "#D55E00"}
_OF_CLASSES = {  # share of a class: mark, and colours of its edge and inside
    "near_zero_share": ("s", "#555555", _PARTS["near_zero"]),
    "high_share": ("o", _PARTS["high"], _PARTS["high"]),
    "share": ("|", "black", "black"),
}


def plot_js_distribution(
    study, shifts: dict[str, pd.DataFrame], floor: pd.DataFrame | None = None
) -> Figure:
    """Share of positions above each JS, with intervals, on both supports; axes are logarithmic.

    ``floor`` are shifts that bfloat16 alone makes.
    """
    grid = np.logspace(np.log10(JS_FLOOR), np.log10(0.69), 30)
    table, looks = survival_table(study, shifts, grid), model_looks(study, shifts)
    names = {model: study.models[model].label for model in shifts} | {"": _ROUNDING}
    if floor is not None:
        table = pd.concat([table, survival_table(study, {"": floor}, grid)])
        looks["color"][_ROUNDING], looks["linestyle"][_ROUNDING] = _NOISE, "-"
    rows = as_interval(table[table["share"] > 0], "share").assign(
        label=lambda rows: rows["model"].map(names)
    )
    plot = so.Plot(rows, x="js", color="label", linestyle="label")
    plot = add_lines(plot.facet("support", order=[*SUPPORTS]), so.Line())
    plot = plot.scale(color=looks["color"], linestyle=looks["linestyle"])
    fig, axes = draw_facets(plot, (7.6, 3.4), ("Nuclei, as sampled from", "Full vocabulary"))
    lowest = 100 / max(map(len, shifts.values()))
    for ax in axes:
        log_scale(ax, "x", "y")
        ax.axvline(study.thresholds.high_js, color="#999999", linewidth=0.8)
        ax.set(xlabel="x (nats)", xlim=(JS_FLOOR, 1), ylim=(lowest, 130))
    rows = rows[rows["support"] == "full"]
    rounding = rows["label"] == _ROUNDING
    if rounding.any():  # ends amid the others
        end = rows.loc[rounding, ["js", "value"]].iloc[-1]
        ax.annotate(_ROUNDING, end, xytext=(-5, 0), textcoords="offset points",
                    ha="right", va="top", color=_NOISE, fontsize=9.5)  # fmt: skip
    label_ends(ax, rows[~rounding], "js", "label", looks["color"])
    axes[0].set_ylabel("positions with JS > x (%)")
    return fig


def plot_positions(
    study, shifts: dict[str, pd.DataFrame], profiles: dict[str, pd.DataFrame]
) -> Figure:
    """Mean JS along the response, at its first tokens and around the answer's opening.

    `profiles` maps "relative", "start" and "answer" to what `position_profile` returns. Dotted: over
    the full vocabulary.
    """
    titles = {
        "relative": ("All of it", "position / length (%)"),
        "start": ("Its first tokens", "token"),
        "answer": ("Around the answer", "tokens after it opens"),
    }
    names = {model: study.models[model].label for model in shifts}
    rows = pd.concat([profiles[by].assign(by=by) for by in titles], ignore_index=True)
    rows = as_interval(rows, "mean", factor=1).assign(label=rows["model"].map(names))
    looks = model_looks(study, shifts)
    plot = so.Plot(rows, x="x", color="label", marker="label", linestyle="label")
    plot = add_lines(plot.facet("by", order=[*titles]), so.Line(pointsize=2.5))
    full = so.Line(marker="", linestyle=":", linewidth=1.2)
    plot = plot.add(full, y="full", legend=False).scale(**looks).share(x=False, y=False)
    fig, axes = draw_facets(plot, (7.6, 2.9), (title for title, _ in titles.values()))
    for ax, (by, (_, xlabel)) in zip(axes, titles.items()):
        for frame in shifts.values() if by != "start" else ():
            opens = 100 * answer_place(frame) if by == "relative" else 0
            if not np.isnan(opens):
                ax.axvline(opens, color="#999999", linewidth=0.8, zorder=0)
        if profiles[by].empty:
            ax.text(0.5, 0.5, "nothing to show", ha="center", transform=ax.transAxes)
        ax.set(xlabel=xlabel)
        ax.set_ylim(bottom=0)
    overall, start, _ = axes
    overall.set(ylabel="mean JS (nats)", xlim=(0, 100), xticks=[0, 50, 100])
    look = {"rotation": 90, "ha": "right", "color": "#666666"}
    overall.text(0.9, 0.55, "answer opens", transform=overall.transAxes, **look)
    name_lines(start, looks["color"])
    return fig


def plot_entropy_bins(study, shifts: dict[str, pd.DataFrame]) -> Figure:
    """Entropies of base (open) and tuned in bins of JS and at all positions (box: 25 to 75%,
    whiskers: 10 to 90%)."""
    count = max(len(shifts), 1)
    fig, axes = plt.subplots(
        1, count, figsize=(panels_width(count), 3.1), sharey=True, squeeze=False
    )
    for ax, (model, frame) in zip(axes[0], shifts.items()):
        bins, names = js_bins(frame["js"]), {study.base: "entropy_base", model: "entropy_tuned"}
        masks = {"all": np.ones(len(frame), dtype=bool)}
        masks |= {b: bins == b for b in bins.categories if (bins == b).any()}
        hues = {
            study.models[name].label + " (open)" * (name == study.base): color(study, name)
            for name in names
        }
        for (name, column), shift in zip(names.items(), (-0.19, 0.19)):
            hue, is_base = color(study, name), name == study.base
            levels = [np.quantile(frame[column][mask], _LEVELS) for mask in masks.values()]
            ax.bxp(  # sns.boxplot would end whiskers at the last position inside of 10 to 90%
                [dict(zip(("whislo", "q1", "med", "q3", "whishi"), some)) for some in levels],
                positions=np.arange(len(masks)) + shift, widths=0.34, showfliers=False,
                patch_artist=True, manage_ticks=False,
                boxprops={"facecolor": "white" if is_base else hue, "edgecolor": hue},
                medianprops={"color": hue if is_base else "white", "linewidth": 1.6},
                whiskerprops={"color": hue}, capprops={"color": hue},
            )  # fmt: skip
        ax.set_xticks(range(len(masks)), masks)
        ax.axhline(np.log(2), color="#999999", linewidth=0.8, linestyle="--")
        ax.axvline(0.5, color="#999999", linewidth=0.8)
        ax.tick_params("x", rotation=30)
        ax.set(xlabel="positions, by JS (nats)")
        name_lines(ax, hues, at=(0.2, 0.99))
    axes[0, 0].set_ylabel("entropy (nats; dashes: ln 2)")
    axes[0, 0].set_ylim(top=1.2 * axes[0, 0].get_ylim()[1])  # room for the names
    return fig


def plot_js_entropy(study, shifts: dict[str, pd.DataFrame]) -> Figure:
    """2-D histogram of base entropy and JS, one panel a model; colour is the number of positions."""
    tallest = max((f["entropy_base"].max() for f in shifts.values()), default=1.0)
    y_edges = np.linspace(0, max(float(tallest), 0.1), 41)
    points = {m: (f["js"].clip(JS_FLOOR / 2), f["entropy_base"]) for m, f in shifts.items()}
    fig, axes = histograms(study, points, (js_edges(), y_edges), height=3.5)
    for ax in axes:
        ax.axvline(study.thresholds.high_js, color="#D55E00", linewidth=1)
        log_scale(ax, "x")
        ax.set(xlabel="JS (nats; leftmost: below 1e-6)")
    axes[0].set_ylabel("entropy of base (nats)")
    return fig


def plot_identity(study, table: pd.DataFrame, classes: pd.DataFrame) -> Figure:
    """Above: how the occurrences of the tokens most frequent at high JS split by JS. Below: the share
    of each class of tokens near zero, at all and at high-JS positions."""
    models = list(dict.fromkeys(classes["model"])) or [""]
    number = classes["token_class"].nunique()
    fig, axes = plt.subplots(
        2, len(models), figsize=(7.4, 4.1 + 0.33 * number), squeeze=False,
        height_ratios=[3.2, 0.9 + 0.33 * number],
    )  # fmt: skip
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    names = {"near_zero": f"JS ≤ {low:g}", "between": "between", "high": f"JS > {high:g}"}
    edges, faces = ({n: look[i] for n, look in _OF_CLASSES.items()} for i in (1, 2))
    marks = {name: look[0] for name, look in _OF_CLASSES.items()}
    for (above, below), model in zip(axes.T, models):
        rows = table[table["model"] == model].reset_index(drop=True)
        parts = rows.assign(row=rows.index.astype(str)).melt("row", [*_PARTS], "part", "share")
        parts["share"] = 100 * parts["share"].astype(float)
        bars = so.Bar(width=0.8, alpha=1, edgecolor="white", edgewidth=0.5)
        plot = so.Plot(parts, x="share", y="row", color="part").add(bars, so.Stack(), legend=False)
        if rows.empty:
            above.text(50, 0, f"no position with JS > {high:g}", ha="center")
        else:
            draw_on(above, plot.scale(color=_PARTS))
        text = [
            f"{t.strip() or repr(t)}  ({n:,})" for t, n in zip(rows["token"], rows["occurrences"])
        ]
        above.set_yticks(rows.index, text, fontsize=9)
        above.set(xlim=(0, 100), xlabel="of its occurrences (%)")
        above.set_title(study.models[model].label if model else "")
        own = classes[classes["model"] == model]
        shares = [as_interval(own, name).assign(of=name) for name in _OF_CLASSES]
        shares = pd.concat(shares, ignore_index=True)
        look = {"color": "of", "fillcolor": "of", "marker": "of"}
        plot = add_points(so.Plot(shares, y="token_class", **look), linewidth=1, pointsize=6)
        draw_on(below, plot.scale(color=edges, fillcolor=faces, marker=marks))
        below.set(xlabel="of the positions (%)", xlim=(0, None))
        for ax in (above, below):
            ax.grid(axis="y", visible=False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=hue) for hue in _PARTS.values()]
    handles.append(mark("all positions", "|", "black", markersize=9))
    text = [*names.values(), "all positions"]
    fig.legend(handles, text, loc="outside lower center", ncols=4)
    return fig


def show_response(study, response: pd.DataFrame, title: str):
    """One response with its tokens coloured by JS, see ``report.heatmap.show_shifts``."""
    return show_shifts(response, tokenizer(study), title)
