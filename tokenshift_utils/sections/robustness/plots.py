"""Figures of section 5. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn.objects as so
from matplotlib.figure import Figure

from tokenshift_utils.report.style import (
    JS_FLOOR,
    add_points,
    as_interval,
    color,
    draw_facets,
    histograms,
    js_edges,
    log_scale,
    mark,
)
from tokenshift_utils.sections.common import pooled

_SUPPORTS = {"nucleus": "truncated distributions", "full": "full vocabulary"}


def plot_support(study, shifts: dict[str, pd.DataFrame]) -> Figure:
    """2-D histogram of truncated against full JS, one panel a model."""
    edges = js_edges()
    points = {
        m: tuple(f[c].clip(JS_FLOOR / 2) for c in ("js_full", "js")) for m, f in shifts.items()
    }
    fig, axes = histograms(study, points, (edges, edges), height=3.3)
    cut = study.thresholds.high_js
    for ax in axes:
        ax.axvline(cut, color="#D55E00", linewidth=1)
        ax.axhline(cut, color="#D55E00", linewidth=1)
        ax.plot([JS_FLOOR, np.log(2)], [JS_FLOOR, np.log(2)], color="#999999", linewidth=0.8)
        log_scale(ax, "x", "y")
        ax.set_xlabel("JS, full vocabulary (nats)")
    axes[0].set_ylabel("JS, truncated (nats; lowest: < 1e-6)")
    return fig


def plot_measured(study, by_source: pd.DataFrame, sampler: pd.DataFrame, model: str) -> Figure:
    """Shares near zero and shares high, a line of points a trajectory and a line a sampler."""
    sources = pooled(by_source).assign(
        name=lambda rows: "on " + rows["trajectories"] + " responses"
    )
    names = [f"top-p {p:g}, T {t:g}" for p, t in zip(sampler["top_p"], sampler["temperature"])]
    rows = pd.concat([sources, sampler.assign(name=names)], ignore_index=True)
    rows["place"] = -np.arange(len(rows)) - 0.6 * (rows.index >= len(sources))
    hue, low, high = color(study, model), study.thresholds.near_zero[-1], study.thresholds.high_js
    titles = {"near_zero": f"JS ≤ {low:g}", "high": f"JS > {high:g}"}
    parts = [
        as_interval(rows, f"{support}_{what}").assign(
            what=what, support=support, y=rows["place"] + (0.12 if support == "nucleus" else -0.12)
        )
        for what in titles
        for support in _SUPPORTS
    ]
    look = dict.fromkeys(("color", "fillcolor", "marker"), "support")
    plot = so.Plot(pd.concat(parts, ignore_index=True), y="y", **look)
    faces, marks = {"nucleus": hue, "full": "white"}, {"nucleus": "o", "full": "s"}
    plot = plot.scale(color=dict.fromkeys(_SUPPORTS, hue), fillcolor=faces, marker=marks)
    plot = add_points(plot.facet("what", order=[*titles]).share(x=False), linewidth=1.8)
    fig, axes = draw_facets(plot, (7.2, 1.25 + 0.36 * len(rows)), ("", ""))
    for ax, title in zip(axes, titles.values()):
        ax.set(xlabel=f"positions with {title} (%)")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(rows["place"], rows["name"])
    handles = [mark(name, marks[of], hue, faces[of]) for of, name in _SUPPORTS.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig
