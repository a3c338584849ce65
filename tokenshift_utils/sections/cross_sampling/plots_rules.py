"""Figures of section 2 on one benchmark: other rules, other tokens, single tokens."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.report.style import color, name_lines
from tokenshift_utils.sections.common import ALL
from tokenshift_utils.sections.cross_sampling.plots import TITLES, curve, errors, level, share_axis
from tokenshift_utils.sections.cross_sampling.rules import RULES
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, REVERSE

__all__ = ["plot_effects", "plot_interventions", "plot_rules"]


def plot_rules(study, table: pd.DataFrame, direction: str) -> Figure:
    """A panel a rule: accuracy against effective share, with the JS rule's curve faint behind it."""
    here = table[(table["direction"] == direction) & (table["threshold"] >= 0)]
    rules = [r for r in RULES.values() if (here["rule"] == r).any() and r != RULES["js"]]
    columns = min(4, max(len(rules), 2))
    rows = max(-(-len(rules) // columns), 1)
    fig, axes = plt.subplots(
        rows, columns, figsize=(7.6, 0.9 + 2.0 * rows), sharey=True, squeeze=False
    )
    for ax in axes.flat[len(rules) :]:
        ax.set_visible(False)
    for ax, rule in zip(axes.flat, rules):
        share_axis(ax, here["effective_share"])
        for model in dict.fromkeys(here["model"]):
            mine, hue = here[here["model"] == model], color(study, model)
            base, own = ("before", "goal") if direction == FORWARD else ("goal", "before")
            level(ax, mine.iloc[0], base, color(study, study.base))
            level(ax, mine.iloc[0], own, hue)
            js = mine[mine["rule"] == RULES["js"]].sort_values("effective_share")
            x = [0, *(100 * js["effective_share"])]
            ax.plot(x, [100 * mine["before"].iloc[0], *(100 * js["after"])], color=hue, alpha=0.35)
            if (mine["rule"] == rule).any():
                curve(ax, mine[mine["rule"] == rule], hue, linewidth=1.2, markersize=3.5)
        ax.set(ylim=(-2, 102))
        ax.set_title(rule, fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (%)")
    _one_label(fig, axes, len(rules))
    if rules:
        models = (study.base, *dict.fromkeys(here["model"]))
        names = {study.models[m].label: color(study, m) for m in models}
        name_lines(axes[0, 0], names, at=(0.03 if direction == FORWARD else 0.97, 0.76))
    fig.suptitle(f"{TITLES[direction]}; faint lines: the JS rule", fontsize=10.5, x=0.01, ha="left")
    return fig


def _one_label(fig: Figure, axes: np.ndarray, used: int) -> None:
    """One horizontal label for all panels: under narrow ones it would not fit."""
    for ax in axes.flat[:used]:
        ax.set_xlabel("")
    fig.supxlabel("effectively replaced (%)", fontsize=10)


# insert -> line, marker, label
_INSERTS = {
    "intervention": ("-", "o", "the other model's tokens"),
    "own": ("--", "s", "null: own tokens, other luck"),
}
_GAINS = ((":", "^"), ("-.", "v"), ((0, (3, 1, 1, 1, 1, 1)), "D"))


def plot_interventions(study, table: pd.DataFrame) -> Figure:
    """Accuracy against effective share by whose tokens are put in; a column a pair, one for SFT."""
    table = table[table["threshold"] >= 0]
    models = list(dict.fromkeys(table["model"]))
    controls = [m for m in models if m not in study.cross_sampling.pairs]
    panels = [[m] for m in models if m not in controls] + ([controls] if controls else [])
    fig, axes = plt.subplots(
        2, len(panels), figsize=(max(2.5 * len(panels), 5), 5.6), sharey=True, squeeze=False
    )
    gains = sorted(table["gain"].dropna().unique())
    for i, direction in enumerate((FORWARD, REVERSE)):
        for ax, some in zip(axes[i], panels):
            here = table[(table["direction"] == direction) & table["model"].isin(some)]
            share_axis(ax, here["effective_share"], "effectively replaced (%)" if i else "")
            for model in dict.fromkeys(here["model"]):
                _tokens_of(study, ax, here[here["model"] == model], model, direction, gains)
            title = study.models[some[0]].label if some != controls else "SFT controls"
            ax.set(ylim=(-2, 102), title=title if i == 0 else "")
        axes[i, 0].set_ylabel(f"{direction}\naccuracy (%)")
    if controls:
        names = {study.models[m].label: color(study, m) for m in controls}
        name_lines(axes[1, -1], names, at=(0.97, 0.97))
    _insert_legend(fig, gains, (table["insert"] == "own").any())
    return fig


def _tokens_of(study, ax, rows: pd.DataFrame, model: str, direction: str, gains: list) -> None:
    hue = color(study, model)
    base, own = ("before", "goal") if direction == FORWARD else ("goal", "before")
    level(ax, rows.iloc[0], base, color(study, study.base))
    level(ax, rows.iloc[0], own, hue)
    for insert, (line, marker, _) in _INSERTS.items():
        some = rows[rows["insert"] == insert]
        if len(some):
            curve(ax, some, hue, marker, line, markersize=4, linewidth=1.3)
    for k, gain in enumerate(gains):
        some = rows[rows["gain"] == gain]
        if len(some):
            line, marker = _GAINS[k % len(_GAINS)]
            curve(ax, some, hue, marker, line, markersize=4, linewidth=1.3, markerfacecolor="white")


def _insert_legend(fig: Figure, gains: list, null: bool) -> None:
    kinds = [v for insert, v in _INSERTS.items() if insert != "own" or null]
    kinds += [(*_GAINS[k % len(_GAINS)], f"extrapolated, g = {g:g}") for k, g in enumerate(gains)]
    handles = [
        plt.Line2D(
            [], [], linestyle=line, marker=marker, color="#333333", label=label, markersize=4.5,
            linewidth=1.3, markerfacecolor="white" if "g =" in label else "#333333",
        )
        for line, marker, label in kinds
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=2)


def plot_effects(study, table: pd.DataFrame) -> Figure:
    """Effect of one token (top) and share of equal tokens (bottom) by stratum of JS."""
    strata = table[table["js_stratum"] != ALL]
    names = list(dict.fromkeys(strata.sort_values("js", kind="stable")["js_stratum"]))
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 4.9), sharex=True, sharey="row")
    models = list(dict.fromkeys(strata["model"]))
    for j, direction in enumerate((FORWARD, REVERSE)):
        for k, model in enumerate(models):
            mine = strata[(strata["direction"] == direction) & (strata["model"] == model)]
            x = np.array([names.index(s) for s in mine["js_stratum"]]) + 0.16 * (
                k - (len(models) - 1) / 2
            )
            hue = color(study, model)
            look = {"color": hue, "fmt": "o", "markersize": 5, "linewidth": 1.4}
            axes[0, j].errorbar(x, 100 * mine["effect"], yerr=errors(mine, "effect"), **look)
            axes[1, j].errorbar(
                x, 100 * mine["equal_tokens"], yerr=errors(mine, "equal_tokens"), **look
            )
        axes[0, j].axhline(0, color="#888888", linewidth=1)
        axes[0, j].set_title(TITLES[direction])
        axes[1, j].set(ylim=(-4, 104), xlabel="JS at the position (nats)")
        axes[1, j].set_xticks(range(len(names)), [n.replace(" to ", "–\n") for n in names])
        axes[1, j].set_xlim(-0.5, max(len(names), 1) - 0.5)
    axes[0, 0].set_ylabel("change of success rate\nby one token (points)")
    axes[1, 0].set_ylabel("same token\nfrom both models (%)")
    hues = {study.models[m].label: color(study, m) for m in models}
    name_lines(axes[1, 0], hues, at=(0.03, 0.32))
    return fig
