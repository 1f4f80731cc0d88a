"""ADE20K of the Scene Parsing Benchmark (SceneParse150): photographs, every pixel of 150 classes or of none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.label_maps import LabelMapOptions, LabelMaps
from redfree.data.mmseg_lists import class_names, listed_files
from redfree.data.reading import read_image
from redfree.data.source import Entry, SegmentationTarget, require

_CLASS = "ADE20KDataset"
# The owner's parts and their folders, and the split that each is here: the owner publishes no truth of its test part.
_FOLDERS = {"train": "training", "val": "validation"}
_PARTS = {"train": "train", "val": "test"}


class Ade20k:
    """The folder ADEChallengeData2016 of the owner's archive, below the root or the root itself.

    Files store 1..150 for the classes. 0 is whatever else there is: it is ignored, as by the benchmark. The full ADE20K
    in folders of scenes, with thousands of classes, is another distribution and is not read.
    """

    Options = LabelMapOptions

    def __init__(self, root: Path, options: LabelMapOptions | None = None) -> None:
        """Remembers where the folders are and what is the object."""
        self.root, self.about, self.options = root, about_of("ade20k"), options or LabelMapOptions()

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file; or one for each class of an image."""
        return self._label_maps.entries([entry for part in _PARTS for entry in self._part(part)])

    def _part(self, part: str) -> list[Entry]:
        folders = {"img_path": f"images/{_FOLDERS[part]}", "seg_map_path": f"annotations/{_FOLDERS[part]}"}
        for needed in folders.values():
            require(self._folder / needed, self.about)
        pairs = listed_files(_CLASS, data_root=str(self._folder), data_prefix=folders)
        return [Entry(image.stem, (image, labels), _PARTS[part]) for image, labels in pairs]

    @cached_property
    def _folder(self) -> Path:
        usual = self.root / "ADEChallengeData2016"
        return next((folder for folder in (usual, self.root) if (folder / "annotations").is_dir()), usual)

    @cached_property
    def _label_maps(self) -> LabelMaps:
        names = dict(enumerate(class_names(_CLASS), start=1))
        return LabelMaps(self.about.title, names, self.options, ignored=frozenset({0}))

    def counts(self) -> Mapping[str, int]:
        """Number of images of the owner's parts with published truth."""
        return {part: len(self._part(part)) for part in _PARTS}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The object, and what is of no class as ignored."""
        return self._label_maps.target(entry)
