"""Figures of section 2. Each function draws one from a table of numbers."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from tokenshift_utils.report.style import color, dots, mark
from tokenshift_utils.sections.common import ALL, pooled, rows_with
from tokenshift_utils.sections.cross_sampling.rules import JS
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, REVERSE
from tokenshift_utils.sections.cross_sampling.single_token import ENOUGH

TITLES = {FORWARD: "Forward: RL's tokens into base", REVERSE: "Reverse: base's tokens into RL"}
DIRECTIONS = (FORWARD, REVERSE)
MARKS = {FORWARD: ">", REVERSE: "<"}
GREY = "#6E6E6E"


def _panels(columns: int, rows: int, height: float, **more) -> tuple[Figure, np.ndarray]:
    width = 7.2 if columns > 1 else 4.6
    return plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, **more)


def _each_model(table: pd.DataFrame, direction: str) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """(number, model, its rows of a direction) of every model in the table, in its order."""
    for k, model in enumerate(dict.fromkeys(table["model"]) if len(table) else ()):
        rows = rows_with(table, model=model, direction=direction)
        if len(rows):
            yield k, model, rows


def _name(ax, text: str, at: tuple[float, float], hue: str, **more) -> None:
    """A line's name beside it, at a point of the data."""
    more = {"xytext": (0, 0), "ha": "left", "va": "center"} | more
    ax.annotate(text, at, textcoords="offset points", color=hue, fontsize=9.5, **more)


# The curves -------------------------------------------------------------------------------------


def plot_curves(study, table: pd.DataFrame, oracle: pd.DataFrame) -> Figure:
    """Share of the accuracy gap against effective replacements, in those of full switching.

    A column a pair, a row a direction, all benchmarks together. Filled: the JS rule with its
    intervals; open and dashed: random positions; dotted: the diagonal; thin: the oracle.
    """
    rows = pooled(table).dropna(subset=["gap_share", "replaced"])
    models = list(dict.fromkeys(table["model"]))
    fig, axes = _panels(len(models), 2, 2.9, sharex=True, sharey=True)
    for (i, direction), (j, model) in ((a, b) for a in enumerate(DIRECTIONS)
                                       for b in enumerate(models)):  # fmt: skip
        ax, hue = axes[i, j], color(study, model)
        here = {"model": model, "direction": direction}
        js, random = (_from_nothing(rows_with(rows, **here, rule=r)) for r in ("js", "random"))
        best = rows_with(oracle, **here)
        ax.plot([0, 100], [0, 100], ":", color=GREY, linewidth=1)
        ax.axhline(95, color=GREY, linewidth=0.6)
        _name(ax, "95%", (108, 95), GREY, xytext=(0, -6), ha="right")
        ax.plot(100 * best["replaced"], 100 * best["gap_share"], color="black", linewidth=1)
        if len(random) > 1:
            full = js[js["threshold"] < 0]
            ends = pd.concat([random, full]).sort_values("replaced")
            look = {"marker": "s", "markersize": 4, "markerfacecolor": "white"}
            ax.plot(100 * ends["replaced"], 100 * ends["gap_share"], "--", color=GREY,
                    linewidth=1.2, markevery=slice(1, len(ends) - 1), **look)  # fmt: skip
        ax.fill_between(100 * js["replaced"], 100 * js["gap_share_low"], 100 * js["gap_share_high"],
                        color=hue, alpha=0.18, linewidth=0)  # fmt: skip
        sns.lineplot(x=100 * js["replaced"], y=100 * js["gap_share"], ax=ax, color=hue, marker="o",
                     markersize=4.5, markeredgewidth=0, errorbar=None, estimator=None)  # fmt: skip
        ax.set(xlim=(-3, 108), ylim=(-8, 112), title="" if i else study.models[model].label)
        ax.set_xlabel("replaced, % of full switching" if i else "")
        what = "gain recovered" if direction == FORWARD else "gain destroyed"
        ax.set_ylabel("" if j else f"{TITLES[direction]}\n{what} (%)", fontsize=9.5)
    _name(axes[0, 0], "oracle", _middle(oracle, models[:1], 0.5), "black", xytext=(6, -2))
    _name(axes[0, 0], "JS rule", (42, 84), color(study, models[0]) if models else GREY)
    _name(axes[0, 0], "random positions", (62, 22), GREY)
    _name(axes[0, 0], "diagonal", (30, 5), GREY)
    return fig


def _from_nothing(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows by what is replaced, after one where nothing is."""
    start = {c: 0.0 for c in rows.columns if c.startswith(("replaced", "gap_share", "threshold"))}
    return pd.concat([pd.DataFrame([start]), rows.sort_values("replaced")], ignore_index=True)


def _middle(oracle: pd.DataFrame, models, level: float) -> tuple[float, float]:
    mine = oracle[oracle["model"].isin(models) & (oracle["direction"] == FORWARD)]
    if mine.empty:
        return 10.0, 100.0
    return 100 * float(np.interp(level, mine["gap_share"], mine["replaced"])), 100 * level


def plot_matched(study, table: pd.DataFrame) -> Figure:
    """Lead of the JS rule over both kinds of random positions, by how much of full it replaces."""
    fig, axes = _panels(2, 1, 3.2, sharey=True)
    for ax, direction in zip(axes[0], DIRECTIONS):
        for k, model, here in _each_model(table, direction):
            here, hue = here.sort_values("replaced"), color(study, model)
            x, look = 100 * here["replaced"] + 0.6 * k, {"markersize": 4, "linewidth": 0.9}
            ax.plot(x, 100 * here["switched_lead"], ":", color=hue, linewidth=1.2)
            dots(ax, x, here, "effective_lead", hue, "os"[k % 2], "y", **look)
            if direction == REVERSE:
                _name(ax, study.models[model].label, (102, 116 - 12 * k), hue, ha="right")
        ax.axhline(0, color="#888888", linewidth=1)
        ax.set(title=TITLES[direction], xlabel="JS rule: replaced, % of full switching")
        ax.set_ylim(top=125)
    axes[0, 0].set_ylabel("lead over random positions\n(points of the gap)")
    if len(table):
        _name(axes[0, 0], "dotted: switched as often", (0, 116), GREY)
        _name(axes[0, 0], "points: as many replaced", (0, 104), GREY)
    return fig


# On one benchmark -------------------------------------------------------------------------------


def plot_rules(study, summary: pd.DataFrame) -> Figure:
    """A forest: the lead of the JS rule over every other rule, both directions."""
    rows = summary.dropna(subset=["js_lead"]) if len(summary) else summary
    names = list(dict.fromkeys(rows["rule"]))
    fig, axes = _panels(2, 1, 1.0 + 0.34 * max(len(names), 1), sharey=True, sharex=True)
    for ax, direction in zip(axes[0], DIRECTIONS):
        for k, model, here in _each_model(rows, direction):
            y = [-names.index(rule) - 0.2 * k for rule in here["rule"]]
            dots(ax, y, here, "js_lead", color(study, model), "os"[k % 2])
        ax.axvline(0, color="#888888", linewidth=1)
        ax.set(title=TITLES[direction], xlabel=f"lead of {JS} (points of the gap)")
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks([-i for i in range(len(names))], names)
    return fig


def plot_interventions(study, table: pd.DataFrame) -> Figure:
    """Accuracy against what is replaced, by whose tokens are put in; a column a pair, one for SFT.

    Points only: between two thresholds nothing was measured.
    """
    table = table[table["threshold"] >= 0]
    models = list(dict.fromkeys(table["model"]))
    controls = [m for m in models if m not in study.cross_sampling.pairs]
    panels = [[m] for m in models if m not in controls] + ([controls] if controls else [])
    fig, axes = _panels(max(len(panels), 2), 2, 2.7, sharey=True)
    for ax in axes[:, len(panels) :].flat:
        ax.set_visible(False)
    looks: dict[str, dict] = {}
    for i, direction in enumerate(DIRECTIONS):
        for j, some in enumerate(panels):
            ax = axes[i, j]
            here = table[(table["direction"] == direction) & table["model"].isin(some)]
            for model in dict.fromkeys(here["model"]):
                mine, hue = here[here["model"] == model], color(study, model)
                for insert, gain in mine[["insert", "gain"]].drop_duplicates().to_numpy():
                    part = mine[
                        (mine["insert"] == insert) & (mine["gain"].eq(gain) | pd.isna(gain))
                    ]
                    name, look = _insert_look(insert, gain)
                    looks[name] = look
                    face, x = hue if look["fill"] else "white", part["effective_per_response"]
                    small = {"markersize": 4.5, "markerfacecolor": face, "linewidth": 0.8}
                    dots(ax, x, part, "after", hue, look["marker"], "y", **small)
                ax.axhline(100 * mine["before"].iloc[0], color=GREY, linewidth=0.8, linestyle=":")
                ax.axhline(100 * mine["goal"].iloc[0], color=hue, linewidth=0.8, linestyle=":")
                if some == controls and i == 1:
                    x, most = (f["effective_per_response"].max() for f in (mine, here))
                    right, y = x > most / 2, 0.94 - 0.1 * controls.index(model)
                    _name(ax, study.models[model].label, (x, y), hue, ha="right" if right else "left",
                          xycoords=("data", "axes fraction"))  # fmt: skip
            ax.set(ylim=(-2, 102), title="" if i else _title(study, some, controls))
            ax.set_xlabel("replaced tokens a response" if i else "")
        axes[i, 0].set_ylabel(f"{direction}\naccuracy (%)")
    handles = [
        mark(name, look["marker"], face=None if look["fill"] else "white", markersize=5)
        for name, look in looks.items()
    ]
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


def _title(study, some: list[str], controls: list[str]) -> str:
    return "Controls" if some == controls else study.models[some[0]].label


def _insert_look(insert: str, gain: float) -> tuple[str, dict]:
    if insert == "own":
        return "own token, other luck (null)", {"marker": "s", "fill": False}
    if insert == "extrapolated":
        return f"extrapolated, g = {gain:g}", {"marker": "^v"[gain >= 1], "fill": False}
    return "the other model's token", {"marker": "o", "fill": True}


# Single tokens ----------------------------------------------------------------------------------


def plot_effects(study, table: pd.DataFrame) -> Figure:
    """Effect of a token that differs (top) and share of equal tokens (bottom) over JS, by stratum.

    Each mark has its number: of positions whose tokens differ (top), of all (bottom). Strata of
    fewer positions than a sentence may quote are open.
    """
    strata = table[table["js_stratum"] != ALL] if len(table) else table
    fig, axes = _panels(2, 2, 2.4, sharex=True, sharey="row")
    shown = (("effect_different", "different"), ("equal_tokens", "positions"))
    for j, direction in enumerate(DIRECTIONS):
        for _, model, mine in _each_model(strata, direction):
            hue = color(study, model)
            for i, (name, number) in enumerate(shown):
                for enough, part in mine.groupby(mine["positions"] >= ENOUGH):
                    fill = hue if enough else "white"
                    dots(axes[i, j], part["js"], part, name, hue, axis="y", markerfacecolor=fill)
                for at in mine.dropna(subset=[name]).itertuples():
                    top = np.nanmax([getattr(at, f"{name}_high"), getattr(at, name)])
                    _name(axes[i, j], f"{getattr(at, number)}", (at.js, 100 * top), GREY,
                          xytext=(0, 5), ha="center")  # fmt: skip
        axes[0, j].axhline(0, color="#888888", linewidth=1)
        axes[0, j].set_title(TITLES[direction])
        axes[0, j].margins(y=0.15)
        axes[1, j].set(ylim=(-4, 118), xlabel="JS at the position (nats)")
    axes[0, 0].set_ylabel("change of success where\ntokens differ (points)")
    axes[1, 0].set_ylabel("same token\nfrom both models (%)")
    return fig


def plot_critical(study, ranking: pd.DataFrame, models: pd.DataFrame) -> Figure:
    """Which measure ranks positions by effect (left); what foretells the effect (right)."""
    fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.6), width_ratios=(1, 1))
    for ax, table, value, name in (
        (axes[0], ranking, "spearman", "measure"),
        (axes[1], models, "explained", "known"),
    ):
        names = list(dict.fromkeys(table[name])) if len(table) else []
        for k, direction in enumerate(DIRECTIONS):
            for _, model, mine in _each_model(table, direction):
                y, hue = [-names.index(n) - 0.22 * k for n in mine[name]], color(study, model)
                face = hue if direction == FORWARD else "white"
                dots(ax, y, mine, value, hue, MARKS[direction], markerfacecolor=face)
        ax.axvline(0, color="#888888", linewidth=1)
        ax.set_yticks([-i for i in range(len(names))], names, fontsize=8.5)
        ax.grid(axis="y", visible=False)
    axes[0].set_xlabel("rank correlation (%)")
    axes[1].set_xlabel("variance foretold (%)")
    faces = {FORWARD: None, REVERSE: "white"}
    handles = [mark(d, MARKS[d], face=faces[d], markersize=5) for d in DIRECTIONS]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig
