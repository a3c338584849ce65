"""How figures look: one colour a model everywhere, colour-blind safe, legible at half size."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm

from tokenshift_utils.files import write_bytes

# Okabe and Ito's palette. A study may set a model's colour itself.
COLORS = {
    "base": "#555555",
    "dapo": "#0072B2",
    "simplerl": "#D55E00",
    "dapo-high-kl": "#CC79A7",
    "dapo-low-kl": "#56B4E9",
    "sft-far": "#009E73",
    "sft-near": "#E69F00",
}
_SPARE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def use_style() -> None:
    """Set the style of all figures made after this call, whatever the user's settings are.

    Text is drawn as it is: names and tokens may hold dollar signs, which matplotlib would read as
    formulas; on logarithmic axes, see `log_scale`, its own numbers are.
    """
    matplotlib.rcdefaults()
    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "font.size": 10,
            "axes.labelsize": 10,
            "axes.titlesize": 10.5,
            "xtick.labelsize": 9.5,
            "ytick.labelsize": 9.5,
            "legend.fontsize": 9.5,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "lines.linewidth": 1.8,
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "pdf.fonttype": 42,
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.7,
            "axes.axisbelow": True,
            "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it
            "text.parse_math": False,
        },
    )


def color(study, model: str) -> str:
    """Colour of a model: the study's own, the usual one of that name, or by order one that is free."""
    name = model.split("@")[0]
    own = study.model(model).color
    if own or name in COLORS:
        return own or COLORS[name]
    others = [n for n, spec in study.models.items() if n not in COLORS and not spec.color]
    taken = {spec.color or COLORS.get(n) for n, spec in study.models.items()}
    order = sorted(_SPARE, key=lambda hue: hue in taken)  # those that no other model has first
    return order[others.index(name) % len(order)]


def line_look(study, model: str) -> dict[str, str]:
    """What tells a model's line apart without colours: its marker, and dashes for controls."""
    place = list(study.models).index(model.split("@")[0])
    return {
        "marker": "Dosv^P*X"[place % 8],
        "linestyle": "--" * study.model(model).is_control or "-",
    }


def labels(study, models) -> dict[str, str]:
    """{label: colour} of models, each once: see `name_lines`."""
    return {study.models[m].label: color(study, m) for m in dict.fromkeys(models)}


def interval_line(ax, x, rows: pd.DataFrame, name: str, hue: str, alpha=0.18, **look) -> None:
    """A line with points through the column `name`, and a band from its _low to its _high."""
    ax.plot(x, rows[name], color=hue, **{"marker": "o", "markersize": 3.5} | look)
    low, high = rows[f"{name}_low"], rows[f"{name}_high"]
    ax.fill_between(x, low, high, color=hue, alpha=alpha, linewidth=0)


def dots(ax, at, rows: pd.DataFrame, name: str, hue: str, marker="o", axis="x", **look) -> None:
    """Points with intervals of the column `name`, in percent along `axis`; `at` on the other one."""
    ends = [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
    spread = 100 * np.maximum(np.nan_to_num(np.array(ends, dtype=float)), 0)  # 0 for none
    look = {"linestyle": "none", "markersize": 5, "linewidth": 1.2} | look
    places = {axis: 100 * rows[name], "y" if axis == "x" else "x": at, f"{axis}err": spread}
    ax.errorbar(**places, marker=marker, color=hue, **look)


def mark(name: str, marker: str, hue="#333333", face: str | None = None, **look) -> plt.Line2D:
    """An entry of a legend: a mark, filled with `face` (None: as its edge)."""
    look |= {"marker": marker, "color": hue, "markerfacecolor": face or hue}
    return plt.Line2D([], [], linestyle="", label=name, **look)


JS_FLOOR = 1e-6  # nats; smaller JS, zero included, is drawn there


def js_edges(bins: int = 40) -> np.ndarray:
    """Edges of bins of JS, evenly spaced in logarithms, with one more for what is below JS_FLOOR."""
    top = 0.6932  # nats; above ln 2 in single precision too
    return np.concatenate([[JS_FLOOR / 3], np.geomspace(JS_FLOOR, top, bins)])


def histograms(study, points: dict[str, tuple], edges: tuple, height: float):
    """(figure, axes) of a 2-D histogram a model, from {model: (x, y)}; colour counts positions.

    Above and beside it are the histograms of x and y alone, their counts on logarithmic scales.
    """
    count = max(len(points), 1)
    fig, axes = plt.subplots(
        1, count, figsize=(panels_width(count), height), sharey=True, squeeze=False
    )
    counts = {model: np.histogram2d(*xy, edges)[0] for model, xy in points.items()}
    norm, mesh = LogNorm(1, max([2, *(c.max() for c in counts.values())])), None
    shades = sns.light_palette("#08306B", as_cmap=True)
    for ax, (model, found) in zip(axes[0], counts.items()):
        shown = np.ma.masked_equal(found.T, 0)
        mesh = ax.pcolormesh(*edges, shown, norm=norm, cmap=shades, rasterized=True)
        above = ax.inset_axes([0, 1.02, 1, 0.17], sharex=ax)
        beside = ax.inset_axes([1.02, 0, 0.12, 1], sharey=ax)
        above.stairs(found.sum(axis=1), edges[0], fill=True, color="#8C8C8C")
        beside.stairs(
            found.sum(axis=0), edges[1], fill=True, color="#8C8C8C", orientation="horizontal"
        )
        above.set(yscale="log", ylim=(0.7, None))
        beside.set(xscale="log", xlim=(0.7, None))
        for side in (above, beside):
            side.set_axis_off()
        above.set_title(study.models[model].label)
    if mesh is not None:
        bar = fig.colorbar(mesh, ax=axes[0].tolist(), label="positions", aspect=30)
        _show_powers(bar.ax.yaxis)
    return fig, axes[0]


def panels_width(count: int) -> float:
    """Inches across for `count` panels side by side: never wider than a page."""
    return min(7.6, 3.8 * max(count, 1))


def log_scale(ax, *names: str) -> None:
    """Make the axes of these names, "x" or "y", logarithmic, with powers of ten for numbers."""
    for name in names:
        ax.set(**{f"{name}scale": "log"})
        _show_powers(getattr(ax, f"{name}axis"))


def _show_powers(axis) -> None:
    """Let the numbers of a logarithmic axis be the formulas that matplotlib makes of them."""
    # More ticks than are drawn: one made later would show its formula's source.
    for tick in (*axis.get_major_ticks(64), *axis.get_minor_ticks(256)):
        for label in (tick.label1, tick.label2):
            label.set_parse_math(True)


def name_lines(ax, names: dict[str, str], at: tuple[float, float] = (0.97, 0.97)) -> None:
    """Write the names of lines {name: colour} in their colours, stacked down from `at`.

    `at` is in fractions of the axes; text right of the middle is flush right.
    """
    step = 1.3 * 9.5 / 72 / (ax.get_position().height * ax.figure.get_size_inches()[1])
    look = {"ha": "right" if at[0] > 0.5 else "left", "va": "top", "fontsize": 9.5}
    look["bbox"] = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1}
    for i, (name, hue) in enumerate(names.items()):
        ax.text(at[0], at[1] - step * i, name, color=hue, transform=ax.transAxes, **look)


def label_ends(ax, ends: dict[str, tuple[float, float, str]]) -> None:
    """Write names right of the last points {name: (x, y, colour)} of lines, pushed apart."""
    ax.figure.draw_without_rendering()  # settles the layout, so that pixels mean something
    to_pixels, to_data = ax.transData, ax.transData.inverted()
    apart = 13 * ax.figure.dpi / 72
    placed = ax.get_window_extent().y0 - apart / 2  # none on the axis itself
    for name, (x, y, hue) in sorted(ends.items(), key=lambda item: item[1][1]):
        px, py = to_pixels.transform((x, y))
        placed = max(py, placed + apart)
        look = {"color": hue, "va": "center", "fontsize": 9.5, "annotation_clip": False}
        end = to_data.transform((px, placed))
        ax.annotate(name, end, xytext=(6, 0), textcoords="offset points", **look)


def save_figure(fig, directory: Path, name: str) -> list[Path]:
    """Write directory/name.png and .pdf without dates, so that equal figures are equal files."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.png", directory / f"{name}.pdf"]
    undated = {"CreationDate": None, "Producer": None, "Creator": None}
    for path, metadata in zip(paths, ({"Software": None}, undated)):
        drawn = io.BytesIO()
        fig.savefig(drawn, format=path.suffix[1:], metadata=metadata)
        write_bytes(path, drawn.getvalue())
    plt.close(fig)
    return paths
