"""The score of PerSeg's owner: IoU of the counts summed over each object's images, averaged over objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redfree.tasks.segmentation import Counts, image_iou


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
