"""The score of PerSeg's owner: IoU of the counts summed over each object's images, averaged over objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redfree.tasks.segmentation import METRICS, Counts, Metric, image_iou


def object_iou(counts: Counts, objects: Sequence[str]) -> float:
    """Mean over objects of (sum of intersections) / (sum of unions) over the images of an object.

    The source is `eval_mioU.py` of the owner's repository (ZrrSkywalker/Personalize-SAM), which leaves out the
    reference image of each object: pass the counts of test images alone. An object whose union is empty scores 0, as
    there.

    Args:
        counts: (N, 4) tp, fp, fn, tn of each image.
        objects: name of the object that each of the N images shows.

    Returns:
        A value in 0..1.

    Raises:
        ValueError: there are no images, or not one name an image.
    """
    if len(counts) != len(objects) or not len(counts):
        raise ValueError(f"{len(counts)} rows of counts and {len(objects)} objects; pass one name an image")
    names, rows = np.unique(objects, return_inverse=True)
    totals = np.zeros((len(names), 4), np.int64)
    np.add.at(totals, rows, counts)
    return float(image_iou(totals).mean())


def _mean_over_draws(numbered: Counts) -> float:
    draws = numbered.transpose(1, 0, 2)
    return float(np.mean([object_iou(counts[:, :-1], counts[:, -1].astype(str).tolist()) for counts in draws]))


OBJECT_MIOU = Metric(
    "object_mIoU",
    "foreground IoU of the counts summed over the images of an object, averaged over objects (PerSeg's eval_mioU.py)",
    _mean_over_draws,
)


def metrics_of(dataset: str) -> tuple[Metric, ...]:
    """The metrics of a segmentation dataset: those of every dataset, and its owner's own where that is another."""
    return (*METRICS, OBJECT_MIOU) if dataset == "perseg" else METRICS


def numbered(counts: Counts, ids: Sequence[str]) -> Counts:
    """Counts (images, draws, 4) with the number of the object of each image, which its id begins with, as a column.

    A bootstrap that draws images anew then draws their objects with them.
    """
    _, numbers = np.unique([id_.partition("/")[0] for id_ in ids], return_inverse=True)
    column = np.broadcast_to(numbers[:, None, None], (*counts.shape[:2], 1))
    return np.concatenate([counts, column], axis=2)
