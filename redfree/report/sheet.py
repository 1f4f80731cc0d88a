"""Contact sheets of datasets, to look at before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from redfree.data.schema import Sample
from redfree.files import replace_atomically

_OUTLINE, _POINT = (255, 230, 0), (255, 0, 80)
# Larger images are shown smaller: those of some datasets have over ten megapixels.
_LONGEST = 256


def _marked(sample: Sample) -> NDArray[np.uint8]:
    marked = sample.image.copy()
    marked[sample.mask ^ ndimage.binary_erosion(sample.mask)] = _OUTLINE
    for x, y in sample.prompt.points:
        row, column = round(y), round(x)
        marked[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = _POINT
    return marked


def _shrunk(sample: Sample) -> Sample:
    height, width = sample.mask.shape
    factor = min(1.0, _LONGEST / max(height, width))
    if factor == 1:
        return sample
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(sample.image).resize(size, Image.Resampling.BICUBIC)
    mask = Image.fromarray(sample.mask).resize(size, Image.Resampling.NEAREST)
    # The centre of a pixel is half a pixel from its edge in either frame.
    points = tuple(((x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5) for x, y in sample.prompt.points)
    prompt = replace(sample.prompt, points=points)
    return replace(sample, image=np.asarray(image), mask=np.asarray(mask), prompt=prompt, ignore=None)


def _padded(tile: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.pad(tile, ((0, height - tile.shape[0]), (0, width - tile.shape[1]), (0, 0)))


def write_sheet(samples: list[Sample], path: Path, columns: int = 8) -> None:
    """Writes a PNG of samples, each above itself with outline and prompt, with black around those that are smaller.

    Args:
        samples: what to show, row by row; where one is longer than 256 pixels it is shown smaller.
        path: the picture.
        columns: samples in a row.
    """
    shown = [_shrunk(sample) for sample in samples]
    height, width = (max(sample.mask.shape[axis] for sample in shown) for axis in (0, 1))
    tiles = [_padded(np.concatenate([one.image, _marked(one)]), 2 * height, width) for one in shown]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    with replace_atomically(path) as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")
