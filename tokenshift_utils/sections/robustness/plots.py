"""Figures of section 5. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.report.style import (
    JS_FLOOR,
    color,
    dots,
    histograms,
    js_edges,
    log_scale,
)
from tokenshift_utils.sections.common import pooled

_SUPPORTS = (("nucleus", "o", "truncated distributions"), ("full", "s", "full vocabulary"))


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
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 1.25 + 0.36 * len(rows)), sharey=True)
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    y = -np.arange(len(rows)) - 0.6 * (rows.index >= len(sources))
    for ax, what, title in zip(axes, ("near_zero", "high"), (f"JS ≤ {low:g}", f"JS > {high:g}")):
        for support, marker, text in _SUPPORTS:
            inside, hue = support == "nucleus", color(study, model)
            at, face = y + (0.12 if inside else -0.12), hue if inside else "white"
            look = {"linewidth": 1.8, "markerfacecolor": face, "label": text}
            dots(ax, at, rows, f"{support}_{what}", hue, marker, **look)
        ax.set(xlabel=f"positions with {title} (%)")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(y, rows["name"])
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig
