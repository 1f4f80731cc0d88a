"""ISIC 2016 Task 1: dermoscopy images with the outline of a lesion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.reading import MaskRule, binary, read_image
from redfree.data.source import Entry, SegmentationTarget, require
from redfree.validation import Strict

_PREFIX = "ISBI2016_ISIC_Part1_"
_PARTS = {"train": "Training", "test": "Test"}


class Isic2016:
    """Four folders as the owner's four archives unpack: images and masks, for training and test.

    Part 3 of the same challenge (classification) has folders of nearly the same names; only Part 1 is read.
    """

    class Options(Strict):
        """Nothing to choose: masks hold 0 and 255, and are read with the threshold 128."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the folders are."""
        self.root, self.about = root, about_of("isic2016")

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file."""
        return [entry for split in _PARTS for entry in self._part(split)]

    def _part(self, split: str) -> list[Entry]:
        images, masks = (self._folder(split, kind) for kind in ("Data", "GroundTruth"))
        paths = sorted(images.glob("ISIC_*.jpg"))
        return [Entry(path.stem, (path, masks / f"{path.stem}_Segmentation.png"), split) for path in paths]

    def _folder(self, split: str, kind: str) -> Path:
        return require(self.root / f"{_PREFIX}{_PARTS[split]}_{kind}", self.about)

    def counts(self) -> Mapping[str, int]:
        """Number of images for training and test."""
        return {split: len(self._part(split)) for split in _PARTS}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph, at up to 4288 x 2848 pixels."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The lesion."""
        return SegmentationTarget(binary(entry.files[1], MaskRule()))
