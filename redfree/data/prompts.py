"""Rules that place a prompt in an object."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from redfree.data.schema import Prompt
from redfree.errors import UserError, unknown

Mask = NDArray[np.bool_]
Point = tuple[float, float]
Rule = Literal["distance_transform", "centroid_hull", "random", "file", "box"]
Components = Literal["all", "largest", "each"]
Outside = Literal["refuse", "keep"]


def distance_transform(mask: Mask) -> Prompt:
    """One positive point where the object is thickest.

    The distance to the background is Euclidean and the image's border counts as background; among equals the first in
    row-major order is taken, so that the point is the same on every machine and lies inside the object. It is the
    first click of `sam2`'s `get_next_point(method="center")`.

    Args:
        mask: (H, W) bool, not empty.

    Raises:
        ValueError: the mask is empty.
    """
    top, left, bottom, right = _bounds(mask)
    # Whatever lies around the tight box is background: one pixel of it holds the nearest of all that is outside.
    padded = np.pad(mask[top:bottom, left:right], 1)
    # Squared distances are integers: equal distances compare equal, which their square roots might not.
    offsets = ndimage.distance_transform_edt(padded, return_distances=False, return_indices=True)
    offsets -= np.indices(padded.shape, dtype=offsets.dtype)
    squared = (offsets * offsets).sum(0)[1:-1, 1:-1]
    row, column = np.unravel_index(int(squared.argmax()), squared.shape)
    return _positive([(float(left + column), float(top + row))])


def centroid_hull(mask: Mask) -> Prompt:
    """One positive point for each outer contour: the centroid of its convex hull, truncated to whole pixels.

    This is how the first lines of the point files of ISIC 2016 and BUSI that the paper's authors published came about.
    Contours come in row-major order of their first pixels, as in these files; OpenCV's own order is the reverse in some
    versions. A hull without area (a pixel, a straight line) has the mean of its contour. A point may lie outside a
    concave object, and an object within a hole of another has no outer contour.

    Args:
        mask: (H, W) bool, not empty.

    Raises:
        ValueError: the mask is empty.
    """
    _bounds(mask)
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours: list[NDArray[np.int32]] = [np.asarray(contour, np.int32) for contour in found]
    contours.sort(key=lambda contour: min((int(y), int(x)) for x, y in contour[:, 0]))
    return _positive([_hull_centroid(contour) for contour in contours])


def random_inside(mask: Mask, rng: np.random.Generator) -> Prompt:
    """One positive point, drawn uniformly from the object's pixels.

    Args:
        mask: (H, W) bool, not empty.
        rng: what it is drawn with.

    Raises:
        ValueError: the mask is empty.
    """
    _bounds(mask)
    inside = np.flatnonzero(mask)
    row, column = divmod(int(inside[rng.integers(len(inside))]), mask.shape[1])
    return _positive([(float(column), float(row))])


def box(mask: Mask, jitter: int, rng: np.random.Generator) -> Prompt:
    """The tight box around the object, each side moved at random.

    Corners are pixel indices, as those of points: the box of one pixel (x, y) is (x, y, x, y), and that of a whole
    image (0, 0, W - 1, H - 1), as in SAM's `batched_mask_to_box`. Moving the sides is how SAM (Kirillov et al. 2023)
    and MedSAM (Ma et al. 2024) imitate loose boxes.

    Args:
        mask: (H, W) bool, not empty.
        jitter: the most pixels that a side moves, 0 or more; each side's shift is uniform over -jitter..jitter. The box
            stays within the image and keeps at least one pixel.
        rng: what the shifts are drawn with.

    Raises:
        ValueError: the mask is empty.
    """
    height, width = mask.shape
    top, left, bottom, right = np.add(_bounds(mask), rng.integers(-jitter, jitter, 4, endpoint=True))
    x0, y0 = np.clip(left, 0, width - 1), np.clip(top, 0, height - 1)
    x1, y1 = np.clip(right - 1, x0, width - 1), np.clip(bottom - 1, y0, height - 1)
    return Prompt((), (), (float(x0), float(y0), float(x1), float(y1)))


_ONE_POINT: Mapping[str, Callable[[Mask, np.random.Generator], Prompt]] = {
    "distance_transform": lambda mask, _: distance_transform(mask),
    "centroid_hull": lambda mask, _: centroid_hull(mask),
    "random": random_inside,
}


_MENDS = {"file": "move it onto the object, or set outside_points to keep in a suite's protocol"}
_OTHER_MEND = "take the rule distance_transform"


@dataclass(frozen=True)
class PromptRule:
    """How the prompt of a sample is placed.

    Attributes:
        rule: distance_transform (the thickest place), centroid_hull, random (uniform inside), file (points that came
            with the sample) or box.
        components: what the rule sees of objects in several 8-connected parts. all: the whole mask, for one point (of
            centroid_hull that of the first contour, of a file the first, as the paper's authors do). largest: the
            largest part alone (among equals the first in row-major order), and of a file the first point in it.
            each: one positive point for each part, and all points of a file. A box is around the whole mask for
            all and each.
        seed: of random and of the jitter; every sample's draw rests on the seed and its id alone.
        jitter: the most pixels that a side of a box moves; other rules do not use it.
        outside: what is done with a file's point outside the object: refuse or keep; other rules always refuse.

    Raises:
        UserError: a name is unknown, or a number is negative.
    """

    rule: Rule = "distance_transform"
    components: Components = "all"
    seed: int = 0
    jitter: int = 0
    outside: Outside = "refuse"

    def __post_init__(self) -> None:
        """Checks the fields, which come from files and the command line."""
        for field, names in (("rule", Rule), ("components", Components), ("outside", Outside)):
            if getattr(self, field) not in get_args(names):
                raise unknown(f"prompt {field}", str(getattr(self, field)), get_args(names))
        for field in ("seed", "jitter"):
            if getattr(self, field) < 0:
                raise UserError(f"prompt {field} is {getattr(self, field)}; pass at least 0")

    @property
    def name(self) -> str:
        """The rule for records, and behind it the settings that are not the default: `file outside=keep`."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}
        changed = [f"{name}={value}" for name, value in settings.items() if value != getattr(PromptRule, name)]
        return " ".join([self.rule, *changed])

    def place(self, mask: Mask, sample_id: str, points: Sequence[Point] | None = None) -> Prompt:
        """Places the prompt of one sample.

        Args:
            mask: (H, W) bool, not empty.
            sample_id: unique within its dataset.
            points: (x, y) pixels that came with the sample; only the rule file uses them.

        Returns:
            Positive points, each inside the object unless a file's are kept outside; or a box.

        Raises:
            UserError: a point lies off the image or outside the object, or a file is asked for and holds no point.
            ValueError: the mask is empty.
        """
        rng = _generator(self.seed, sample_id)
        parts = list(self._parts(mask))
        if self.rule == "box":
            return box(parts[0], self.jitter, rng)
        if self.rule == "file":
            placed = [(point, parts[0]) for point in self._from_file(parts[0], sample_id, points)]
        else:
            placed = [(_ONE_POINT[self.rule](part, rng).points[0], part) for part in parts]
        for point, part in placed:
            self._check(point, part, sample_id)
        return _positive([point for point, _ in placed])

    def _parts(self, mask: Mask) -> Iterator[Mask]:
        """What the rule sees, one mask a point."""
        if self.components == "all" or (self.components == "each" and self.rule in ("file", "box")):
            yield mask
            return
        _bounds(mask)
        labels, count = ndimage.label(mask, np.ones((3, 3), bool))
        largest = int(np.bincount(labels.ravel())[1:].argmax()) + 1
        for label in range(1, count + 1) if self.components == "each" else [largest]:
            yield labels == label

    def _from_file(self, mask: Mask, sample_id: str, points: Sequence[Point] | None) -> Sequence[Point]:
        if not points:
            raise UserError(f"{sample_id}: has no point for the rule file; add one or take another prompt rule")
        if self.components == "each":
            return points
        if self.components == "largest":
            return [next((point for point in points if _contains(mask, point)), points[0])]
        return points[:1]

    def _check(self, point: Point, mask: Mask, sample_id: str) -> None:
        where = f"{sample_id}: the point {point[0]:g},{point[1]:g} of the rule {self.rule}"
        if not _on_image(mask, point):
            size = f"{mask.shape[1]}x{mask.shape[0]}"
            raise UserError(f"{where} is off the {size} image; give x,y in pixels from the top left")
        keep = self.rule == "file" and self.outside == "keep"
        if not keep and not _contains(mask, point):
            raise UserError(f"{where} lies outside the object; {_MENDS.get(self.rule, _OTHER_MEND)}")


def _positive(points: Sequence[Point]) -> Prompt:
    return Prompt(tuple(points), (1,) * len(points))


def _bounds(mask: Mask) -> tuple[int, int, int, int]:
    """Top, left, bottom and right edge of the object."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("the mask is empty")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _hull_centroid(contour: NDArray[np.int32]) -> Point:
    moments = cv2.moments(cv2.convexHull(contour))
    if moments["m00"] == 0:
        x, y = contour[:, 0].mean(0)
    else:
        x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    return float(int(x)), float(int(y))


def _generator(seed: int, sample_id: str) -> np.random.Generator:
    """A stream of one sample's own."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(sample_id.encode()).digest())])


def _on_image(mask: Mask, point: Point) -> bool:
    height, width = mask.shape
    return bool(0 <= point[0] < width and 0 <= point[1] < height)


def _contains(mask: Mask, point: Point) -> bool:
    """Whether the pixel nearest to a point is on the object."""
    if not _on_image(mask, point):
        return False
    # Half a pixel before the far border the nearest index is the one behind it.
    column, row = (min(math.floor(value + 0.5), size - 1) for value, size in zip(point, mask.shape[::-1], strict=True))
    return bool(mask[row, column])


DEFAULT_RULE = PromptRule()
