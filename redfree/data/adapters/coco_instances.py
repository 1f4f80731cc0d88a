"""The instances of a COCO annotation file: read in little memory, drawn by the owner's own library."""

from __future__ import annotations

import gc
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as pycocotools_mask

from redfree.errors import UserError

# Its stubs know neither packed polygons nor run lengths as text.
run_lengths: Any = pycocotools_mask
# Polygons as x0, y0, x1, y1, ... in pixels, or run lengths down the columns, as "counts" and "size".
Segmentation = list["array[float]"] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outline:
    """What one annotation draws on an image of a height and width in pixels."""

    height: int
    width: int
    segmentation: Segmentation

    def is_empty(self) -> bool:
        """Whether no pixel is drawn.

        Raises:
            ValueError: as of `mask`.
        """
        return not run_lengths.area(self._run_lengths())

    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool; the union of the polygons.

        Raises:
            ValueError: a polygon is no outline on this image, or the run lengths are not those of a mask of its size.
        """
        encoded = self._run_lengths()
        mask = np.ascontiguousarray(run_lengths.decode(encoded))
        # Pixels after the last run are never written.
        if mask.sum() != run_lengths.area(encoded):
            raise ValueError("its run lengths end before the image does")
        return mask.astype(bool)

    def _run_lengths(self) -> dict[str, Any]:
        size = [self.height, self.width]
        if isinstance(self.segmentation, list):
            self._check_polygons(self.segmentation)
            return dict(run_lengths.merge(run_lengths.frPyObjects(self.segmentation, *size)))
        counts = self.segmentation.get("counts")
        if self.segmentation.get("size") != size:
            raise ValueError(f"its run lengths are of size {self.segmentation.get('size')}, its image is {size}")
        if isinstance(counts, str):
            return self.segmentation
        if not isinstance(counts, list) or min(counts, default=0) < 0 or sum(counts) != self.height * self.width:
            raise ValueError("its run lengths do not add up to the pixels of the image")
        return dict(run_lengths.frPyObjects(self.segmentation, *size))

    def _check_polygons(self, polygons: Sequence[array[float]]) -> None:
        """Refuses what makes pycocotools take memory without limit: it walks along each edge in fifths of a pixel."""
        side = max(self.height, self.width)
        for polygon in polygons:
            values = np.asarray(polygon)
            if len(values) % 2 or not ((values >= -side) & (values <= 2 * side)).all():
                raise ValueError("a polygon is not pairs of coordinates on the image")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One instance, as its annotation describes it.

    Attributes:
        id: unique in COCO.
        image_id: its image.
        category_id: its category.
        is_crowd: whether it stands for many objects.
        area: of the instance, in pixels.
        is_thin: whether it is less than two pixels thick on average, so that it may cover no pixel's centre.
        segmentation: polygons of at least three points each, perhaps none, or run lengths.
    """

    id: int
    image_id: int
    category_id: int
    is_crowd: bool
    area: float
    is_thin: bool
    segmentation: Segmentation


@dataclass(frozen=True)
class Instances:
    """What an annotation file holds.

    Attributes:
        path: the file.
        sizes: height and width of each image by its id, of those without instances too.
        categories: id of each category by its name.
        annotations: all instances, crowds included, in the order of the file.
    """

    path: Path
    sizes: Mapping[int, tuple[int, int]]
    categories: Mapping[str, int]
    annotations: Sequence[Annotation]

    def size_of(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image.

        Raises:
            UserError: the file does not list the image.
        """
        if image_id not in self.sizes:
            raise UserError(
                f"{self.path}: annotates image {image_id}, which it does not list; restore the owner's file"
            )
        return self.sizes[image_id]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pauses the search for reference cycles, which takes half the time of making a million objects without one."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_instances(path: Path) -> Instances:
    """Reads `instances_*2017.json`.

    Raises:
        UserError: it is not such a file.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_packed)
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        categories = {category["name"]: category["id"] for category in content["categories"]}
        return Instances(path, sizes, categories, content["annotations"])
    except (ValueError, TypeError, KeyError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path}: is not a file of COCO instances ({reason}); restore the owner's file") from None


def _packed(value: dict[str, Any]) -> dict[str, Any] | Annotation:
    """Packs each annotation while the file is parsed, which halves the memory: 140 MB a 100,000 instances, not 320."""
    if "image_id" not in value:
        return value
    return Annotation(
        value["id"],
        value["image_id"],
        value["category_id"],
        bool(value["iscrowd"]),
        value["area"],
        value["area"] < 2 * max(value["bbox"][2:]),
        _packed_segmentation(value["segmentation"]),
    )


def _packed_segmentation(segmentation: dict[str, Any] | list[list[float]]) -> Segmentation:
    """Leaves out polygons of fewer than three points: they cover nothing, and pycocotools takes two for a box."""
    if isinstance(segmentation, dict):
        return segmentation
    return [array("d", polygon) for polygon in segmentation if len(polygon) >= 6]
