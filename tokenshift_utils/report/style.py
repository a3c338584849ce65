"""How figures look: one colour a model everywhere, colour-blind safe, legible at half size."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns

__all__ = [
    "COLORS",
    "color",
    "label_ends",
    "name_lines",
    "panels_width",
    "save_figure",
    "use_style",
]

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
    """Set the style of all figures made after this call."""
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
        },
    )


def color(study, model: str) -> str:
    """Colour of a model: the study's own, the usual one of that name, or a spare one by order."""
    name = model.split("@")[0]
    own = study.model(model).color
    if own or name in COLORS:
        return own or COLORS[name]
    others = [n for n in study.models if n not in COLORS]
    return _SPARE[others.index(name) % len(_SPARE)]


def panels_width(count: int) -> float:
    """Inches across for `count` panels side by side: never wider than a page."""
    return min(7.6, 3.8 * max(count, 1))


def name_lines(ax, names: dict[str, str], at: tuple[float, float] = (0.97, 0.97)) -> None:
    """Write the names of lines {name: colour} in their colours, stacked down from `at`.

    `at` is in fractions of the axes; text right of the middle is flush right.
    """
    step = 1.3 * 9.5 / 72 / (ax.get_position().height * ax.figure.get_size_inches()[1])
    for i, (name, hue) in enumerate(names.items()):
        ax.text(
            at[0],
            at[1] - step * i,
            name,
            color=hue,
            ha="right" if at[0] > 0.5 else "left",
            va="top",
            fontsize=9.5,
            transform=ax.transAxes,
            bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1},
        )


def label_ends(ax, ends: dict[str, tuple[float, float, str]]) -> None:
    """Write names right of the last points {name: (x, y, colour)} of lines, pushed apart."""
    ax.figure.draw_without_rendering()  # settles the layout, so that pixels mean something
    to_pixels, to_data = ax.transData, ax.transData.inverted()
    apart = 11 * ax.figure.dpi / 72
    placed = -float("inf")
    for name, (x, y, hue) in sorted(ends.items(), key=lambda item: item[1][1]):
        px, py = to_pixels.transform((x, y))
        placed = max(py, placed + apart)
        ax.annotate(
            name,
            to_data.transform((px, placed)),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=hue,
            fontsize=9.5,
            annotation_clip=False,
        )


def save_figure(fig, directory: Path, name: str) -> list[Path]:
    """Write directory/name.png and .pdf without dates, so that equal figures are equal files."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.png", directory / f"{name}.pdf"]
    fig.savefig(paths[0], metadata={"Software": None})
    fig.savefig(paths[1], metadata={"CreationDate": None, "Producer": None, "Creator": None})
    plt.close(fig)
    return paths
