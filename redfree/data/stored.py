"""Samples whose images stay on disk: what is kept of each is its packed mask, its prompt and its hashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import datasets
import numpy as np
from numpy.typing import NDArray

from redfree.data.schema import Prompt, Sample, decode_row
from redfree.progress import track

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class PackedMask:
    """A mask of one bit a pixel."""

    shape: tuple[int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> PackedMask:
        """Packs (H, W) bool."""
        return cls((mask.shape[0], mask.shape[1]), np.packbits(mask))

    def unpacked(self) -> NDArray[np.bool_]:
        """The mask, (H, W) bool."""
        count = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=count).view(bool).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class StoredSample:
    """A `Sample` whose image is read anew each time it is asked for."""

    id: str
    prompt: Prompt
    read_image: Callable[[], Image]
    packed_mask: PackedMask
    packed_ignore: PackedMask | None
    hashes: tuple[str, str]

    @property
    def image(self) -> Image:
        """(H, W, 3) uint8 RGB, decoded now."""
        return self.read_image()

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, True on the object."""
        return self.packed_mask.unpacked()

    @property
    def ignore(self) -> NDArray[np.bool_] | None:
        """(H, W) bool, True where nothing is known of the truth; None where every pixel counts."""
        return self.packed_ignore.unpacked() if self.packed_ignore else None

    def image_sha256(self) -> str:
        """As of `Sample`."""
        return self.hashes[0]

    def fingerprint(self) -> str:
        """As of `Sample`."""
        return self.hashes[1]


AnySegmentationSample = Sample | StoredSample


def store_samples(rows: datasets.Dataset, label: str) -> list[StoredSample]:
    """Reads every row of `SEGMENTATION` features once, behind a progress bar, and keeps all but the images.

    Raises:
        UserError: a row is defective.
    """
    return [_stored(rows, index) for index in track(range(len(rows)), len(rows), label)]


def _stored(rows: datasets.Dataset, index: int) -> StoredSample:
    sample = decode_row(rows[index])

    def read_image() -> Image:
        row: dict[str, Any] = rows.select_columns("image")[index]
        return np.asarray(row["image"].convert("RGB"))

    ignore = None if sample.ignore is None else PackedMask.of(sample.ignore)
    hashes = (sample.image_sha256(), sample.fingerprint())
    return StoredSample(sample.id, sample.prompt, read_image, PackedMask.of(sample.mask), ignore, hashes)


@dataclass(frozen=True)
class LazyImages(Sequence[Image]):
    """The images of some samples, each read when it is indexed; a slice reads all of its images."""

    samples: Sequence[AnySegmentationSample]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        """One image, or those of a slice."""
        if isinstance(index, slice):
            return [sample.image for sample in self.samples[index]]
        return self.samples[index].image
