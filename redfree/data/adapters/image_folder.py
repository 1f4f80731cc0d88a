"""The user's own images of several classes, a folder a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.listing import by_stem, images_in, visible_folders
from redfree.data.reading import read_image
from redfree.data.source import Entry
from redfree.errors import UserError
from redfree.validation import Strict

_TESTS = ("test", "val", "validation")
_EXPECTED = "put the images at CLASS/NAME.jpg, or at train/CLASS/NAME.jpg and test/CLASS/NAME.jpg"


class ImageFolder:
    """Folders of classes, `CLASS/NAME.jpg`, in `train` and one of `test`, `val` and `validation`, or in the root.

    Classes are numbered in the order of their names, compared as text. In the root they are not divided.
    """

    class Options(Strict):
        """Nothing to choose."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the folders are."""
        self.root = root

    def entries(self) -> list[Entry]:
        """One sample an image, of its path below the root without extension; see `Source.entries`.

        Raises:
            UserError: also where a class is empty, or is in one split alone.
        """
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; correct the path")
        splits = self._splits()
        if not splits:
            return self._labelled(None, _classes(self.root))
        classes = {split: _classes(folder) for split, folder in splits.items()}
        _check_same(*classes.values())
        return [entry for split, folders in classes.items() for entry in self._labelled(split, folders)]

    def _splits(self) -> dict[str, Path]:
        """Folders of the splits; none where the root holds classes."""
        train = [folder for folder in (self.root / "train",) if _holds_classes(folder)]
        tests = [folder for folder in (self.root / name for name in _TESTS) if _holds_classes(folder)]
        if not train and not tests:
            return {}
        if len(tests) > 1:
            raise UserError(f"{self.root}: has {tests[0].name} and {tests[1].name}; move away the one not to test on")
        if not train or not tests:
            there, missing = (train or tests)[0].name, "test" if train else "train"
            raise UserError(f"{self.root}: has classes in {there} but none in {missing}; {_EXPECTED}")
        return {"train": train[0], "test": tests[0]}

    def _labelled(self, split: str | None, classes: Mapping[str, Path]) -> list[Entry]:
        return [
            Entry(path.relative_to(self.root).with_suffix("").as_posix(), (path,), split, key=label)
            for label, folder in enumerate(classes.values())
            for path in _images_of(folder)
        ]

    def counts(self) -> Mapping[str, int]:
        """Empty: no counts are published of the user's own images."""
        return {}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The image."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> int:
        """The class of the folder, 0..K-1."""
        return int(entry.key)


def _holds_classes(folder: Path) -> bool:
    # A class may itself be called train: its folder holds images, not folders.
    return folder.is_dir() and bool(visible_folders(folder))


def _classes(folder: Path) -> dict[str, Path]:
    """Folders of classes by name, in the order of their numbers."""
    classes = {path.name: path for path in visible_folders(folder)}
    if not classes:
        raise UserError(f"{folder}: holds no folders of classes; {_EXPECTED}")
    return classes


def _images_of(folder: Path) -> list[Path]:
    images = list(by_stem(images_in(folder)).values())
    if not images:
        raise UserError(f"{folder}: the class holds no images; add some, or remove the folder")
    return images


def _check_same(train: Mapping[str, Path], test: Mapping[str, Path]) -> None:
    """Refuses splits of different classes, whose numbers would not mean the same."""
    for there, other in ((train, test), (test, train)):
        for name, folder in there.items():
            if name not in other:
                missing = next(iter(other.values())).parent / name
                raise UserError(f"{missing}: the class is missing; add it, or remove {folder}")
