"""The gains of a leaderboard as a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from redfree.files import replace_atomically

_COLOURS = {"swap": "#0072b2", "swap-unguarded": "#56b4e9", "oracle": "#999999", "zero": "#e69f00"}
_TUNER = "#d55e00"


def _draw_dataset(axes: Axes, title: str, rows: pd.DataFrame) -> None:
    for position, (_, row) in enumerate(rows.iterrows()):
        # A tuner with a swap on top has the colour of the swap.
        colour = _COLOURS.get(row["label"].rpartition("+")[2], _TUNER)
        axes.plot([100 * row["gain_low"], 100 * row["gain_high"]], [position] * 2, color=colour, linewidth=2)
        axes.plot(100 * row["gain"], position, "o", color=colour, markersize=7)
        seeds = [100 * gain for gain in row["gain_by_seed"].values()]
        axes.plot(seeds, [position] * len(seeds), "|", color="black", markersize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows["label"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("test mIoU gain, points")
    axes.grid(axis="x", alpha=0.3)


def save_png(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Writes a figure atomically; equal figures give equal bytes."""
    with replace_atomically(path) as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})


def panel_grid(count: int, width: float = 4.6, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, three in a row, each of a size in inches."""
    columns = max(1, min(3, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def draw_gains(board: pd.DataFrame, title: str, path: Path) -> None:
    """Draws the gain of every method with its 95% interval, one panel a model and dataset.

    Args:
        board: what `redfree.report.table.leaderboard` returned.
        title: heading.
        path: the PNG.
    """
    gained = board[board["gain"].notna() & (board["label"] != "baseline")]
    panels = list(gained.groupby(["model", "dataset"], sort=False))
    most = max((len(rows) for _, rows in panels), default=0)
    widest = max((len(label) for label in gained["label"]), default=0)
    figure, grid = panel_grid(len(panels), max(4.6, 3 + 0.09 * widest), max(3.4, 1 + 0.17 * most))
    for axes, ((model, dataset), rows) in zip(grid, panels, strict=True):
        _draw_dataset(axes, f"{dataset}, {model}", rows)
    figure.suptitle(f"{title}: mean over seeds with 95% interval; bars: seeds", fontsize=10)
    save_png(figure, path)
