"""ImageNet-1k: the validation images of ILSVRC 2012, and the training images where they are there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.adapters.matlab import read_variable
from redfree.data.reading import read_image
from redfree.data.source import Entry, require
from redfree.errors import UserError
from redfree.validation import Strict

CLASSES = 1000
_DEVKIT = Path("ILSVRC2012_devkit_t12", "data")
_PARTS = {"val": "test", "train": "train"}
_WNID = re.compile("n[0-9]{8}")


class ImageNetValidation:
    """The owner's validation images, flat beside the development kit or sorted into folders of WordNet ids.

    A class is the place of its WordNet id among all of them in sorted order, as models number them. The owner numbers
    them otherwise, so that its numbers are translated through `meta.mat`.
    """

    class Options(Strict):
        """Nothing to choose."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the files are."""
        self.root, self.about = root, about_of("imagenet-1k")

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file. Validation images are for test: the owner's test has no truth.

        Training images are listed where `train/<WordNet id>` is there.
        """
        nested = [entry for part in _PARTS for entry in self._nested(part)]
        if any(entry.split == "test" for entry in nested):
            return nested
        return [*self._flat(), *nested]

    def counts(self) -> Mapping[str, int]:
        """Number of images for validation and training."""
        found = Counter(entry.split for entry in self.entries())
        return {part: found[split] for part, split in _PARTS.items()}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph; one of the files is a PNG and some are CMYK, whatever their names say."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> int:
        """The class, 0 to 999."""
        return int(entry.key)

    def _nested(self, part: str) -> Iterator[Entry]:
        """Images in folders of their WordNet ids."""
        folders = self._folders(part)
        order = self._order() if folders else {}
        for folder in folders:
            if folder.name not in order:
                raise UserError(f"{folder}: is no class of {self.about.title}; remove the folder")
            for path in sorted(folder.glob("[!.]*.JPEG")):
                yield Entry(path.stem, (path,), _PARTS[part], key=order[folder.name])

    def _folders(self, part: str) -> list[Path]:
        return sorted(path for path in self.root.glob(f"{part}/n*") if _WNID.fullmatch(path.name))

    def _order(self) -> dict[str, int]:
        """Class of each WordNet id, from the development kit or from a complete set of folders."""
        if (self.root / _DEVKIT).is_dir():
            wnids = set(self._wnids().values())
        else:
            wnids = {folder.name for part in _PARTS for folder in self._folders(part)}
            if len(wnids) != CLASSES:
                raise UserError(
                    f"{self.root}: has folders of {len(wnids)} classes, not {CLASSES}, so their order says nothing; "
                    f"unpack {_DEVKIT.parts[0]} beside them"
                )
        return {wnid: index for index, wnid in enumerate(sorted(wnids))}

    def _wnids(self) -> dict[int, str]:
        """WordNet id of each class by the owner's number; without the groups of classes, which are no classes."""
        synsets = np.atleast_1d(read_variable(require(self.root / _DEVKIT / "meta.mat", self.about), "synsets"))
        return {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets if int(synset["num_children"]) == 0
        }

    def _flat(self) -> list[Entry]:
        """Images beside each other, the class of number n in line n of the truth."""
        places = [self.root, self.root / "val", self.root / "ILSVRC2012_img_val"]
        listed = [sorted(place.glob("ILSVRC2012_val_*.JPEG")) for place in places]
        paths = next((paths for paths in listed if paths), [])
        if not paths:
            require(self.root / "ILSVRC2012_val_00000001.JPEG", self.about)
        labels = self._labels()
        return [Entry(path.stem, (path,), "test", key=_label(path, labels)) for path in paths]

    def _labels(self) -> list[int]:
        """Class of each validation image, in the order of their numbers."""
        path = require(self.root / _DEVKIT / "ILSVRC2012_validation_ground_truth.txt", self.about)
        wnids = self._wnids()
        order = {number: index for index, number in enumerate(sorted(wnids, key=lambda number: wnids[number]))}
        lines = path.read_text("ascii").split()
        strange = [line for line in lines if not line.isdigit() or int(line) not in order]
        if strange:
            raise UserError(f"{path}: holds {strange[0]}, which is no class of meta.mat; restore the owner's file")
        return [order[int(line)] for line in lines]


def _label(path: Path, labels: list[int]) -> int:
    number = path.stem.rpartition("_")[2]
    if not number.isdigit() or not 1 <= int(number) <= len(labels):
        raise UserError(f"{path}: the truth has classes of images 1 to {len(labels)} alone; remove the file")
    return labels[int(number) - 1]
