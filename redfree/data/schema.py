"""The standard samples of the three tasks, as stored (Hugging Face `datasets`) and as read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        "ignore": datasets.Image(),
        "prompt": {
            "points": datasets.List(datasets.List(datasets.Value("float32"), length=2)),
            "labels": datasets.List(datasets.Value("int8")),
            "box": datasets.List(datasets.Value("float32")),
        },
    }
)
DEPTH = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "depth": datasets.Image(mode="F"),
        "valid": datasets.Image(),
    }
)
CLASSIFICATION = datasets.Features(
    {"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Value("int64")}
)


@dataclass(frozen=True)
class Prompt:
    """Point prompts of one object, a box around it, or both.

    Attributes:
        points: (x, y) pixel indices in the image's own frame.
        labels: 1 for a point on the object, 0 for one on the background; as many as points.
        box: (x0, y0, x1, y1) pixel indices of its upper left and lower right pixel, None without a box.
    """

    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    box: tuple[float, float, float, float] | None = None

    def __repr__(self) -> str:
        """The fields that are set; split hashes of prompts without a box rest on it."""
        box = "" if self.box is None else f", box={self.box!r}"
        return f"Prompt(points={self.points!r}, labels={self.labels!r}{box})"


def image_sha256(image: NDArray[np.uint8]) -> str:
    """Hex SHA-256 of the shape and the pixels of an image."""
    return _digest(image.shape, image).hexdigest()


def _digest(facts: object, image: NDArray[np.uint8]) -> hashlib._Hash:
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest


@dataclass(frozen=True)
class Sample:
    """One image, one object, one prompt.

    Attributes:
        id: unique within its dataset.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, True on the object, never empty.
        prompt: where the object is.
        ignore: (H, W) bool, True where the owner says nothing of the truth; None where every pixel counts.
    """

    id: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    prompt: Prompt
    ignore: NDArray[np.bool_] | None = None

    def image_sha256(self) -> str:
        """Hex SHA-256 of the pixels alone."""
        return image_sha256(self.image)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the pixels, the mask, the ignored region and the prompt; the id does not matter."""
        digest = _digest((self.image.shape, self.prompt), self.image)
        digest.update(np.packbits(self.mask).tobytes())
        if self.ignore is not None:
            digest.update(np.packbits(self.ignore).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class DepthSample:
    """One image with the distance of its pixels.

    Attributes:
        id: unique within its dataset.
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 metres, 0 where there is none.
        valid: (H, W) bool, True where depth counts: measured, within the dataset's range and crop.
    """

    id: str
    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def image_sha256(self) -> str:
        """Hex SHA-256 of the pixels alone."""
        return image_sha256(self.image)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the pixels, the depth and where it counts."""
        digest = _digest((self.image.shape, "depth"), self.image)
        digest.update(np.ascontiguousarray(self.depth).data)
        digest.update(np.packbits(self.valid).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class LabelledSample:
    """One image of one class.

    Attributes:
        id: unique within its dataset.
        image: (H, W, 3) uint8 RGB.
        label: class, 0..K-1.
    """

    id: str
    image: NDArray[np.uint8]
    label: int

    def image_sha256(self) -> str:
        """Hex SHA-256 of the pixels alone."""
        return image_sha256(self.image)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the pixels and the class."""
        return _digest((self.image.shape, self.label), self.image).hexdigest()


AnySample = Sample | DepthSample | LabelledSample


class Fingerprinted(Protocol):
    """A sample of any task, as far as a split's hash needs it."""

    @property
    def id(self) -> str:
        """Unique within its dataset."""
        ...

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that a sample holds but its id."""
        ...


class DatasetAdapter(Protocol):
    """A dataset adapter: hands out splits whose samples are disjoint."""

    def load(self, split: str, count: int | None, seed: int) -> datasets.Dataset:
        """Returns rows of one split, in the features of the dataset's task.

        Args:
            split: search, train or test.
            count: number of rows; None for the whole split.
            seed: seed of the draw; the test split does not depend on it.

        Raises:
            UserError: the split holds fewer rows.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Returns name, revision, source, licence, prompt rule, and the options that change samples."""
        ...

    def verify(self) -> list[str]:
        """Returns one line for each defect found; an empty list where there is none."""
        ...


def png_bytes(array: NDArray[Any]) -> bytes:
    """Encodes a uint8 or bool array as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt in `SEGMENTATION` features; no box is an empty list."""
    points = [list(point) for point in prompt.points]
    return {"points": points, "labels": list(prompt.labels), "box": list(prompt.box or ())}


def encode_rows(samples: list[Sample]) -> datasets.Dataset:
    """Stores samples in memory as rows of `SEGMENTATION` features."""

    def file(array: NDArray[Any] | None) -> dict[str, Any] | None:
        return None if array is None else {"bytes": png_bytes(array), "path": None}

    columns: dict[str, list[Any]] = {
        "id": [s.id for s in samples],
        "image": [file(s.image) for s in samples],
        "mask": [file(s.mask) for s in samples],
        "ignore": [file(s.ignore) for s in samples],
        "prompt": [prompt_row(s.prompt) for s in samples],
    }
    return datasets.Dataset.from_dict(columns, features=SEGMENTATION)


def decode_row(row: dict[str, Any]) -> Sample:
    """Reads one row of `SEGMENTATION` features."""
    prompt, ignore = row["prompt"], row["ignore"]
    points = tuple((float(x), float(y)) for x, y in prompt["points"])
    box = tuple(float(side) for side in prompt["box"])
    return Sample(
        id=row["id"],
        image=np.asarray(row["image"].convert("RGB")),
        mask=_as_bool(row["mask"]),
        prompt=Prompt(points, tuple(int(label) for label in prompt["labels"]), box or None),  # type: ignore[arg-type]
        ignore=None if ignore is None else _as_bool(ignore),
    )


def _as_bool(image: Image.Image) -> NDArray[np.bool_]:
    return np.asarray(np.asarray(image.convert("L")) >= 128)


def decode_depth_row(row: dict[str, Any]) -> DepthSample:
    """Reads one row of `DEPTH` features."""
    depth = np.asarray(row["depth"], np.float32)
    return DepthSample(row["id"], np.asarray(row["image"].convert("RGB")), depth, _as_bool(row["valid"]))


def decode_labelled_row(row: dict[str, Any]) -> LabelledSample:
    """Reads one row of `CLASSIFICATION` features."""
    return LabelledSample(row["id"], np.asarray(row["image"].convert("RGB")), int(row["label"]))


def read_samples(rows: datasets.Dataset) -> Iterator[Sample]:
    """Decodes rows of `SEGMENTATION` features one at a time."""
    return (decode_row(row) for row in rows)


# Features and decoder of the rows of each task.
TASKS: Mapping[str, tuple[datasets.Features, Callable[[dict[str, Any]], AnySample]]] = {
    "segmentation": (SEGMENTATION, decode_row),
    "depth": (DEPTH, decode_depth_row),
    "classification": (CLASSIFICATION, decode_labelled_row),
}


def split_sha256(samples: Iterable[Fingerprinted]) -> str:
    """Hex SHA-256 of the ids and fingerprints of a split, in order."""
    lines = [f"{sample.id} {sample.fingerprint()}\n" for sample in samples]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
