"""Binary segmentation: raw counts of each image, and the metrics they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
COUNT_NAMES = ("tp", "fp", "fn", "tn")


def count_pixels(
    predicted: NDArray[np.bool_], target: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives and true negatives of one mask, in pixels.

    Args:
        predicted: (H, W) bool.
        target: (H, W) bool.
        ignore: (H, W) bool, pixels that are not counted at all; None where all are.
    """
    if ignore is not None:
        predicted, target = predicted[~ignore], target[~ignore]
    hits, marked, true = int((predicted & target).sum()), int(predicted.sum()), int(target.sum())
    return hits, marked - hits, true - hits, target.size - marked - true + hits


def image_iou(counts: Counts) -> NDArray[np.float64]:
    """IoU of each image, 0 where the union is empty (the authors' release).

    Args:
        counts: (..., 4) tp, fp, fn, tn.

    Returns:
        (...) values in 0..1.
    """
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    return np.asarray(tp / np.maximum(tp + fp + fn, 1), np.float64)


def image_dice(counts: Counts) -> NDArray[np.float64]:
    """Dice coefficient 2 TP / (2 TP + FP + FN) of each image, 0 where the denominator is.

    Args:
        counts: (..., 4) tp, fp, fn, tn.

    Returns:
        (...) values in 0..1.
    """
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    return np.asarray(2 * tp / np.maximum(2 * tp + fp + fn, 1), np.float64)


def _mean_iou(counts: Counts) -> float:
    return float(image_iou(counts).mean())


def _mean_dice(counts: Counts) -> float:
    return float(image_dice(counts).mean())


def _dataset_iou(counts: Counts) -> float:
    return float(image_iou(counts.reshape(-1, 4).sum(0)))


def _dataset_dice(counts: Counts) -> float:
    return float(image_dice(counts.reshape(-1, 4).sum(0)))


@dataclass(frozen=True)
class Metric:
    """A named summary of the raw counts of a split.

    Attributes:
        name: name in records and tables.
        definition: one line that fixes the formula.
        summarise: counts (draws, images, 4) or (images, 4) -> value in 0..1.
    """

    name: str
    definition: str
    summarise: Callable[[Counts], float]


METRICS = (
    Metric("mIoU", "foreground IoU of each image, 0 where the union is empty, averaged over images", _mean_iou),
    Metric("mDice", "foreground Dice of each image, 0 where undefined, averaged over images", _mean_dice),
    Metric("dataset_IoU", "foreground IoU of the counts summed over images (mmseg IoUMetric, class 1)", _dataset_iou),
    Metric(
        "dataset_Dice", "foreground Dice of the counts summed over images (mmseg IoUMetric, class 1)", _dataset_dice
    ),
)
