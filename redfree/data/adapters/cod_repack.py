"""What the sets of camouflaged objects share: the repack that their community exchanges, and how masks are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from redfree.data.listing import by_stem, images_in
from redfree.data.source import Entry
from redfree.errors import UserError
from redfree.validation import Strict

_IMAGES = ("Imgs", "Image", "Images")
_MASKS = ("GT", "Masks")


class MaskOptions(Strict):
    """How masks are read.

    Attributes:
        mask_threshold: the least value of the object, 1 to 255; the edges of many masks are antialiased.
    """

    mask_threshold: int = Field(default=128, ge=1, le=255)


@dataclass(frozen=True)
class Part:
    """One split.

    Attributes:
        split: train or test.
        images: folder of the images.
        masks: folder of the masks, PNG files of the images' names.
    """

    split: str
    images: Path
    masks: Path


def entries_of(parts: Iterable[Part], mark: str) -> list[Entry]:
    """One sample an image, in natural order.

    Args:
        parts: the splits.
        mark: what the names of the dataset's images contain; others are not of the dataset.

    Raises:
        UserError: two images have the same name.
    """
    return [entry for part in parts for entry in _entries_of(part, mark)]


def _entries_of(part: Part, mark: str) -> list[Entry]:
    images = by_stem(path for path in images_in(part.images) if mark in path.stem)
    return [Entry(stem, (path, part.masks / f"{stem}.png"), part.split) for stem, path in images.items()]


def count_splits(entries: Iterable[Entry]) -> Mapping[str, int]:
    """Number of images of each split."""
    return Counter(str(entry.split) for entry in entries)


def repack_parts(root: Path, name: str, mark: str) -> list[Part]:
    """Splits in the repack of SINet and its successors.

    Its test sets are `TestDataset/NAME/{Imgs,GT}`, once `NAME_TestingDataset/{Image,GT}`; either may be the root
    itself. Its one training set, `TrainDataset/{Imgs,GT}`, mixes COD10K and CAMO, which only the names of the files
    tell apart.

    Args:
        root: folder of the dataset.
        name: the dataset's name there, such as CAMO.
        mark: what the names of the dataset's images contain.

    Returns:
        The splits that are there; none where there is no test set.

    Raises:
        UserError: a folder of images has no masks, or a test set holds images of another dataset.
    """
    places = (root / "TestDataset" / name, root / name, root / f"{name}_TestingDataset", root)
    test = next(filter(None, (_part_in(place, "test") for place in places)), None)
    if test is None:
        return []
    _refuse_others(test.images, name, mark)
    train = _part_in(root / "TrainDataset", "train")
    return [train, test] if train else [test]


def _part_in(place: Path, split: str) -> Part | None:
    """The part that a folder holds, if any."""
    images, masks = ([place / name for name in names if (place / name).is_dir()] for names in (_IMAGES, _MASKS))
    if images and not masks:
        raise UserError(f"{place}: has {images[0].name} but neither GT nor Masks; unpack the archive anew")
    return Part(split, images[0], masks[0]) if images else None


def _refuse_others(images: Path, name: str, mark: str) -> None:
    # The training set has the same folders: taken for a test set, it would be tested on.
    for path in images_in(images):
        if mark not in path.stem:
            raise UserError(f"{path}: is not an image of {name}, whose names hold {mark!r}; move it elsewhere")


def not_there(root: Path, name: str, layouts: str) -> UserError:
    """An error for a root that has none of the layouts."""
    return UserError(f"{root}: has neither {layouts}; see `redfree fetch {name}` for the expected folders")
