"""Cityscapes, fine annotations: street scenes of 50 cities, 19 classes for training."""

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

_CLASS = "CityscapesDataset"
# The owner's parts, and the split that each is here: the label maps of the owner's test part are dummies.
_PARTS = {"train": "train", "val": "test"}
_IMAGE = "_leftImg8bit.png"
_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
# Ids of the classes with train ids 0, 1, .., 18, and all ids (`cityscapesscripts.helpers.labels`).
_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_ALL = range(34)
_IGNORED_TRAIN_ID = 255


class Cityscapes:
    """The folders leftImg8bit and gtFine as the owner's two archives unpack into one folder.

    The archives hold label ids, 0..33; what is not of the 19 classes for training is ignored. Only where there are no
    label ids, the train ids are read that the owner's scripts make of them: 0..18, and 255 for the ignored.
    """

    Options = LabelMapOptions

    def __init__(self, root: Path, options: LabelMapOptions | None = None) -> None:
        """Remembers where the folders are and what is the object."""
        self.root, self.about, self.options = root, about_of("cityscapes"), options or LabelMapOptions()

    def entries(self) -> list[Entry]:
        """One sample an image, of the name `<city>_<sequence>_<frame>`; or one for each class of an image."""
        return self._label_maps.entries([entry for part in _PARTS for entry in self._part(part)])

    def _part(self, part: str) -> list[Entry]:
        folders = {"img_path": f"leftImg8bit/{part}", "seg_map_path": f"gtFine/{part}"}
        for needed in folders.values():
            require(self.root / needed, self.about)
        suffix = _IDS if self._has_ids else _TRAIN_IDS
        pairs = listed_files(_CLASS, data_root=str(self.root), data_prefix=folders, seg_map_suffix=suffix)
        return [Entry(image.name.removesuffix(_IMAGE), (image, labels), _PARTS[part]) for image, labels in pairs]

    @cached_property
    def _has_ids(self) -> bool:
        """Whether any label ids are there, or nothing at all."""

        def any_of(suffix: str) -> bool:
            return any(next((self.root / "gtFine" / part).glob(f"*/*{suffix}"), None) for part in _PARTS)

        return any_of(_IDS) or not any_of(_TRAIN_IDS)

    @cached_property
    def _label_maps(self) -> LabelMaps:
        ids = _TRAINED if self._has_ids else range(len(_TRAINED))
        ignored = frozenset(_ALL).difference(_TRAINED) if self._has_ids else frozenset({_IGNORED_TRAIN_ID})
        names = dict(zip(ids, class_names(_CLASS), strict=True))
        return LabelMaps(self.about.title, names, self.options, ignored=ignored)

    def counts(self) -> Mapping[str, int]:
        """Number of images of the owner's parts with published truth."""
        return {part: len(self._part(part)) for part in _PARTS}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The left photograph, 2048 x 1024 pixels."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The object, and what is of none of the 19 classes as ignored."""
        return self._label_maps.target(entry)
