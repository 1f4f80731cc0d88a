"""What depth datasets have in common: 16-bit depth files, lists of pairs, and the pixels that count."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from redfree.data.reading import read_indices
from redfree.errors import UserError

# Metres. What is not farther is a hole of the sensor, in the evaluation of BTS and AdaBins and in all that follow it.
MINIMUM = 1e-3


def read_depth(path: Path, units_per_metre: int) -> NDArray[np.float32]:
    """Reads a depth map that is kept as a 16-bit greyscale file.

    Args:
        path: the file.
        units_per_metre: what the file holds at one metre.

    Returns:
        (H, W) float32 metres, 0 where there is no measurement.

    Raises:
        UserError: the file is missing or broken, or is not of 16 bits.
    """
    values = read_indices(path)
    if values.dtype == np.uint8:
        raise UserError(f"{path}: holds 8-bit values, depth has 16; restore the owner's file")
    return values.astype(np.float32) / np.float32(units_per_metre)


def counted(depth: NDArray[np.float32], rows: slice, columns: slice, maximum: float) -> NDArray[np.bool_]:
    """Where depth counts: in these rows and columns, and strictly between `MINIMUM` and `maximum` metres."""
    inside = np.zeros(depth.shape, np.bool_)
    inside[rows, columns] = True
    return inside & (depth > MINIMUM) & (depth < maximum)


def listed_pairs(path: Path) -> list[tuple[PurePosixPath, PurePosixPath]]:
    """Reads a list of the form of BTS: image, depth map and focal length in each line.

    Returns:
        Image and depth map of each line, relative to folders that the list does not name. Lines that say `None`
        instead of a depth map are left out: the image has no truth.

    Raises:
        UserError: a line names no depth map.
    """
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        match line.split():
            case []:
                continue
            case [image, depth, *_]:
                # Some of these lists start their paths with a slash that is no root.
                pairs.append((PurePosixPath(image.lstrip("/")), PurePosixPath(depth.lstrip("/"))))
            case _:
                raise UserError(f"{path}: line {number} is not `image depth focal`; restore the list as published")
    return [pair for pair in pairs if pair[1].name != "None"]
