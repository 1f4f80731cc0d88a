"""COCO 2017: photographs of everyday scenes with the outline of each object of 80 categories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from redfree.data.about import about_of
from redfree.data.adapters.coco_instances import Annotation, Instances, Outline, collection_paused, read_instances
from redfree.data.reading import read_image
from redfree.data.source import Entry, SegmentationTarget, require
from redfree.errors import UserError, unknown
from redfree.validation import Strict

Drawn = TypeVar("Drawn")
# The owner publishes no truth of the test images: val is our test split.
_SPLITS = {"train": "train", "val": "test"}


class Coco2017:
    """One sample an instance: the folders `train2017`, `val2017` and `annotations` of the owner's three archives.

    The id of a sample is `<image>-<annotation>`, and all instances of one image are a group. Crowds are left out, and
    so are instances without a pixel: of area 0 by their annotation, without a polygon of three points, or too thin to
    cover the centre of any pixel. Where only one of the folders of images is there, only its instances are read, and
    `counts` lacks the other.

    Outlines are drawn by pycocotools, as by the owner; other libraries also draw the pixels on the outline.
    """

    class Options(Strict):
        """Which instances are read.

        Attributes:
            min_area: least area of an instance in pixels, by the `area` of its annotation.
            categories: names of the categories that are read, such as "person"; None for all 80.
        """

        min_area: int = Field(default=0, ge=0)
        categories: list[str] | None = Field(default=None, min_length=1)

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the folders are, and which instances are read."""
        self.root, self.about = root, about_of("coco2017")
        self.options = options or self.Options()

    def entries(self) -> list[Entry]:
        """One sample an instance, ordered by image and annotation.

        Parses the annotation files at each call, which takes some 1.2 GB at its peak for the owner's 860,000 training
        instances.

        Raises:
            UserError: also where an option names an unknown category.
        """
        with collection_paused():
            return [entry for part in self._parts() for entry in self._part(part)]

    def _parts(self) -> list[str]:
        """The parts whose images are unpacked; the archive of annotations always holds those of both."""
        found = [part for part in _SPLITS if self._images(part).is_dir()]
        if not found:
            require(self._images("val"), self.about)
        return found

    def _images(self, part: str) -> Path:
        return self.root / f"{part}2017"

    def _part(self, part: str) -> Iterator[Entry]:
        path = require(self.root / "annotations" / f"instances_{part}2017.json", self.about)
        instances, folder = read_instances(path), self._images(part)
        wanted = sorted(self._wanted(instances), key=attrgetter("image_id", "id"))
        for image_id, of_image in groupby(wanted, attrgetter("image_id")):
            size, name = instances.size_of(image_id), f"{image_id:012d}"
            files = (folder / f"{name}.jpg", path)
            for annotation in of_image:
                entry = Entry(
                    f"{name}-{annotation.id}", files, _SPLITS[part], name, Outline(*size, annotation.segmentation)
                )
                if not (annotation.is_thin and _drawn(entry, Outline.is_empty)):
                    yield entry

    def _wanted(self, instances: Instances) -> Iterator[Annotation]:
        categories, least = self._category_ids(instances.categories), self.options.min_area
        for annotation in instances.annotations:
            has_pixels = annotation.area > 0 and annotation.segmentation and not annotation.is_crowd
            if has_pixels and annotation.area >= least and annotation.category_id in categories:
                yield annotation

    def _category_ids(self, known: Mapping[str, int]) -> set[int]:
        names = known if self.options.categories is None else self.options.categories
        for name in names:
            if name not in known:
                raise unknown("category", name, known)
        return {known[name] for name in names}

    def counts(self) -> Mapping[str, int]:
        """Number of images of the parts that are there, of images without instances too."""
        return {part: sum(1 for _ in self._images(part).glob("[0-9]*.jpg")) for part in self._parts()}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph; a few are grey or CMYK files."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The instance."""
        mask = _drawn(entry, Outline.mask)
        if not mask.any():
            raise _defect(entry, "it has no pixel on its image")
        return SegmentationTarget(mask)


def _drawn(entry: Entry, draw: Callable[[Outline], Drawn]) -> Drawn:
    try:
        return draw(entry.key)
    except (ValueError, TypeError) as error:
        raise _defect(entry, str(error)) from None


def _defect(entry: Entry, reason: str) -> UserError:
    annotation = entry.id.partition("-")[2]
    return UserError(f"{entry.files[1]}: annotation {annotation} cannot be drawn, {reason}; restore the owner's file")
