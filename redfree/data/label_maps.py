"""Binary samples from semantic label maps: which pixels are the object, and about which nothing is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, model_validator

from redfree.data.reading import read_indices
from redfree.data.source import Entry, SegmentationTarget
from redfree.errors import UserError
from redfree.files import cache_folder, write_text
from redfree.progress import track
from redfree.validation import Strict

# Folder of scanned label maps in the cache.
LABEL_MAPS = "label-maps"
_SCANS = TypeAdapter(list[dict[int, int]])


class LabelMapOptions(Strict):
    """What is the object of a label map.

    Attributes:
        target: "largest", the class with the most pixels in the image, of classes of equal size the one of the lowest
            label; "foreground", every class together, which is all that is not ignored where the dataset has no
            background; "each", one sample for each class in the image. Label maps are scanned once for "each".
        min_area: least number of pixels of a sample of "each"; of no meaning to the others.
    """

    target: Literal["largest", "foreground", "each"] = "largest"
    min_area: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _min_area_means_something(self) -> LabelMapOptions:
        if self.min_area > 1 and self.target != "each":
            raise ValueError(f"min_area leaves out no samples of target {self.target}; drop it, or pass target each")
        return self


@dataclass(frozen=True)
class LabelMaps:
    """The label maps of one dataset. Entries hold an image, its label map, and as key the label of the object or None.

    Attributes:
        title: name of the dataset, for messages.
        classes: name of each class by the label that files store.
        options: what is the object.
        background: labels of what belongs to no class.
        ignored: labels of pixels of which nothing is known. They are neither foreground nor background.
    """

    title: str
    classes: Mapping[int, str]
    options: LabelMapOptions
    background: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()

    def entries(self, images: Sequence[Entry]) -> list[Entry]:
        """Samples of images. Reads nothing unless the target is "each", and then only what was not read before.

        Args:
            images: one entry an image.

        Returns:
            The same for one sample an image; else entries of the id "<id>-<class>", grouped by image.

        Raises:
            UserError: a label map is missing or defective, or holds a label that the dataset does not have.
        """
        if self.options.target != "each":
            return list(images)
        scans = scanned([entry.files[1] for entry in images])
        return [sample for entry, scan in zip(images, scans, strict=True) for sample in self._each(entry, scan)]

    def _each(self, entry: Entry, pixels: Mapping[int, int]) -> list[Entry]:
        self._check(entry.files[1], pixels)
        found = [label for label in sorted(pixels) if label in self.classes and pixels[label] >= self.options.min_area]
        return [replace(entry, id=f"{entry.id}-{self.classes[label]}", group=entry.id, key=label) for label in found]

    def target(self, entry: Entry) -> SegmentationTarget:
        """The object of a sample, and where nothing is known.

        Raises:
            UserError: the label map is missing or defective, holds a label that the dataset does not have, or none of
                its classes.
        """
        path = entry.files[1]
        labels = read_indices(path)
        pixels = count_labels(labels)
        self._check(path, pixels)
        mask = np.isin(labels, self._object(entry, pixels))
        if not mask.any():
            raise UserError(f"{path}: holds no pixel of any class; pass target each, which has no sample of it")
        return SegmentationTarget(mask, self._ignore(labels))

    def _object(self, entry: Entry, pixels: Mapping[int, int]) -> list[int]:
        """Labels of the object."""
        present = [label for label in sorted(pixels) if label in self.classes]
        if self.options.target == "each":
            return [entry.key]
        if self.options.target == "largest":
            return sorted(present, key=lambda label: -pixels[label])[:1]
        return present

    def _ignore(self, labels: NDArray[Any]) -> NDArray[np.bool_] | None:
        ignore = np.isin(labels, list(self.ignored))
        return ignore if ignore.any() else None

    def _check(self, path: Path, labels: Iterable[int]) -> None:
        for label in sorted(labels):
            if not (label in self.classes or label in self.background or label in self.ignored):
                raise UserError(
                    f"{path}: holds the label {label}, which {self.title} has not; restore the owner's file"
                )


def count_labels(labels: NDArray[Any]) -> dict[int, int]:
    """Number of pixels of each label that a label map (H, W) holds."""
    # Ten times as fast as `unique`, but for large labels it would take memory without bound.
    if labels.dtype == np.uint8:
        counts = np.bincount(labels.ravel())
        values = counts.nonzero()[0]
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def scanned(paths: Sequence[Path]) -> list[dict[int, int]]:
    """Number of pixels of each label, for each label map. Read once, then kept in the cache until a file changes.

    Raises:
        UserError: a file is missing or no label map.
    """
    path = cache_folder() / LABEL_MAPS / f"{_key(paths)}.json"
    if (kept := _kept(path)) is not None:
        return kept
    scans = [count_labels(read_indices(each)) for each in track(paths, len(paths), "scan label maps")]
    write_text(path, json.dumps(scans, separators=(",", ":")) + "\n")
    return scans


def _kept(path: Path) -> list[dict[int, int]] | None:
    """A scan of before; None where there is none that can be read, which is made again."""
    try:
        return _SCANS.validate_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _key(paths: Sequence[Path]) -> str:
    """Hex SHA-256 of names, sizes and times of last change."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file; restore the owner's file")
        facts = path.stat()
        digest.update(f"{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()
