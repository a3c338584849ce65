"""How figures look: one colour a model everywhere, colour-blind safe, legible at half size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import seaborn.objects as so
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
    "sft-near": "#999933",
    "sft-own": "#E69F00",
    "sft-own-accuracy": "#B87A00",
    "dpo": "#8C564B",
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
    so.Plot.config.theme.update(matplotlib.rcParams)


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


def model_looks(study, models) -> dict[str, dict[str, str]]:
    """Scales of a seaborn plot of models by label: colour, the same or white inside, marker, and
    dashes for controls."""
    looks: dict[str, dict[str, str]] = {"color": {}, "marker": {}, "linestyle": {}}
    for model in dict.fromkeys(models):
        spec = study.models[model]
        looks["color"][spec.label] = color(study, model)
        looks["marker"][spec.label] = "Dosv^P*X"[list(study.models).index(model) % 8]
        looks["linestyle"][spec.label] = "--" if spec.is_control else "-"
    return looks | {"fillcolor": looks["color"] | {"white": "white"}}


def as_interval(rows: pd.DataFrame, name: str, factor: float = 100.0) -> pd.DataFrame:
    """The rows with the column `name` and its interval as `value`, `low` and `high`, in percent.

    Their numbers, also in `each`, are new: seaborn's plots need an index without repetitions, and
    numbers as such, which a concatenation with a table without rows makes objects.
    """
    columns = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    rows = rows.reset_index(drop=True).infer_objects().assign(each=range(len(rows)))
    if rows.empty:
        return rows.reindex(columns=[*rows.columns, *columns]).astype(float)
    return rows.assign(**{end: factor * rows[c].astype(float) for end, c in columns.items()})


def add_lines(plot: so.Plot, line: so.Line) -> so.Plot:
    """seaborn's plot with lines through estimates `value` and bands from `low` to `high`."""
    band = so.Band(alpha=0.18, edgewidth=0)
    plot = plot.add(band, ymin="low", ymax="high", y="value", legend=False)
    return plot.add(line, y="value", legend=False)


def add_points(plot: so.Plot, axis: str = "x", linewidth=1.2, pointsize=5.0) -> so.Plot:
    """seaborn's plot with estimates `value` and their intervals along an axis, as points on lines."""
    ends = {f"{axis}min": "low", f"{axis}max": "high", "orient": "y" if axis == "x" else "x"}
    line = so.Range(linewidth=linewidth, artist_kws={"capstyle": "butt"})
    points = so.Dots(pointsize=pointsize, fillalpha=1, stroke=1, artist_kws={"zorder": 2.1})
    shown = {axis: "value", "legend": False}
    # A group each: seaborn makes one range of those at the same place.
    ranges = plot.add(line, group="each", **ends, **shown)
    return ranges.add(points, **shown)


def draw_facets(plot: so.Plot, size: tuple[float, float], titles: Iterable[str]):
    """(figure, axes) of a plot with facets, in inches; titles are of the first panels, row by row."""
    fig = plt.figure(figsize=size)
    _draw(plot.label(x="", y="").on(fig))
    for ax, title in zip_longest(fig.axes, titles, fillvalue=""):
        ax.set_title(title)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_visible(True)  # seaborn hides those between panels
    return fig, fig.axes


def draw_on(ax, plot: so.Plot) -> None:
    """Draw seaborn's plot on one of several axes, which keep their title and labels of ticks."""
    shown = {axis: axis.get_tick_params() for axis in (ax.xaxis, ax.yaxis)}
    _draw(plot.label(x="", y="", title=ax.get_title()).on(ax))
    for axis, look in shown.items():
        axis.set_tick_params(**look)


def _draw(plot: so.Plot) -> None:
    with warnings.catch_warnings():  # seaborn 0.13 calls pandas in a way that pandas 4 will refuse
        warnings.filterwarnings("ignore", "The copy keyword", DeprecationWarning)
        plot.plot()


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
    most = [np.histogram2d(*xy, edges)[0].max() for xy in points.values()]
    look = {"cmap": sns.light_palette("#08306B", as_cmap=True), "vmin": None, "vmax": None}
    look |= {"norm": LogNorm(1, max([2, *most])), "rasterized": True}
    alone = {"element": "step", "color": "#8C8C8C", "alpha": 1, "linewidth": 0}
    for ax, (model, (x, y)) in zip(axes[0], points.items()):
        sns.histplot(x=x, y=y, bins=edges, ax=ax, **look)
        ax.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
        above = ax.inset_axes([0, 1.02, 1, 0.17], sharex=ax)
        beside = ax.inset_axes([1.02, 0, 0.12, 1], sharey=ax)
        sns.histplot(x=x, bins=edges[0], ax=above, **alone)
        sns.histplot(y=y, bins=edges[1], ax=beside, **alone)
        above.set(yscale="log", ylim=(0.7, None))
        beside.set(xscale="log", xlim=(0.7, None))
        for side in (above, beside):
            side.set_axis_off()
        above.set_title(study.models[model].label)
    if points:
        bar = fig.colorbar(
            axes[0, 0].collections[0], ax=axes[0].tolist(), label="positions", aspect=30
        )
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


def label_ends(ax, rows: pd.DataFrame, x: str, name: str, hues: dict[str, str]) -> None:
    """Write lines' names, of a column, right of their last `value`, pushed apart, in their colours."""
    ax.figure.draw_without_rendering()  # settles the layout, so that pixels mean something
    ends = rows.dropna(subset="value").groupby(name, sort=False)[[x, "value"]].last()
    to_pixels, to_data = ax.transData, ax.transData.inverted()
    apart, box = 13 * ax.figure.dpi / 72, ax.get_window_extent()
    ends = ends.sort_values("value", kind="stable")
    at = to_pixels.transform(ends.to_numpy(float))
    least = box.y0 - apart / 2  # none on the axis itself
    for point in at:
        least = point[1] = max(point[1], least + apart)
    most = box.y1 + 1.5 * apart
    for point in at[::-1]:  # nor far above the panel
        most = point[1] = min(point[1], most - apart)
    for label, place in zip(ends.index, to_data.transform(at)):
        look = {"color": hues[label], "va": "center", "fontsize": 9.5, "annotation_clip": False}
        ax.annotate(label, place, xytext=(6, 0), textcoords="offset points", **look)


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
