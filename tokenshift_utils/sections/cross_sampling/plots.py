"""Figures of section 2. Each function draws one from a table of numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn.objects as so
from matplotlib.figure import Figure

from tokenshift_utils.report.style import (
    add_lines,
    add_points,
    as_interval,
    color,
    draw_facets,
    mark,
    model_looks,
)
from tokenshift_utils.sections.common import ALL, pooled
from tokenshift_utils.sections.cross_sampling.rules import JS
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, REVERSE
from tokenshift_utils.sections.cross_sampling.single_token import ENOUGH

TITLES = {FORWARD: "Forward: RL's tokens into base", REVERSE: "Reverse: base's tokens into RL"}
DIRECTIONS = (FORWARD, REVERSE)
MARKS = {FORWARD: ">", REVERSE: "<"}
GREY, OPEN = "#6E6E6E", "white"
_BY_PAIR = dict.fromkeys(("color", "fillcolor", "marker"), "pair")


def _models(table: pd.DataFrame) -> list[str]:
    """The models of a table, in its order."""
    return list(dict.fromkeys(table["model"])) if len(table) else []


def _with_columns(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table, with its columns also where it has no rows."""
    needed = ["model", "pair", "direction", *columns]
    return table if len(table) else table.reindex(columns=table.columns.union(needed))


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
    models = _models(table)
    parts = [_with_columns(oracle, "gap_share_low", "gap_share_high").assign(line="oracle")]
    for key, here in rows.groupby(["model", "direction"], sort=False):
        where = dict(zip(("model", "direction"), key))
        js, ends = _rule_and_random(here)
        diagonal = pd.DataFrame({"replaced": [0.0, 1.0], "gap_share": [0.0, 1.0]})
        lines = {"diagonal": diagonal, "random": ends, key[0]: js}
        parts += [rows.assign(line=name, **where) for name, rows in lines.items()]
    hues = {model: color(study, model) for model in models}
    looks = {  # of diagonal, random positions, oracle and the JS rule, drawn in this order
        "color": {"diagonal": GREY, "random": GREY, "oracle": "black"} | hues,
        "linestyle": {"diagonal": ":", "random": "--", "oracle": "-"} | dict.fromkeys(models, "-"),
        "linewidth": {"diagonal": 1, "random": 1.2, "oracle": 1} | dict.fromkeys(models, 1.8),
        "marker": {"diagonal": "", "random": "s", "oracle": ""} | dict.fromkeys(models, "o"),
        "fillcolor": {"diagonal": GREY, "random": OPEN, "oracle": "black"} | hues,
    }
    rows = _points(parts, models)
    plot = so.Plot(rows, x="x", **dict.fromkeys(looks, "line")).scale(**looks)
    fig, axes = _draw_curves(study, add_lines(plot, so.Line(pointsize=4)), models)
    _name(axes[0], "oracle", _middle(oracle, models[:1], 0.5), "black", xytext=(6, -2))
    _name(axes[0], "JS rule", (42, 84), color(study, models[0]))
    _name(axes[0], "random positions", (62, 22), GREY)
    _name(axes[0], "diagonal", (30, 5), GREY)
    return fig


def plot_seeds(study, table: pd.DataFrame) -> Figure:
    """The same curves on one benchmark, of every training seed: a column a pair, a row a direction.

    Thick, with marks and intervals: the pair's own model; thin: those from other seeds. Dashed: random
    positions.
    """
    rows = pooled(table).dropna(subset=["gap_share", "replaced"])
    models = [model for model in _models(table) if "@" not in model]
    columns = ("line", "run", "replaced", "gap_share", "gap_share_low", "gap_share_high")
    parts = [_with_columns(pd.DataFrame(), *columns)]
    for (run, direction), here in rows.groupby(["model", "direction"], sort=False):
        js, random = _rule_and_random(here)
        model = run.partition("@")[0]
        for line, points in (("random", random), (model if run == model else "other", js)):
            parts.append(points.assign(line=line, run=run, model=model, direction=direction))
    rows = _points(parts, models)
    for line in ("random", "other"):
        rows[line] = rows["value"].where(rows["line"] == line)
    rows["value"] = rows["value"].where(rows["line"].isin(models))
    hues = {model: color(study, model) for model in models}
    plot = so.Plot(rows, x="x", color="model", group="run").scale(color=hues)
    dashed = so.Line(color=GREY, linestyle="--", linewidth=0.9)
    plot = plot.add(dashed, y="random", color=None, legend=False)
    plot = plot.add(so.Line(linewidth=0.9), y="other", legend=False)
    plot = add_lines(plot, so.Line(marker="o", pointsize=4, linewidth=1.8))
    fig, axes = _draw_curves(study, plot, models)
    _name(axes[0], "JS rule, a line a seed", (50, 18), color(study, models[0]))
    _name(axes[0], "random positions", (50, 4), GREY)
    return fig


def _rule_and_random(here: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points of the JS rule, and of random positions, which full switching ends; none of these without."""
    js, random = (_from_nothing(here[here["rule"] == rule]) for rule in ("js", "random"))
    return js, pd.concat([random, js[js["threshold"] < 0]]) if len(random) > 1 else random[:0]


def _points(parts: list[pd.DataFrame], models: list[str]) -> pd.DataFrame:
    """Points of curves by `line`, in percent; with intervals where the line is a model's own JS rule."""
    rows = as_interval(pd.concat(parts), "gap_share")
    rows["x"] = 100 * rows["replaced"].astype(float)
    rows.loc[~rows["line"].isin(models), ["low", "high"]] = np.nan
    return rows


def _draw_curves(study, plot: so.Plot, models: list[str]):
    """(figure, axes) of curves, a column a model, a row a direction."""
    plot = plot.facet("model", "direction", order={"col": models, "row": [*DIRECTIONS]})
    titles = [study.models[model].label for model in models]
    width = 7.2 if len(models) > 1 else 4.6
    fig, axes = draw_facets(plot, (width, 5.8), titles)
    forward, reverse = np.split(np.array(axes), 2)
    for ax in axes:
        ax.axhline(95, color=GREY, linewidth=0.6)
        _name(ax, "95%", (108, 95), GREY, xytext=(0, -6), ha="right")
        ax.set(xlim=(-3, 108), ylim=(-8, 112))
    for ax in reverse:
        ax.set_xlabel("replaced, % of full switching")
    for ax, direction, what in zip(
        (forward[0], reverse[0]), DIRECTIONS, ("recovered", "destroyed")
    ):
        ax.set_ylabel(f"{TITLES[direction]}\ngain {what} (%)", fontsize=9.5)
    return fig, axes


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
    models, rows = _models(table), _with_columns(table, "replaced", "switched_lead")
    places = {model: 0.6 * k for k, model in enumerate(models)}
    rows = as_interval(rows, "effective_lead").assign(
        x=lambda rows: 100 * rows["replaced"] + rows["model"].map(places),
        switched=lambda rows: 100 * rows["switched_lead"].astype(float),
    )
    looks = model_looks(study, models)
    plot = so.Plot(rows, x="x", **_BY_PAIR).scale(**looks)
    dotted = so.Line(linestyle=":", linewidth=1.2, marker="")
    plot = plot.facet("direction", order=[*DIRECTIONS]).add(dotted, y="switched", legend=False)
    plot = add_points(plot, "y", linewidth=0.9, pointsize=4)
    fig, axes = draw_facets(plot, (7.2, 3.2), TITLES.values())
    for ax in axes:
        ax.axhline(0, color="#888888", linewidth=1)
        ax.set(xlabel="JS rule: replaced, % of full switching")
        ax.set_ylim(top=125)
    for k, model in enumerate(models):
        hue = color(study, model)
        _name(axes[1], study.models[model].label, (102, 116 - 12 * k), hue, ha="right")
    axes[0].set_ylabel("lead over random positions\n(points of the gap)")
    if models:
        _name(axes[0], "dotted: switched as often", (0, 116), GREY)
        _name(axes[0], "points: as many replaced", (0, 104), GREY)
    return fig


# On one benchmark -------------------------------------------------------------------------------


def plot_rules(study, summary: pd.DataFrame) -> Figure:
    """A forest: the lead of the JS rule over every other rule, both directions."""
    rows = _with_columns(summary, "js_lead", "rule").dropna(subset=["js_lead"])
    models, names = _models(rows), list(dict.fromkeys(rows["rule"]))
    y = [-names.index(r) - 0.2 * models.index(m) for r, m in zip(rows["rule"], rows["model"])]
    looks = model_looks(study, models)
    plot = so.Plot(as_interval(rows.assign(y=y), "js_lead"), y="y", **_BY_PAIR)
    plot = add_points(plot.scale(**looks).facet("direction", order=[*DIRECTIONS]))
    fig, axes = draw_facets(plot, (7.2, 1.0 + 0.34 * max(len(names), 1)), TITLES.values())
    for ax in axes:
        ax.axvline(0, color="#888888", linewidth=1)
        ax.set(xlabel=f"lead of {JS} (points of the gap)")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks([-i for i in range(len(names))], names)
    return fig


def plot_interventions(study, table: pd.DataFrame) -> Figure:
    """Accuracy against what is replaced, by whose tokens are put in; a column a pair, one for SFT.

    Points only: between two thresholds nothing was measured.
    """
    table = table[table["threshold"] >= 0]
    models = _models(table)
    panels = {
        model: study.models[model].label if model in study.cross_sampling.pairs else "Controls"
        for model in models
    }
    marks = [_insert_look(*row) for row in zip(table["insert"], table["gain"])]
    rows = as_interval(table, "after").assign(
        panel=table["model"].map(panels).to_numpy(),
        name=[name for name, _ in marks],
        face=table["pair"].where(table["insert"] == "intervention", OPEN).to_numpy(),
    )
    looks = model_looks(study, models) | {"marker": dict(marks)}
    plot = so.Plot(rows, x="effective_per_response", color="pair", fillcolor="face", marker="name")
    controls = [model for model in models if panels[model] == "Controls"]
    columns = sorted(dict.fromkeys(panels.values()), key="Controls".__eq__)
    order = {"col": columns + [""] * (len(columns) < 2), "row": [*DIRECTIONS]}
    plot = plot.facet("panel", "direction", order=order).share(x=False).scale(**looks)
    plot = add_points(plot, "y", linewidth=0.8, pointsize=4.5)
    fig, axes = draw_facets(plot, (7.2, 5.4), columns)
    grid = np.array(axes).reshape(2, -1)
    for ax in grid[:, len(columns) :].flat:
        ax.set_visible(False)
    for (model, direction), mine in rows.groupby(["model", "direction"]):
        ax, hue = (
            grid[DIRECTIONS.index(direction), columns.index(panels[model])],
            color(study, model),
        )
        ax.axhline(100 * mine["before"].iloc[0], color=GREY, linewidth=0.8, linestyle=":")
        ax.axhline(100 * mine["goal"].iloc[0], color=hue, linewidth=0.8, linestyle=":")
        if model in controls and direction == REVERSE:
            here = rows[rows["model"].isin(controls) & (rows["direction"] == direction)]
            x, most = (f["effective_per_response"].max() for f in (mine, here))
            side, y = "right" if x > most / 2 else "left", 0.94 - 0.1 * controls.index(model)
            where = ("data", "axes fraction")
            _name(ax, study.models[model].label, (x, y), hue, ha=side, xycoords=where)
    for ax in axes:
        ax.set(ylim=(-2, 102))
    for ax in grid[1]:
        ax.set_xlabel("replaced tokens a response")
    for ax, direction in zip(grid[:, 0], DIRECTIONS):
        ax.set_ylabel(f"{direction}\naccuracy (%)")
    handles = [
        mark(name, marker, face=OPEN if name != _OTHERS else None, markersize=5)
        for name, marker in looks["marker"].items()
    ]
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


_OTHERS = "the other model's token"


def _insert_look(insert: str, gain: float) -> tuple[str, str]:
    """(name, mark) of what is put in."""
    if insert == "extrapolated":
        return f"extrapolated, g = {gain:g}", "^v"[gain >= 1]
    return ("own token, other luck (null)", "s") if insert == "own" else (_OTHERS, "o")


# Single tokens ----------------------------------------------------------------------------------


def plot_effects(study, table: pd.DataFrame) -> Figure:
    """Effect of a token that differs (top) and share of equal tokens (bottom) over JS, by stratum.

    Each mark has its number: of positions whose tokens differ (top), of all (bottom). Strata of
    fewer positions than a sentence may quote are open.
    """
    table = _with_columns(table, "js_stratum", "positions", "different", "js")
    strata, models = table[table["js_stratum"] != ALL], _models(table)
    shown = {"effect_different": "different", "equal_tokens": "positions"}
    parts = [
        as_interval(strata, name).assign(of=name, n=strata[n].array) for name, n in shown.items()
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows["face"] = rows["pair"].where(rows["positions"] >= ENOUGH, OPEN)
    looks, order = model_looks(study, models), {"col": [*DIRECTIONS], "row": [*shown]}
    plot = so.Plot(rows, x="js", color="pair", fillcolor="face", marker="pair").scale(**looks)
    plot = plot.facet("direction", "of", order=order).share(x=True, y="row")
    fig, axes = draw_facets(add_points(plot, "y"), (7.2, 4.8), TITLES.values())
    grid = np.array(axes).reshape(2, 2)
    for at in rows.dropna(subset="value").itertuples():
        ax = grid[[*shown].index(at.of), DIRECTIONS.index(at.direction)]
        top = np.nanmax([at.high, at.value])
        _name(ax, f"{at.n}", (at.js, top), GREY, xytext=(0, 5), ha="center")
    for above, below in grid.T:
        above.axhline(0, color="#888888", linewidth=1)
        above.margins(y=0.15)
        below.set(ylim=(-4, 118), xlabel="JS at the position (nats)")
    grid[0, 0].set_ylabel("change of success where\ntokens differ (points)")
    grid[1, 0].set_ylabel("same token\nfrom both models (%)")
    return fig


def plot_critical(study, ranking: pd.DataFrame, models: pd.DataFrame) -> Figure:
    """Which measure ranks positions by effect (left); what foretells the effect (right)."""
    shown = (("rank correlation (%)", ranking, "spearman", "measure"),
             ("variance foretold (%)", models, "explained", "known"))  # fmt: skip
    parts, names = [], {}
    for panel, table, value, name in shown:
        table = _with_columns(table, name)
        names[panel] = list(dict.fromkeys(table[name]))
        y = [-names[panel].index(n) - 0.22 * DIRECTIONS.index(d)
             for n, d in zip(table[name], table["direction"])]  # fmt: skip
        parts.append(as_interval(table.assign(y=y), value).assign(panel=panel))
    rows = pd.concat(parts, ignore_index=True)
    rows["face"] = rows["pair"].where(rows["direction"] == FORWARD, OPEN)
    looks = model_looks(study, _models(rows)) | {"marker": MARKS}
    plot = so.Plot(rows, y="y", color="pair", fillcolor="face", marker="direction").scale(**looks)
    plot = plot.facet("panel", order=[*names]).share(x=False, y=False)
    fig, axes = draw_facets(add_points(plot), (7.6, 3.6), ("", ""))
    for ax, (panel, some) in zip(axes, names.items()):
        ax.axvline(0, color="#888888", linewidth=1)
        ax.set_yticks([-i for i in range(len(some))], some, fontsize=8.5)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(panel)
    faces = {FORWARD: None, REVERSE: OPEN}
    handles = [mark(d, MARKS[d], face=faces[d], markersize=5) for d in DIRECTIONS]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig
