"""CHAMELEON: camouflaged animals, to test on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.adapters.cod_repack import MaskOptions, count_splits, entries_of, not_there, repack_parts
from redfree.data.reading import MaskRule, binary, read_image
from redfree.data.source import Entry, SegmentationTarget

_MARK = "animal-"


class Chameleon:
    """The community's repack, `TestDataset/CHAMELEON/{Imgs,GT}/animal-N.{jpg,png}`.

    There are no training images: those of another dataset choose and train.
    """

    Options = MaskOptions

    def __init__(self, root: Path, options: MaskOptions | None = None) -> None:
        """Remembers where the folders are and how masks are read."""
        self.root, self.about = root, about_of("chameleon")
        self.rule = MaskRule((options or MaskOptions()).mask_threshold)

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file; see `Source.entries`."""
        parts = [part for part in repack_parts(self.root, "CHAMELEON", _MARK) if part.split == "test"]
        if not parts:
            raise not_there(self.root, "chameleon", "TestDataset/CHAMELEON/Imgs nor Imgs")
        return entries_of(parts, _MARK)

    def counts(self) -> Mapping[str, int]:
        """Number of images for test."""
        return count_splits(self.entries())

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The camouflaged animal, or all of them."""
        return SegmentationTarget(binary(entry.files[1], self.rule))
