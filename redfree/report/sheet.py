"""Contact sheets of datasets, to look at before anything is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from redfree.data.schema import Sample
from redfree.files import replace_atomically

_OUTLINE, _POINT = (255, 230, 0), (255, 0, 80)


def _marked(sample: Sample) -> NDArray[np.uint8]:
    marked = sample.image.copy()
    marked[sample.mask ^ ndimage.binary_erosion(sample.mask)] = _OUTLINE
    for x, y in sample.prompt.points:
        row, column = round(y), round(x)
        marked[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = _POINT
    return marked


def write_sheet(samples: list[Sample], path: Path, columns: int = 8) -> None:
    """Writes a PNG of samples of equal size, each above itself with outline and prompt.

    Args:
        samples: what to show, row by row.
        path: the picture.
        columns: samples in a row.
    """
    tiles = [np.concatenate([sample.image, _marked(sample)]) for sample in samples]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    with replace_atomically(path) as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")
