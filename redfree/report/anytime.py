"""Any-time curves: the best search score so far against decoder passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from redfree.report.plot import panel_grid, save_png
from redfree.report.strategies import searches

_COLOURS = {"greedy": "#0072b2", "shortlist": "#e69f00", "racing": "#009e73", "exhaustive": "#000000"}


def curve(trace: list[Any]) -> tuple[list[int], list[float]]:
    """Decoder passes spent, and the best mean score on all search images known by then.

    Rounds of a race score some of the images only: they cost passes and show no score.
    """
    passes, best, spent, highest = list[int](), list[float](), 0, -np.inf
    for step in trace:
        spent += step.decoder_passes
        highest = highest if step.stage == "race" else max(highest, step.best_score)
        passes.append(spent)
        best.append(highest)
    return passes, best


def draw_anytime(frame: pd.DataFrame, title: str, path: Path) -> None:
    """Draws the curve of every unguarded search, one panel a model and dataset, one line a seed.

    Args:
        frame: what `redfree.report.frame.load_frame` returned.
        title: heading.
        path: the PNG.
    """
    panels = list(searches(frame).groupby(["model", "dataset"], sort=False))
    figure, grid = panel_grid(len(panels))
    for axes, ((model, dataset), group) in zip(grid, panels, strict=True):
        _draw_panel(axes, f"{dataset}, {model}", group)
    figure.suptitle(f"{title}: best gain on the search images so far, one line a seed; dot: what the search returns")
    save_png(figure, path)


def _draw_panel(axes: Axes, title: str, group: pd.DataFrame) -> None:
    named = set[str]()
    for _, row in group.iterrows():
        strategy, start = row["strategy"], row["search_score"] - row["search_gain"]
        passes, best = curve(row["trace"])
        gains = [100 * (score - start) for score in best]
        label = None if strategy in named else strategy
        named.add(strategy)
        axes.step(passes, gains, where="post", color=_COLOURS[strategy], linewidth=1.4, alpha=0.8, label=label)
        axes.plot(passes[-1], 100 * row["search_gain"], "o", color=_COLOURS[strategy], markersize=4)
    axes.set_xscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("decoder passes")
    axes.set_ylabel("search mIoU gain, points")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
