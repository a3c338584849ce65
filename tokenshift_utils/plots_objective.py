"""Figures of section 4. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.analysis_objective import BASELINE, CONFIRMATORY, Runs, curves
from tokenshift_utils.style import COLORS, name_lines
from tokenshift_utils.training.recipes import ARMS, ROLES

__all__ = ["plot_gains", "plot_tokens", "plot_training", "plot_weights"]

_COLORS = {
    "dapo": COLORS["dapo"],
    "high-kl": COLORS["dapo-high-kl"],
    "low-kl": COLORS["sft-near"],
}
_ROLE_COLORS = dict(zip(ROLES, (COLORS["dapo"], COLORS["sft-far"], COLORS["base"])))
_CURVES = (
    ("accuracy", "mean@4 (%)", 100.0),
    ("length_mean", "response length (tokens)", 1.0),
    ("entropy", "entropy (nats)", 1.0),
    ("kl_base", "KL to base (nats)", 1.0),
    ("clip_fraction", "clipped tokens (per mille)", 1000.0),
    ("weight_mean", "mean weight", 1.0),
)


def _color(arm: str) -> str:
    return _COLORS[arm.removesuffix("-strong")]


def plot_weights(weights: pd.DataFrame, met: pd.DataFrame) -> Figure:
    """The weight against k3; points show the k3 met in training.

    ``weights`` is ``weight_curves``; ``met`` is ``weights_table``: its percentiles of k3, averaged
    over all updates but the first of each rollout.
    """
    fig, ax = plt.subplots(figsize=(5.6, 3.3))
    names = {}
    for arm, rows in weights.groupby("arm", sort=False):
        strong = arm not in CONFIRMATORY
        ax.plot(rows["kl"], rows["weight"], ":" if strong else "-", color=_color(arm))
        names[ARMS.arms[arm].label + (" (dotted)" if strong else "")] = _color(arm)
        own = met[met["arm"] == arm] if len(met) else met
        for share in (90, 99) if len(own) and not strong else ():
            kl = 1e-6 * float(own.iloc[0][f"k3_p{share}_micronats"])
            weight = float(np.interp(kl, rows["kl"], rows["weight"]))
            ax.plot([kl], [weight], "o", color=_color(arm), markersize=5)
            up = 5 if weight >= 1 else -12
            ax.annotate(f"{share}%", (kl, weight), xytext=(-4, up), textcoords="offset points",
                        ha="right", fontsize=8.5, color=_color(arm))  # fmt: skip
    ax.axhline(1, color="#999999", linewidth=0.8)
    ax.set(xscale="log", xlim=(1e-9, 1e-2))
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
        ax.plot(top["weight_early"], rows, "o", color=COLORS["dapo"])
        ax.plot(top["weight_late"], rows, "o", color=COLORS["simplerl"])
        ax.set_yticks(rows, [f"'{token}'" for token in top["token"]])
        name_lines(ax, {"early": COLORS["dapo"], "late": COLORS["simplerl"]}, at=(0.97, 0.25))
    else:
        ax.text(0.5, 0.5, "no run yet", ha="center", transform=ax.transAxes)
    ax.set(xlabel="mean weight of the token's advantages")
    return fig


def plot_training(runs: Runs) -> Figure:
    """Training curves of the confirmatory arms: mean over seeds, band from least to greatest."""
    fig, axes = plt.subplots(2, 3, figsize=(7.6, 4.6), sharex=True)
    names = {}
    for ax, (column, title, scale) in zip(axes.flat, _CURVES):
        for arm, rows in curves(runs, column).groupby("arm", sort=False):
            names[f"{ARMS.arms[arm].label} ({len(runs[arm])})"] = _color(arm)
            band = [scale * rows[end].astype(float) for end in ("low", "high")]
            ax.fill_between(rows["rollout"].astype(float), *band, color=_color(arm), alpha=0.15,
                            linewidth=0)  # fmt: skip
            ax.plot(rows["rollout"], scale * rows["mean"], color=_color(arm), linewidth=1.5,
                    marker="o" if column == "accuracy" else None, markersize=3.5)  # fmt: skip
        if not ax.lines:
            ax.text(0.5, 0.5, "no run yet", ha="center", transform=ax.transAxes)
        ax.set_title(title, fontsize=9.5)
        ax.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    for ax in axes[1]:
        ax.set_xlabel("rollout")
    name_lines(axes[0, 0], names, at=(0.97, 0.45))
    return fig


def plot_gains(table: pd.DataFrame) -> Figure:
    """Paired gain of every arm with its interval over seeds, in points; one colour a role."""
    rows = table[table["paired_seeds"] > 0].iloc[::-1] if len(table) else table
    fig, ax = plt.subplots(figsize=(6.6, 0.7 + 0.27 * max(len(rows), 4)))
    for y, (_, row) in enumerate(rows.iterrows()):
        hue = _ROLE_COLORS[row["role"]]
        if not np.isnan(row["gain_low"]):
            ax.hlines(y, 100 * row["gain_low"], 100 * row["gain_high"], color=hue)
        ax.plot([100 * row["gain"]], [y], "o", color=hue)
    labels = (
        [f"{o} ({n})" for o, n in zip(rows["objective"], rows["paired_seeds"])] if len(rows) else []
    )
    ax.set_yticks(range(len(rows)), labels)
    ax.axvline(0, color="#999999", linewidth=0.8)
    if not len(rows):
        ax.text(0.5, 0.5, "no run yet", ha="center", transform=ax.transAxes)
    present = [role for role in ROLES if len(rows) and (rows["role"] == role).any()]
    name_lines(ax, {role: _ROLE_COLORS[role] for role in present}, at=(0.99, 0.99))
    ax.set(xlabel=f"gain in mean@k against {ARMS.arms[BASELINE].label}, points (seeds in brackets)")
    return fig
