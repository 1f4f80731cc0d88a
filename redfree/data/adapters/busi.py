"""BUSI: ultrasound images of the breast with the outline of lesions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.listing import natural, visible_files
from redfree.data.reading import MaskRule, binary, check_sizes, read_image
from redfree.data.source import Entry, SegmentationTarget, require
from redfree.validation import Strict

_TOP = "Dataset_BUSI_with_GT"
_CLASSES = ("benign", "malignant")
# The same lesion, found among the images that the swap paper's authors published.
_DUPLICATES = {"benign (65)": "benign (65)", "benign (99)": "benign (65)"}


class Busi:
    """Folders `benign` and `malignant`, here or in the owner's `Dataset_BUSI_with_GT/`; `normal` shows no lesion.

    An image is `<class> (n).png`, its mask `<class> (n)_mask.png`. Further masks of an image (`_mask_1.png`,
    `_mask_2.png`) show further lesions: the object is all of them. The owner does not divide the images. The one pair
    that is known to show the same lesion is a group; a letter to the journal (10.1016/j.dib.2023.109247) speaks of many
    more duplicates, of which no public list is at hand.
    """

    class Options(Strict):
        """Nothing to choose: masks of any mode are read as greys, and with the threshold 128."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the folders are."""
        self.root, self.about = root, about_of("busi")

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file, by class and number."""
        return [entry for class_ in _CLASSES for entry in self._class(class_)]

    def _class(self, class_: str) -> list[Entry]:
        folder = require(self._top() / class_, self.about)
        names = sorted((path.name for path in visible_files(folder)), key=natural)
        images = [name for name in names if re.fullmatch(rf"{class_} \([0-9]+\)\.png", name)]
        return [_entry(folder, name.removesuffix(".png"), names) for name in images]

    def _top(self) -> Path:
        return self.root if (self.root / _CLASSES[0]).is_dir() else self.root / _TOP

    def counts(self) -> Mapping[str, int]:
        """Number of images of each class."""
        return {class_: len(self._class(class_)) for class_ in _CLASSES}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The ultrasound image."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """All lesions."""
        first, *others = (binary(path, MaskRule()) for path in entry.files[1:])
        for path, mask in zip(entry.files[2:], others, strict=True):
            check_sizes(path, mask, entry.files[1], (first.shape[0], first.shape[1]))
        return SegmentationTarget(np.logical_or.reduce([first, *others]))


def _entry(folder: Path, stem: str, names: Sequence[str]) -> Entry:
    """The sample of an image; its first mask is always among the files, so that a missing one is an error."""
    masks = [f"{stem}_mask.png", *(name for name in names if name.startswith(f"{stem}_mask_"))]
    files = tuple(folder / name for name in (f"{stem}.png", *masks))
    return Entry(stem, files, group=_DUPLICATES.get(stem))
