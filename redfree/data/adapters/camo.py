"""CAMO: camouflaged animals and people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.adapters.cod_repack import MaskOptions, Part, count_splits, entries_of, not_there, repack_parts
from redfree.data.reading import MaskRule, binary, read_image
from redfree.data.source import Entry, SegmentationTarget, require

# The owner's spelling.
_MARK = "camourflage_"
_PLACES = ("CAMO-V.1.0-CVIU2019", "CAMO-COCO-V.1.0-CVIU2019/Camouflage", "Camouflage", ".")


class Camo:
    """The owner's archive, alone or nested in that of CAMO-COCO, or the community's repack.

    The owner's tree is `Images/{Train,Test}/camourflage_NNNNN.jpg` with the masks of both splits in one folder, `GT`.
    Of the repack the test set may be there alone. Some masks are antialiased. A few images are also in COD10K, with
    another outline: the two datasets are not disjoint.
    """

    Options = MaskOptions

    def __init__(self, root: Path, options: MaskOptions | None = None) -> None:
        """Remembers where the folders are and how masks are read."""
        self.root, self.about = root, about_of("camo")
        self.rule = MaskRule((options or MaskOptions()).mask_threshold)

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file; see `Source.entries`."""
        parts = self._own_parts() or repack_parts(self.root, "CAMO", _MARK)
        if not parts:
            raise not_there(self.root, "camo", "Images/Train and Images/Test nor TestDataset/CAMO/Imgs")
        return entries_of(parts, _MARK)

    def _own_parts(self) -> list[Part]:
        folders = {split: Path("Images", split) for split in ("Train", "Test")}
        for place in (self.root / name for name in _PLACES):
            if any((place / folder).is_dir() for folder in folders.values()):
                masks = require(place / "GT", self.about)
                return [
                    Part(split.lower(), require(place / folder, self.about), masks) for split, folder in folders.items()
                ]
        return []

    def counts(self) -> Mapping[str, int]:
        """Number of images for training and test."""
        return count_splits(self.entries())

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The camouflaged object, or all of them."""
        return SegmentationTarget(binary(entry.files[1], self.rule))
