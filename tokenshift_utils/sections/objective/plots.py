"""Figures of section 4. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import seaborn.objects as so
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tokenshift_utils.report.style import (
    COLORS,
    add_points,
    as_interval,
    color,
    draw_on,
    label_ends,
    log_scale,
    mark,
)
from tokenshift_utils.sections.objective.numbers import curves
from tokenshift_utils.sections.objective.records import Runs
from tokenshift_utils.training.runs import ROLES

_FACES = dict(zip(ROLES, ("black", "#888888", "white")))  # of the points, by role
_NO_RUN = "no run yet"
_CURVES = (  # column, title, scale, and whether differences to the baseline are taken
    ("accuracy", "mean@{samples} (%)", 100.0, False),
    ("accuracy", "mean@{samples} less {plain}'s (points)", 100.0, True),
    ("kl_base", "KL to base (millinats)", 1000.0, False),
    ("entropy", "entropy where trained (nats)", 1.0, False),
    ("length_mean", "length where trained (tokens)", 1.0, False),
    ("clip_fraction", "clipped tokens (per mille)", 1000.0, False),
)


def _color(runs: Runs, arm: str) -> str:
    weighting = runs.weighting(arm)
    if weighting is None:
        return COLORS["dapo"] if arm == runs.baseline else COLORS["simplerl"]
    return COLORS["dapo-high-kl" if weighting.alpha > 0 else "dapo-low-kl"]


def plot_weights(runs: Runs, weights: pd.DataFrame, met: pd.DataFrame) -> Figure:
    """The weight against k3; points show the k3 met in training.

    ``weights`` is ``weight_curves``; ``met`` is ``weights_table``: its percentiles of k3, averaged
    over all updates but the first of each rollout.
    """
    fig, ax = plt.subplots(figsize=(5.6, 3.3))
    arms = list(dict.fromkeys(weights["arm"]))
    hues = {runs.label(arm): _color(runs, arm) for arm in arms}
    lines = {runs.label(arm): "-" if arm in runs.confirmatory else ":" for arm in arms}
    rows = weights.assign(label=weights["arm"].map(runs.label), value=weights["weight"])
    plot = so.Plot(rows, x="kl", y="value", color="label", linestyle="label")
    draw_on(ax, plot.add(so.Line(), legend=False).scale(color=hues, linestyle=lines))
    points = []
    for _, own in (met[met["arm"].isin(runs.confirmatory)] if len(met) else met).iterrows():
        curve, label = weights[weights["arm"] == own["arm"]], runs.label(own["arm"])
        for share in (90, 99) if len(curve) else ():
            kl = 1e-6 * float(own[f"k3_p{share}_micronats"])
            points.append((label, kl, float(np.interp(kl, curve["kl"], curve["weight"]))))
            inwards = -12 if points[-1][2] >= 1 else 5  # away from the dotted line
            ax.annotate(f"{share}%", points[-1][1:], xytext=(5, inwards), fontsize=8.5,
                        textcoords="offset points", color=hues[label])  # fmt: skip
    points = pd.DataFrame(points, columns=["label", "kl", "weight"])
    points = points.astype({"kl": float, "weight": float})
    plot = so.Plot(points, x="kl", y="weight", color="label").scale(color=hues)
    draw_on(ax, plot.add(so.Dot(pointsize=5), legend=False))
    ax.axhline(1, color="#999999", linewidth=0.8)
    log_scale(ax, "x")
    ax.set(xlim=(1e-9, 1e-2))
    ax.margins(y=0.12)
    ax.set(xlabel="k3 of a token (nats)", ylabel="weight of its advantage")
    label_ends(ax, rows, "kl", "label", hues)
    return fig


def plot_tokens(table: pd.DataFrame, count: int = 14) -> Figure:
    """Mean weight by token, early and late, of the tokens with most of the weight beyond 1."""
    top = table.head(count).reset_index(drop=True)
    fig, ax = plt.subplots(figsize=(5.6, 0.6 + 0.25 * max(len(top), 4)))
    if len(top):
        hue, look = COLORS["dapo-high-kl"], {"pointsize": 6, "fillalpha": 1, "stroke": 1}
        look |= {"color": hue, "artist_kws": {"zorder": 2.1}}
        plot = so.Plot(top.assign(y=-top.index), y="y")
        between = {"xmin": "weight_early", "xmax": "weight_late", "orient": "y"}
        plot = plot.add(so.Range(color="#BBBBBB"), **between)
        plot = plot.add(so.Dots(fillcolor="white", **look), x="weight_early")
        draw_on(ax, plot.add(so.Dots(fillcolor=hue, **look), x="weight_late"))
        ax.set_yticks(-top.index, [f"'{token}'" for token in top["token"]])
        handles = [mark("early", "o", hue, "white"), mark("late", "o", hue)]
        ax.legend(
            handles=handles, loc="lower right", frameon=True, framealpha=0.9, edgecolor="none"
        )
    else:
        ax.text(0.5, 0.5, _NO_RUN, ha="center", transform=ax.transAxes)
    ax.set(xlabel="mean weight of the token's advantages")
    return fig


def plot_training(runs: Runs) -> Figure:
    """Training curves: each seed faint, the median of an arm's seeds in front.

    Differences are taken seed by seed, which leaves out what seeds of all arms have in common. What
    no run has is left out.
    """
    evaluate, arms = runs.training.evaluate, runs.shown
    panels = {
        curve: curves(runs, curve[0], against=runs.baseline if curve[-1] else None)
        for curve in _CURVES
        if len(arms) > 1 or not curve[-1]
    }
    panels = {curve: rows for curve, rows in panels.items() if len(rows)} or {_CURVES[0]: None}
    fig, axes = plt.subplots(
        *(-(-len(panels) // 2), 2),
        figsize=(7.6, 2.2 * -(-len(panels) // 2)),
        sharex=True,
        squeeze=False,
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    said = {"samples": evaluate.samples if evaluate else "k", "plain": runs.label(runs.baseline)}
    own = {arm: _color(runs, arm) for arm in arms if arm in {runs.baseline, *runs.confirmatory}}
    models = runs.study.models  # an arm that is a model of the study has its color everywhere
    own |= {arm: color(runs.study, arm) for arm in arms if arm not in own and arm in models}
    spare = ("#E69F00", "#009E73", "#D55E00", "#56B4E9")
    spare = iter([hue for hue in spare if hue not in own.values()])
    hues = {runs.label(arm): own.get(arm) or next(spare, "#555555") for arm in arms}
    look = {"x": "rollout", "y": "value", "hue": "label", "palette": hues, "hue_order": list(hues)}
    for ax, ((_, title, scale, less), rows) in zip(axes.flat, panels.items()):
        if rows is None:
            ax.text(0.5, 0.5, _NO_RUN, ha="center", transform=ax.transAxes)
        else:
            rows = rows.assign(value=scale * rows["value"].astype(float))
            sns.lineplot(rows, **look, units="seed", estimator=None, alpha=0.25, linewidth=0.6,
                         legend=False, ax=ax)  # fmt: skip
            sns.lineplot(rows, **look, estimator="median", errorbar=None, style="label",
                         style_order=list(hues), linewidth=2, legend=False, ax=ax)  # fmt: skip
        if less:
            ax.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        ax.set(ylabel="")
        ax.set_title(title.format(**said), fontsize=9.5)
        ax.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    dashes = ("-", "--", ":", "-.")  # in the order of seaborn's own
    handles = [
        plt.Line2D([], [], color=hue, linestyle=dashes[i % 4], linewidth=2,
                   label=f"{label} ({len(runs[arm])} seeds)")
        for i, ((label, hue), arm) in enumerate(zip(hues.items(), arms))
    ]  # fmt: skip
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


def plot_sweep(runs: Runs, table: pd.DataFrame) -> Figure:
    """Gain of the boosts by alpha: small points are seeds, lines their means."""
    fig, ax = plt.subplots(figsize=(5.6, 3.3))
    hues = {row["objective"]: _color(runs, row["arm"]) for _, row in table.iterrows()}
    rows = table.assign(strength=table["alpha"].abs(), value=100 * table["gain"])
    seeds = rows.assign(gains=rows["gains"].str.split()).explode("gains")
    seeds = seeds.assign(value=100 * seeds["gains"].astype(float))
    for shown, look in ((seeds, so.Dots(pointsize=4)), (rows, so.Line(marker="o", pointsize=6))):
        plot = so.Plot(shown.reset_index(drop=True), x="strength", y="value", color="objective")
        draw_on(ax, plot.add(look, legend=False).scale(color=hues))
    ax.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    log_scale(ax, "x")
    ax.set(xlabel="|alpha|", ylabel=f"gain in mean@{runs.samples} (points)")
    label_ends(ax, rows, "strength", "objective", hues)
    return fig


def plot_gains(runs: Runs, table: pd.DataFrame) -> Figure:
    """Paired gain of every arm with its interval over seeds, in points, all on one scale.

    The scale is linear within a point and logarithmic beyond, as some exploratory arms move the result
    ten times as far as the others. Boosts of another alpha are in ``plot_sweep``.
    """
    rows = table[table["paired_seeds"] > 0].iloc[::-1] if len(table) else table
    rows = rows[~rows["arm"].isin(runs.swept)] if len(rows) else rows
    fig, ax = plt.subplots(figsize=(7.0, 0.9 + 0.27 * max(len(rows), 4)))
    ax.axvline(0, color="#999999", linewidth=0.8)
    if len(rows):
        shown = as_interval(rows, "gain").assign(y=lambda shown: shown.index, color="black")
        plot = so.Plot(shown, y="y", color="color", fillcolor="role", marker="role")
        plot = plot.scale(color=["black"], fillcolor=_FACES, marker=dict.fromkeys(ROLES, "o"))
        draw_on(ax, add_points(plot, linewidth=1.3, pointsize=6))
    ax.set_yticks(range(len(rows)), [_gain_label(runs, row) for _, row in rows.iterrows()])
    ax.set_ylim(-0.7, max(len(rows), 1) - 0.3)
    ax.set_xscale("symlog", linthresh=1, linscale=0.6)
    ticks = (-30, -10, -3, -1, 0, 1, 3, 10, 30)
    ends = ax.get_xlim()
    ax.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    ax.set_xlim(min(-10, 1.15 * ends[0]), max(10, 1.15 * ends[1]))
    ax.xaxis.set_minor_locator(NullLocator())
    if not len(rows):
        ax.text(0.5, 0.5, _NO_RUN, ha="center", transform=ax.transAxes)
    for role in ROLES if len(rows) else ():
        places = np.flatnonzero(rows["role"] == role)
        if len(places):
            ax.text(1.02, places.mean(), role, va="center", transform=ax.get_yaxis_transform())
    against = runs.label(runs.baseline)
    ax.set_xlabel(f"gain in mean@{runs.samples} against {against}, points (seeds in brackets)")
    return fig


def _gain_label(runs: Runs, row: pd.Series) -> str:
    """Name and number of seeds, and what it is compared with where that isn't the baseline."""
    other = runs.against(row["arm"])
    against = "" if other == runs.baseline else f"; against {other.upper()}"
    return f"{row['objective']} ({row['paired_seeds']}{against})"
