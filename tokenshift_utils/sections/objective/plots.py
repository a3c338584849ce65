"""Figures of section 4. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.report.style import COLORS, log_scale, name_lines
from tokenshift_utils.sections.objective.numbers import curves
from tokenshift_utils.sections.objective.records import Runs
from tokenshift_utils.training.runs import ROLES

_MARKS = dict(zip(ROLES, ("black", "#888888", "white")))  # faces of the points, by role
_CURVES = (  # column, title, scale, and whether differences to the baseline are taken
    ("accuracy", "mean@{samples} (%)", 100.0, False),
    ("accuracy", "mean@{samples} less {plain}'s (points)", 100.0, True),
    ("length_mean", "response length (tokens)", 1.0, False),
    ("entropy", "entropy (nats)", 1.0, False),
    ("kl_base", "KL to base (millinats)", 1000.0, False),
    ("kl_base", "KL to base less {plain}'s (millinats)", 1000.0, True),
    ("clip_fraction", "clipped tokens (per mille)", 1000.0, False),
    ("weight_mean", "mean weight", 1.0, False),
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
    names = {}
    for arm, rows in weights.groupby("arm", sort=False):
        strong, hue = arm not in runs.confirmatory, _color(runs, arm)
        ax.plot(rows["kl"], rows["weight"], ":" if strong else "-", color=hue)
        names[runs.label(arm) + (" (dotted)" if strong else "")] = hue
        own = met[met["arm"] == arm] if len(met) else met
        for share in (90, 99) if len(own) and not strong else ():
            kl = 1e-6 * float(own.iloc[0][f"k3_p{share}_micronats"])
            weight = float(np.interp(kl, rows["kl"], rows["weight"]))
            ax.plot([kl], [weight], "o", color=hue, markersize=5)
            inwards = -12 if weight >= 1 else 5  # away from the dotted line
            ax.annotate(f"{share}%", (kl, weight), xytext=(5, inwards), textcoords="offset points",
                        fontsize=8.5, color=hue)  # fmt: skip
    ax.axhline(1, color="#999999", linewidth=0.8)
    log_scale(ax, "x")
    ax.set(xlim=(1e-9, 1e-2))
    ax.margins(y=0.12)
    ax.set(xlabel="k3 of a token (nats)", ylabel="weight of its advantage")
    name_lines(ax, names, at=(0.03, 0.97))
    return fig


def plot_tokens(table: pd.DataFrame, count: int = 14) -> Figure:
    """Mean weight by token, early and late, of the tokens with most of the weight beyond 1."""
    top = table.head(count).iloc[::-1] if len(table) else table
    fig, ax = plt.subplots(figsize=(5.6, 0.6 + 0.25 * max(len(top), 4)))
    if len(top):
        rows = np.arange(len(top))
        ax.hlines(rows, top["weight_early"], top["weight_late"], color="#BBBBBB")
        hue = COLORS["dapo-high-kl"]
        ax.plot(top["weight_early"], rows, "o", color=hue, markerfacecolor="white", label="early")
        ax.plot(top["weight_late"], rows, "o", color=hue, label="late")
        ax.set_yticks(rows, [f"'{token}'" for token in top["token"]])
        ax.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    else:
        ax.text(0.5, 0.5, "no run yet", ha="center", transform=ax.transAxes)
    ax.set(xlabel="mean weight of the token's advantages")
    return fig


def plot_training(runs: Runs) -> Figure:
    """Training curves of the confirmatory arms: mean over seeds, band from least to greatest.

    Differences are taken seed by seed, which leaves out what seeds of all arms have in common.
    """
    fig, axes = plt.subplots(4, 2, figsize=(7.6, 7.6), sharex=True)
    names, evaluate = {}, runs.training.evaluate
    said = {"samples": evaluate.samples if evaluate else "k", "plain": runs.label(runs.baseline)}
    for ax, (column, title, scale, less) in zip(axes.flat, _CURVES):
        against = runs.baseline if less else None
        for arm, rows in curves(runs, column, against=against).groupby("arm", sort=False):
            hue = _color(runs, arm)
            names[f"{runs.label(arm)} ({len(runs[arm])})"] = hue
            band = [scale * rows[end].astype(float) for end in ("low", "high")]
            ax.fill_between(rows["rollout"].astype(float), *band, color=hue, alpha=0.18,
                            linewidth=0)  # fmt: skip
            ax.plot(rows["rollout"], scale * rows["mean"], color=hue, linewidth=1.5,
                    marker="o" if column == "accuracy" else None, markersize=3.5)  # fmt: skip
        if not ax.lines:
            none = "none of these runs has it" if runs else "no run yet"
            ax.text(0.5, 0.5, none, ha="center", transform=ax.transAxes)
        ax.set_title(title.format(**said), fontsize=9.5)
        ax.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    for ax in axes[-1]:
        ax.set_xlabel("rollout")
    name_lines(axes[0, 0], names, at=(0.97, 0.5))
    return fig


def plot_gains(runs: Runs, table: pd.DataFrame) -> Figure:
    """Paired gain of every arm with its interval over seeds, in points; points differ by role.

    Exploratory arms have an axis of their own: some move the result ten times as far as the others.
    """
    rows = table[table["paired_seeds"] > 0] if len(table) else table
    there = set(rows["role"]) if len(rows) else set()
    groups = [roles for roles in (ROLES[:-1], ROLES[-1:]) if there & set(roles)]
    parts = [rows[rows["role"].isin(roles)].iloc[::-1] for roles in groups] or [rows]
    heights = [max(len(part), 1) for part in parts]
    fig, axes = plt.subplots(
        len(parts), 1, figsize=(7.0, 0.35 + 0.35 * len(parts) + 0.27 * max(sum(heights), 4)),
        height_ratios=heights, squeeze=False,
    )  # fmt: skip
    for ax, part in zip(axes[:, 0], parts):
        _draw_gains(ax, runs, part)
    against = runs.label(runs.baseline)
    axes[-1, 0].set_xlabel(
        f"gain in mean@{runs.samples} against {against}, points (seeds in brackets)"
    )
    return fig


def _draw_gains(ax, runs: Runs, rows: pd.DataFrame) -> None:
    ax.axvline(0, color="#999999", linewidth=0.8)
    for y, (_, row) in enumerate(rows.iterrows()):
        if not np.isnan(row["gain_low"]):
            ax.hlines(
                y, 100 * row["gain_low"], 100 * row["gain_high"], color="black", linewidth=1.3
            )
        ax.plot([100 * row["gain"]], [y], "o", color="black", markerfacecolor=_MARKS[row["role"]])
    ax.set_yticks(range(len(rows)), [_gain_label(runs, row) for _, row in rows.iterrows()])
    ax.set_ylim(-0.7, max(len(rows), 1) - 0.3)
    ax.locator_params(axis="x", nbins=6)
    if not len(rows):
        ax.text(0.5, 0.5, "no run yet", ha="center", transform=ax.transAxes)
    for role in ROLES if len(rows) else ():
        places = np.flatnonzero(rows["role"] == role)
        if len(places):
            ax.text(1.02, places.mean(), role, va="center", fontsize=9.5,
                    transform=ax.get_yaxis_transform())  # fmt: skip


def _gain_label(runs: Runs, row: pd.Series) -> str:
    """Name and number of seeds, and what it is compared with where that isn't the baseline."""
    other = runs.against(row["arm"])
    against = "" if other == runs.baseline else f"; against {other.upper()}"
    return f"{row['objective']} ({row['paired_seeds']}{against})"
