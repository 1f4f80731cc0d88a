"""PASCAL VOC 2012, segmentation: photographs with twenty classes of objects."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.label_maps import LabelMapOptions, LabelMaps
from redfree.data.mmseg_lists import class_names, listed_files
from redfree.data.reading import read_image
from redfree.data.source import Entry, SegmentationTarget, require

_CLASS = "PascalVOCDataset"
# The owner's parts, and the split that each is here: the owner publishes no truth of its test part.
_PARTS = {"train": "train", "val": "test"}
_LABEL_MAPS = {"class": "SegmentationClass", "object": "SegmentationObject"}
# The 5-pixel border around objects, and what is difficult. Read as colours it is (224, 224, 192), not black.
_VOID = 255


class Voc2012:
    """The folder VOC2012 of the owner's archive: below VOCdevkit, below the root, or the root itself."""

    class Options(LabelMapOptions):
        """What is the object.

        Attributes:
            annotation: "class", where classes are the twenty kinds of objects; "object", where each object of an image
                is a class of its own, whose name is its number.
        """

        annotation: Literal["class", "object"] = "class"

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the folders are and what is the object."""
        self.root, self.about, self.options = root, about_of("voc2012"), options or self.Options()

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file; or one for each class, or object, of an image."""
        return self._label_maps.entries([entry for part in _PARTS for entry in self._part(part)])

    def _part(self, part: str) -> list[Entry]:
        folders = {"img_path": "JPEGImages", "seg_map_path": _LABEL_MAPS[self.options.annotation]}
        listing = f"ImageSets/Segmentation/{part}.txt"
        for needed in (*folders.values(), listing):
            require(self._folder / needed, self.about)
        pairs = listed_files(_CLASS, data_root=str(self._folder), data_prefix=folders, ann_file=listing)
        return [Entry(image.stem, (image, labels), _PARTS[part]) for image, labels in pairs]

    @cached_property
    def _folder(self) -> Path:
        usual = self.root / "VOCdevkit" / "VOC2012"
        folders = (usual, self.root / "VOC2012", self.root / "VOCdevkit", self.root)
        return next((folder for folder in folders if (folder / "ImageSets").is_dir()), usual)

    @cached_property
    def _label_maps(self) -> LabelMaps:
        numbers = range(1, _VOID)
        if self.options.annotation == "object":
            names = {number: str(number) for number in numbers}
        else:
            names = dict(zip(numbers, class_names(_CLASS)[1:], strict=False))
        return LabelMaps(self.about.title, names, self.options, background=frozenset({0}), ignored=frozenset({_VOID}))

    def counts(self) -> Mapping[str, int]:
        """Number of images of the owner's parts with published truth."""
        return {part: len(self._part(part)) for part in _PARTS}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph, at up to 500 x 500 pixels."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The object, and the void around objects as ignored."""
        return self._label_maps.target(entry)
