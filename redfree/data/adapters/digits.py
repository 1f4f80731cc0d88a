"""Handwritten digits of 8 x 8 pixels that scikit-learn ships: real images without a download."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.source import Entry
from redfree.validation import Strict

_WHITE = 16


class Digits:
    """The test set of the owner's data, in the order of scikit-learn, which divides it no further."""

    class Options(Strict):
        """Nothing to choose."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Needs no files."""

    def entries(self) -> list[Entry]:
        """One sample an image, `digit-0000` to `digit-1796`."""
        return [Entry(f"digit-{row:04d}", key=row) for row in range(len(_digits()[1]))]

    def counts(self) -> Mapping[str, int]:
        """Number of images."""
        return {"all": len(_digits()[1])}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The digit in grey on black, (8, 8, 3); the 17 levels of the owner are spread over 0 to 255."""
        return np.repeat(_digits()[0][entry.key][..., None], 3, axis=2)

    def target(self, entry: Entry) -> int:
        """The digit."""
        return int(_digits()[1][entry.key])


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images (N, 8, 8), 0 to 255, and their digits (N,)."""
    # Takes seconds, and the options of a dataset are checked without its files.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    digits = load_digits()
    return np.rint(digits.images * (255 / _WHITE)).astype(np.uint8), digits.target
