"""Figures of section 5. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenshift_utils.report.style import color, errors, histograms, log_scale
from tokenshift_utils.sections.common import pooled

_FLOOR = 1e-6  # nats; smaller JS, zero included, is drawn there
_TOP = 0.6932  # nats; above ln 2 in single precision too
_SUPPORTS = (("nucleus", "o", "truncated distributions"), ("full", "s", "full vocabulary"))


def plot_support(study, shifts: dict[str, pd.DataFrame]) -> Figure:
    """2-D histogram of truncated against full JS, one panel a model."""
    edges = np.concatenate([[_FLOOR / 3], np.logspace(np.log10(_FLOOR), np.log10(_TOP), 40)])
    points = {
        m: tuple(np.maximum(f[c], _FLOOR / 2) for c in ("js_full", "js")) for m, f in shifts.items()
    }
    fig, axes = histograms(study, points, (edges, edges), height=3.3)
    cut = study.thresholds.high_js
    for ax in axes:
        ax.axvline(cut, color="#D55E00", linewidth=1)
        ax.axhline(cut, color="#D55E00", linewidth=1)
        ax.plot([_FLOOR, np.log(2)], [_FLOOR, np.log(2)], color="#999999", linewidth=0.8)
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
            name = f"{support}_{what}"
            ax.errorbar(
                100 * rows[name], y + (0.12 if inside else -0.12), xerr=errors(rows, name),
                fmt=marker, color=hue, markersize=5, markerfacecolor=hue if inside else "white",
                label=text,
            )  # fmt: skip
        ax.set(xlabel=f"positions with {title} (%)")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(y, rows["name"])
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig
