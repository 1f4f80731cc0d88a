"""Small images and masks, and their files, for trees in the layouts of the datasets' owners."""

import numpy as np
from PIL import Image


def photo(seed, height=40, width=56):
    """A smooth random RGB image (H, W, 3) uint8, unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def disc(seed, height=40, width=56):
    """An ellipse (H, W) bool at a random place."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.35, 0.65, 2) * (height, width)
    return ((x - cx) / (0.25 * width)) ** 2 + ((y - cy) / (0.25 * height)) ** 2 <= 1


def save(path, array, **options):
    """Writes an array as an image file of the path's format, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def as_grey(mask):
    """A bool mask as uint8 0 and 255."""
    return mask.astype(np.uint8) * 255
