"""The standard sample of a segmentation dataset, as stored (Hugging Face `datasets`) and as read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SEGMENTATION = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "mask": datasets.Image(),
        "prompt": {
            "points": datasets.List(datasets.List(datasets.Value("float32"), length=2)),
            "labels": datasets.List(datasets.Value("int8")),
        },
    }
)


@dataclass(frozen=True)
class Prompt:
    """Point prompts of one object, a box around it, or both.

    Attributes:
        points: (x, y) pixel indices in the image's own frame.
        labels: 1 for a point on the object, 0 for one on the background; as many as points.
        box: (x0, y0, x1, y1) of the box's upper left and lower right corner, None without a box.
    """

    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    box: tuple[float, float, float, float] | None = None

    def __repr__(self) -> str:
        """The fields that are set; split hashes of prompts without a box rest on it."""
        box = "" if self.box is None else f", box={self.box!r}"
        return f"Prompt(points={self.points!r}, labels={self.labels!r}{box})"


@dataclass(frozen=True)
class Sample:
    """One image, one object, one prompt.

    Attributes:
        id: unique within its dataset.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, True on the object, never empty.
        prompt: where the object is.
    """

    id: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    prompt: Prompt

    def image_sha256(self) -> str:
        """Hex SHA-256 of the pixels alone."""
        digest = hashlib.sha256(repr(self.image.shape).encode())
        digest.update(np.ascontiguousarray(self.image).tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Hex SHA-256 of the pixels, the mask and the prompt; the id does not matter."""
        digest = hashlib.sha256(repr((self.image.shape, self.prompt)).encode())
        digest.update(np.ascontiguousarray(self.image).tobytes())
        digest.update(np.packbits(self.mask).tobytes())
        return digest.hexdigest()


class SegmentationDataset(Protocol):
    """A dataset adapter: hands out splits whose samples are disjoint."""

    def load(self, split: str, count: int, seed: int) -> datasets.Dataset:
        """Returns `count` rows of `SEGMENTATION` features of one split.

        Args:
            split: search, train or test.
            count: number of rows.
            seed: seed of the draw; the test split does not depend on it.

        Raises:
            UserError: the split holds fewer rows.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Returns name, revision, source, licence and prompt rule."""
        ...

    def verify(self) -> list[str]:
        """Returns one line for each defect found; an empty list where there is none."""
        ...


def png_bytes(array: NDArray[Any]) -> bytes:
    """Encodes a uint8 or bool array as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def encode_rows(samples: list[Sample]) -> datasets.Dataset:
    """Stores samples in memory as rows of `SEGMENTATION` features."""
    columns: dict[str, list[Any]] = {
        "id": [s.id for s in samples],
        "image": [{"bytes": png_bytes(s.image), "path": None} for s in samples],
        "mask": [{"bytes": png_bytes(s.mask), "path": None} for s in samples],
        "prompt": [{"points": [list(p) for p in s.prompt.points], "labels": list(s.prompt.labels)} for s in samples],
    }
    return datasets.Dataset.from_dict(columns, features=SEGMENTATION)


def decode_row(row: dict[str, Any]) -> Sample:
    """Reads one row of `SEGMENTATION` features."""
    prompt = row["prompt"]
    points = tuple((float(x), float(y)) for x, y in prompt["points"])
    return Sample(
        id=row["id"],
        image=np.asarray(row["image"].convert("RGB")),
        mask=np.asarray(row["mask"].convert("L")) >= 128,
        prompt=Prompt(points, tuple(int(label) for label in prompt["labels"])),
    )


def read_samples(rows: datasets.Dataset) -> Iterator[Sample]:
    """Decodes rows one at a time."""
    return (decode_row(row) for row in rows)


def split_sha256(samples: list[Sample]) -> str:
    """Hex SHA-256 of the ids and fingerprints of a split, in order."""
    lines = [f"{sample.id} {sample.fingerprint()}\n" for sample in samples]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
