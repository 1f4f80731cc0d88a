"""Rules that place a prompt in an object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from redfree.data.schema import Prompt


def distance_transform(mask: NDArray[np.bool_]) -> Prompt:
    """One positive point where the object is thickest.

    The distance to the background is Euclidean and the image's border counts as background; among equals the first in
    row-major order is taken, so that the point is the same on every machine and lies inside the object.

    Args:
        mask: (H, W) bool, not empty.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("the mask is empty")
    # Squared distances are integers: equal distances compare equal, which their square roots might not.
    _, nearest = ndimage.distance_transform_edt(np.pad(mask, 1), return_indices=True)
    offsets = nearest - np.indices(nearest.shape[1:])
    squared = (offsets * offsets).sum(0)[1:-1, 1:-1]
    row, column = np.unravel_index(int(squared.argmax()), squared.shape)
    return Prompt(((float(column), float(row)),), (1,))
