"""What one dataset's file provides: where the parts of its samples are, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import About
from redfree.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One sample, not read yet.

    Attributes:
        id: unique within its dataset, the same on every machine.
        files: all files of the sample, its image first; empty where the samples are no files of their own.
        split: train or test, as its owner divides the dataset; None where the owner does not.
        group: samples of one group stay in one split; None for a sample that stands for itself.
        key: what its source needs beside the files, such as the id of an annotation.
    """

    id: str
    files: tuple[Path, ...] = ()
    split: str | None = None
    group: str | None = None
    key: Any = None


@dataclass(frozen=True)
class SegmentationTarget:
    """The truth of one segmentation sample.

    Attributes:
        mask: (H, W) bool, True on the object, never empty.
        ignore: (H, W) bool, True where nothing is known of the truth, disjoint from the mask; None where all counts.
        points: (x, y) pixels that came with the sample; None where a rule places the prompt.
    """

    mask: NDArray[np.bool_]
    ignore: NDArray[np.bool_] | None = None
    points: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True)
class DepthTarget:
    """The truth of one depth sample: (H, W) float32 metres, and (H, W) bool where they count."""

    depth: NDArray[np.float32]
    valid: NDArray[np.bool_]


Target = SegmentationTarget | DepthTarget | int


class Source(Protocol):
    """One dataset in its owner's layout. A target of a classification dataset is the class, 0..K-1."""

    def entries(self) -> Sequence[Entry]:
        """All samples of every split, in natural order, without decoding anything.

        Raises:
            UserError: the folder is not the dataset as its owner distributes it; the message says what is missing.
        """
        ...

    def counts(self) -> Mapping[str, int]:
        """Number of images of each part, by the names under which `About.splits` publishes them."""
        ...

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The image of a sample, (H, W, 3) uint8 RGB.

        Raises:
            UserError: the image is missing or defective.
        """
        ...

    def target(self, entry: Entry) -> Target:
        """The truth of a sample, of the image's height and width where it has any.

        Raises:
            UserError: its file is missing or defective, or holds values that the dataset does not have.
        """
        ...


def require(path: Path, about: About) -> Path:
    """Checks that a file or folder of a dataset is there.

    Raises:
        UserError: it is not; the message names it and says where the dataset comes from.
    """
    if not path.exists():
        raise UserError(
            f"{path}: is missing, so this is not {about.title} as its owner distributes it; "
            f"see `redfree fetch {about.name}` for the expected folders"
        )
    return path
