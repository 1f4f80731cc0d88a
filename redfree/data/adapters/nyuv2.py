"""NYU Depth V2: indoor scenes with the depth of a Kinect, 480 x 640 pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from redfree.data.about import About, about_of
from redfree.data.adapters.depth_maps import counted, listed_pairs, read_depth
from redfree.data.adapters.matlab import read_variable
from redfree.data.reading import read_image
from redfree.data.source import DepthTarget, Entry, require
from redfree.errors import UserError
from redfree.validation import Strict

HEIGHT, WIDTH = 480, 640
# Rows and columns that are scored since Eigen et al. 2014; the depth of the others is not reliable.
EIGEN_CROP = (slice(45, 471), slice(41, 601))
# Metres, not included: the sensor reports 10 where something is farther.
MAXIMUM = 10.0
_MILLIMETRES = 1000
_ARRAYS = {"raw": "rawDepths", "filled": "depths"}
# Where an extraction keeps its splits: the official 795 and 654, or BTS's 24,231 frames of the raw recordings.
_FOLDERS = {"train": ("train", "official_splits/train", "sync"), "test": ("test", "official_splits/test")}


class Nyuv2:
    """The labelled images in the owner's MATLAB file, or as the scripts of BTS extract them.

    The two are not the same images: the extraction is JPEG with a black border, its depth is rounded to millimetres.
    """

    class Options(Strict):
        """What is read as the truth.

        Attributes:
            source: "mat", the owner's `nyu_depth_v2_labeled.mat`; "bts", files extracted from it.
            truth: "raw", as the sensor measured, with holes; "filled", holes painted in by the owner, "mat" only.
            crop: whether only the pixels of Eigen et al. count: rows 45 to 470 and columns 41 to 600.
        """

        source: Literal["mat", "bts"] = "mat"
        truth: Literal["raw", "filled"] = "raw"
        crop: bool = True

        @model_validator(mode="after")
        def _is_there(self) -> Nyuv2.Options:
            if self.source == "bts" and self.truth == "filled":
                raise ValueError("source bts has no filled depth; set truth to raw or source to mat")
            return self

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the files are."""
        self.options, about = options or self.Options(), about_of("nyuv2")
        self._layout = (
            _MatlabFile(root, about, self.options.truth) if self.options.source == "mat" else _Extraction(root, about)
        )

    def entries(self) -> list[Entry]:
        """One sample an image: `00001` by MATLAB's number, which starts at 1, or `bathroom-00000` by the file's."""
        return self._layout.entries()

    def counts(self) -> Mapping[str, int]:
        """Number of images for training and test."""
        return Counter(entry.split for entry in self.entries() if entry.split)

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph, (480, 640, 3)."""
        return self._layout.image(entry)

    def target(self, entry: Entry) -> DepthTarget:
        """The depth, up to 10 metres; holes and, unless told otherwise, the border do not count.

        Raises:
            UserError: the file is missing or broken, or is not of 640 x 480 pixels.
        """
        depth = self._layout.depth(entry)
        if depth.shape != (HEIGHT, WIDTH):
            where = entry.files[-1] if entry.files else f"nyuv2: {entry.id}"
            raise UserError(
                f"{where}: is {depth.shape[1]}x{depth.shape[0]}, not {WIDTH}x{HEIGHT}; restore the owner's file"
            )
        rows, columns = EIGEN_CROP if self.options.crop else (slice(None), slice(None))
        return DepthTarget(depth, counted(depth, rows, columns, MAXIMUM))


@dataclass(frozen=True)
class _MatlabFile:
    """`nyu_depth_v2_labeled.mat`, an HDF5 file whose axes are those of MATLAB in reverse, and `splits.mat`.

    The file is opened anew for each sample, which takes a third of a millisecond: no handle is ever shared with
    another process.
    """

    root: Path
    about: About
    truth: Literal["raw", "filled"]

    def entries(self) -> list[Entry]:
        count = self._count()
        numbers = [(int(number), split) for split in _FOLDERS for number in self._numbers(split)]
        strange = [number for number, _ in numbers if not 1 <= number <= count]
        if strange:
            raise UserError(
                f"{self._splits()}: names image {strange[0]}, but {self._labelled()} has 1 to {count}; "
                "restore the owner's files"
            )
        return [Entry(f"{number:05d}", split=split, key=number - 1) for number, split in sorted(numbers)]

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        return self._transposed("images", entry.key)

    def depth(self, entry: Entry) -> NDArray[np.float32]:
        return self._transposed(_ARRAYS[self.truth], entry.key)

    def _labelled(self) -> Path:
        return require(self.root / "nyu_depth_v2_labeled.mat", self.about)

    def _splits(self) -> Path:
        return require(self.root / "splits.mat", self.about)

    def _numbers(self, split: str) -> NDArray[Any]:
        return np.ravel(read_variable(self._splits(), f"{split}Ndxs"))

    def _count(self) -> int:
        with self._array("images") as images:
            shape = images.shape
        if len(shape) != 4 or shape[1:] != (3, WIDTH, HEIGHT):
            raise UserError(
                f"{self._labelled()}: images is {shape}, not (N, 3, {WIDTH}, {HEIGHT}); restore the owner's file"
            )
        return int(shape[0])

    def _transposed(self, name: str, index: int) -> NDArray[Any]:
        """One sample of an array, in the order of axes that MATLAB shows."""
        with self._array(name) as array:
            return np.ascontiguousarray(array[index].T)

    @contextmanager
    def _array(self, name: str) -> Iterator[Any]:
        path = self._labelled()
        try:
            with h5py.File(path, "r") as file:
                yield file[name]
        except (OSError, LookupError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: {name} is not readable ({reason}); download the file anew") from error


@dataclass(frozen=True)
class _Extraction:
    """`<split>/<scene>/rgb_00000.jpg` and `sync_depth_00000.png`, in millimetres; numbers start at 0."""

    root: Path
    about: About

    def entries(self) -> list[Entry]:
        found = [entry for split in _FOLDERS for entry in self._part(split)]
        if not found:
            require(self.root / "test", self.about)
        return found

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        return read_image(entry.files[0])

    def depth(self, entry: Entry) -> NDArray[np.float32]:
        return read_depth(entry.files[1], _MILLIMETRES)

    def _part(self, split: str) -> list[Entry]:
        listed = self.root / f"nyudepthv2_{split}_files_with_gt.txt"
        folders = [self.root / name for name in _FOLDERS[split]]
        folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        if listed.is_file():
            require(folder, self.about)
            pairs = [(folder / image, folder / depth) for image, depth in listed_pairs(listed)]
        else:
            images = folder.glob("*/rgb_*.jpg")
            pairs = [(image, image.with_name(f"sync_depth_{_number(image)}.png")) for image in images]
        return [Entry(f"{pair[0].parent.name}-{_number(pair[0])}", pair, split) for pair in sorted(pairs)]


def _number(image: Path) -> str:
    return image.stem.removeprefix("rgb_")
