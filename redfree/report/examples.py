"""Test images at fixed quantiles of a gain, with the masks that several ways of segmenting them give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from redfree.channels import ChannelMap
from redfree.data.stored import AnySegmentationSample
from redfree.report.markdown import percent
from redfree.report.plot import save_png
from redfree.search.evaluate import SegmentationEvaluator
from redfree.tasks.segmentation import Counts, image_iou

_QUANTILES = (
    (0.0, "largest loss"),
    (0.25, "lower quartile"),
    (0.5, "median"),
    (0.75, "upper quartile"),
    (1.0, "largest gain"),
)
_TRUTH, _PREDICTED, _POINT = "#00e5ff", "#ffb000", "#ff2d55"


@dataclass(frozen=True)
class Segmentation:
    """One way of segmenting the test images, a column of the picture.

    Attributes:
        name: heading.
        evaluator: the model, and the test images.
        channel_map: the swap that it computes with.
        counts: raw counts of what it gives, (images, 4).
    """

    name: str
    evaluator: SegmentationEvaluator
    channel_map: ChannelMap
    counts: Counts

    def masks(self, chosen: Sequence[int]) -> list[NDArray[np.bool_]]:
        """Masks of some images, each of the image's own size."""
        features = self.evaluator.features.select(chosen)
        features = features.with_maps(self.channel_map.apply(features.maps))
        prompts = [self.evaluator.samples[d].prompt for d in chosen]
        return [np.asarray(one > 0) for one in self.evaluator.model.decode(features, prompts)]


def draw_examples(ways: Sequence[Segmentation], base: int, title: str, path: Path) -> None:
    """Draws a row for each quantile: the image, and what each way makes of it.

    Args:
        ways: the columns, from the left.
        base: number of the way from which the gain of the last one is taken; its quantiles choose the images.
        title: above all rows.
        path: the PNG file.
    """
    samples = ways[0].evaluator.samples
    scores = [image_iou(way.counts) for way in ways]
    examples = _example_images(scores[-1] - scores[base])
    masks = [way.masks([d for d, _ in examples]) for way in ways]
    columns = 1 + len(ways)
    figure = Figure(figsize=(8 / 3 * columns, 2.6 * len(examples) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for number, (row, (d, name)) in enumerate(zip(grid, examples, strict=True)):
        _draw(row[0], samples[d], None, f"{samples[d].id}: {name}")
        for axes, way, found, score in zip(row[1:], ways, masks, scores, strict=True):
            _draw(axes, samples[d], found[number], f"{way.name}: IoU {percent(score[d])}")
    figure.suptitle(f"{title}\ncyan: truth, orange: prediction, red: prompt")
    save_png(figure, path, dpi=90)


def _example_images(gains: NDArray[np.float64]) -> list[tuple[int, str]]:
    order = np.argsort(gains, kind="stable")
    chosen = {int(order[round(q * (len(order) - 1))]): name for q, name in _QUANTILES}
    return list(chosen.items())


def _draw(axes: Axes, sample: AnySegmentationSample, mask: NDArray[np.bool_] | None, title: str) -> None:
    axes.imshow(sample.image)
    if mask is not None:
        # An outline of a ragged mask would have as many corners as the mask has pixels, and take gigabytes.
        overlay = np.zeros((*mask.shape, 4), np.float32)
        overlay[mask] = to_rgba(_PREDICTED, alpha=0.5)
        axes.imshow(overlay, interpolation="nearest")
    axes.contour(sample.mask, levels=[0.5], colors=[_TRUTH], linewidths=1.2)
    axes.plot(*zip(*sample.prompt.points, strict=True), "o", color=_POINT, markeredgecolor="white", markersize=6)
    axes.set_title(title, fontsize=9)
    axes.axis("off")
