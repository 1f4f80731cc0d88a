"""The user's own images with masks, and optionally points."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from redfree.data.folder import Entry as Triple
from redfree.data.folder import check_points, list_entries, read_points
from redfree.data.listing import visible_files, visible_folders
from redfree.data.reading import read_image, read_mask
from redfree.data.source import Entry, SegmentationTarget
from redfree.errors import UserError
from redfree.validation import Strict

# The size of the images may follow, as in search-1024.
_SPLIT_FOLDER = re.compile(r"(search|train|test)(-\d+)?")


class Folder:
    """Images in one of the layouts of `redfree.data.folder.FolderDataset`, or in one folder of them for each split.

    Folders of splits are named search, train and test, with the size of their images after a hyphen where it pleases,
    such as the `{search,train,test}-1024` of the paper's authors; search images are training images that choose. A
    manifest lies in its folder as its one `.jsonl` file. Without such folders the images are not divided.

    Where a stem occurs in several folders every id is `FOLDER/STEM`, and training images of one stem are kept together:
    the authors' search images are often among their training images.
    """

    class Options(Strict):
        """How masks are read.

        Attributes:
            mask_threshold: the least value of the object; None where masks hold 0 and one other value.
        """

        mask_threshold: int | None = Field(default=None, ge=1)

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the images are and how masks are read.

        Args:
            root: a folder or a `.jsonl` manifest.
            options: how masks are read.
        """
        self.root, self.options = root, options or self.Options()

    def entries(self) -> list[Entry]:
        """One sample an image; see `Source.entries`.

        Raises:
            UserError: also where some images have points and others have none.
        """
        folders = _split_folders(self.root)
        if not folders:
            return [Entry(triple.id, _files(triple), key=triple) for triple in list_entries(self.root)[1]]
        listed = {folder: list_entries(_manifest_in(folder))[1] for folder in folders}
        check_points([triple for triples in listed.values() for triple in triples])
        return _divided(listed)

    def counts(self) -> Mapping[str, int]:
        """Empty: no counts are published of the user's own images."""
        return {}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The image."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The object, with all points of its file."""
        triple: Triple = entry.key
        mask = read_mask(triple.mask, self.options.mask_threshold)
        return SegmentationTarget(mask, points=_points(triple))


def _points(triple: Triple) -> tuple[tuple[float, float], ...] | None:
    if triple.point is None:
        return None
    return read_points(triple.point) if isinstance(triple.point, Path) else (triple.point,)


def _files(triple: Triple) -> tuple[Path, ...]:
    """Image first and mask last, where messages look for them."""
    points = (triple.point,) if isinstance(triple.point, Path) else ()
    return (triple.image, *points, triple.mask)


def _split_folders(root: Path) -> list[Path]:
    """The folders of splits, none where the root is itself in one of the layouts."""
    if not root.is_dir() or ((root / "images").is_dir() and (root / "masks").is_dir()):
        return []
    folders = [folder for folder in visible_folders(root) if _SPLIT_FOLDER.fullmatch(folder.name)]
    splits = {_split(folder) for folder in folders}
    if len(splits) == 1:
        (there,) = splits
        other = "test" if there == "train" else "train or search"
        raise UserError(
            f"{root}: has {folders[0].name} but no folder {other}; add it, "
            f"or take {folders[0]} as the root to divide its images by seed"
        )
    return folders


def _split(folder: Path) -> str:
    return "test" if folder.name.startswith("test") else "train"


def _manifest_in(folder: Path) -> Path:
    """The manifest of a folder, or the folder itself where there is none."""
    manifests = [path for path in visible_files(folder) if path.suffix.lower() == ".jsonl"]
    if len(manifests) > 1:
        raise UserError(f"{manifests[1]}: is a second manifest beside {manifests[0].name}; remove one of them")
    return manifests[0] if manifests else folder


def _divided(listed: Mapping[Path, list[Triple]]) -> list[Entry]:
    """Entries of the folders of splits."""
    stems = Counter(triple.id for triples in listed.values() for triple in triples)
    in_train = Counter(triple.id for folder in listed if _split(folder) == "train" for triple in listed[folder])
    unique = max(stems.values()) == 1

    def entry(folder: Path, triple: Triple) -> Entry:
        id_ = triple.id if unique else f"{folder.name}/{triple.id}"
        together = _split(folder) == "train" and in_train[triple.id] > 1
        return Entry(id_, _files(triple), _split(folder), triple.id if together else None, triple)

    return [entry(folder, triple) for folder, triples in listed.items() for triple in triples]
