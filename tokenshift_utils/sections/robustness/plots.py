"""Figures of section 5. Each function draws one figure from numbers and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from tokenshift_utils.report.style import color, panels_width

__all__ = ["plot_sampling", "plot_sources", "plot_support"]

_FLOOR = 1e-6  # nats; smaller JS, zero included, is drawn there
_TOP = 0.6932  # nats; above ln 2 in single precision too
_SUPPORTS = (("nucleus", "o", "truncated distributions"), ("full", "s", "full vocabulary"))


def plot_support(study, shifts: dict[str, pd.DataFrame]) -> Figure:
    """2-D histogram of truncated against full JS, one panel a model."""
    models = list(shifts)
    fig, axes = plt.subplots(
        1, max(len(models), 1), figsize=(panels_width(len(models)), 3.3), sharey=True, squeeze=False
    )
    edges = np.concatenate([[_FLOOR / 3], np.logspace(np.log10(_FLOOR), np.log10(_TOP), 40)])
    counts = {
        m: np.histogram2d(
            *(np.maximum(f[c], _FLOOR / 2) for c in ("js_full", "js")), [edges, edges]
        )[0]
        for m, f in shifts.items()
    }
    norm = LogNorm(1, max([2, *(c.max() for c in counts.values())]))
    mesh = None
    for ax, model in zip(axes[0], models):
        shown = np.ma.masked_equal(counts[model].T, 0)
        mesh = ax.pcolormesh(edges, edges, shown, norm=norm, cmap="cividis", rasterized=True)
        cut = study.thresholds.high_js
        ax.axvline(cut, color="#D55E00", linewidth=1)
        ax.axhline(cut, color="#D55E00", linewidth=1)
        ax.plot([_FLOOR, np.log(2)], [_FLOOR, np.log(2)], color="#999999", linewidth=0.8)
        ax.set(xscale="log", yscale="log", title=study.models[model].label)
        ax.set_xlabel("JS, full vocabulary (nats)")
    axes[0, 0].set_ylabel("JS, truncated (nats; lowest: < 1e-6)")
    if mesh is not None:
        fig.colorbar(mesh, ax=axes[0].tolist(), label="positions", aspect=30)
    return fig


def _points(ax, rows: pd.DataFrame, what: str, hue: str) -> None:
    """One row of points with intervals per table row, both supports."""
    for support, marker, _ in _SUPPORTS:
        name = f"{support}_{what}"
        y = -np.arange(len(rows)) + (0.12 if support == "nucleus" else -0.12)
        ends = np.array([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]])
        ax.errorbar(
            100 * rows[name],
            y,
            xerr=100 * np.maximum(np.nan_to_num(ends.astype(float)), 0),
            fmt=marker,
            color=hue,
            markersize=5,
            markerfacecolor=hue if support == "nucleus" else "white",
        )


def _two_panels(study, rows: pd.DataFrame, names: list[str], hue: str) -> Figure:
    """Shares near zero and shares high, one line of points a row of the table."""
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 1.25 + 0.42 * len(rows)), sharey=True)
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    for ax, what, title in zip(axes, ("near_zero", "high"), (f"JS ≤ {low:g}", f"JS > {high:g}")):
        _points(ax, rows, what, hue)
        ax.set(xlabel=f"positions with {title} (%)")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(-np.arange(len(rows)), names)
    handles = [
        plt.Line2D([], [], linestyle="", marker=marker, color=hue, label=text, markersize=5,
                   markerfacecolor=hue if support == "nucleus" else "white")
        for support, marker, text in _SUPPORTS
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


def plot_sources(study, table: pd.DataFrame, model: str) -> Figure:
    """Shares by trajectories, pooled over benchmarks."""
    rows = table[table["benchmark"] == table["benchmark"].iloc[-1]]
    return _two_panels(study, rows, list(rows["trajectories"]), color(study, model))


def plot_sampling(study, table: pd.DataFrame) -> Figure:
    """Shares by sampler setting, on the benchmark of the robustness section."""
    names = [f"top-p {p:g}, T {t:g}" for p, t in zip(table["top_p"], table["temperature"])]
    return _two_panels(study, table, names, color(study, study.robustness.pair))
