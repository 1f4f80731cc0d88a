"""KITTI depth in the split of Eigen et al.: streets from a car, with the depth of accumulated laser scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from redfree.data.about import about_of
from redfree.data.adapters.depth_maps import counted, listed_pairs, read_depth
from redfree.data.reading import read_image
from redfree.data.source import DepthTarget, Entry, require
from redfree.errors import UserError
from redfree.validation import Strict

_UNITS_PER_METRE = 256
# Fractions of height and width as the evaluation of AdaBins has them: first and last row, first and last column.
_CROPS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.03594771, 0.96405229),
    "none": (0.0, 1.0, 0.0, 1.0),
}
_BENCHMARK_HEIGHT, _BENCHMARK_WIDTH = 352, 1216


class Kitti:
    """The owner's drives, and the lists of BTS that say which of their frames are trained and tested on.

    Drives are looked for at the root and up to two folders below it, so that the owner's archives may lie side by side
    (`<date>/<drive>_sync` with the images, `train` and `val` with the depth) or in the folders `input` and `gt`.
    """

    class Options(Strict):
        """What is shown, and which pixels count.

        Attributes:
            crop: rows and columns that count, after Garg et al. or Eigen et al.; "none": all.
            max_depth: metres; pixels that are farther do not count, nor those at this very distance.
            kb_crop: whether images are cut to the 1216 x 352 pixels of the KITTI benchmark, at the bottom and in the
                middle. The crop remains that of the whole image.
        """

        crop: Literal["garg", "eigen", "none"] = "garg"
        max_depth: float = Field(default=80.0, gt=0, allow_inf_nan=False)
        kb_crop: bool = False

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the files are."""
        self.root, self.options, self.about = root, options or self.Options(), about_of("kitti")

    def entries(self) -> list[Entry]:
        """One sample a frame that has a depth map, of the name of its drive and its number there.

        A drive is either trained or tested on.
        """
        lists = {split: self.root / f"eigen_{split}_files_with_gt.txt" for split in ("train", "test")}
        there = {split: path for split, path in lists.items() if path.is_file()}
        if not there:
            require(lists["test"], self.about)
        images, truths = self._drives("image_02"), self._drives("proj_depth/groundtruth")
        return [
            Entry(_name(image), (_located(image, images, path), _located(truth, truths, path)), split)
            for split, path in there.items()
            for image, truth in listed_pairs(path)
        ]

    def _drives(self, content: str) -> dict[str, Path]:
        """Folders of drives that hold a certain folder, by name."""
        patterns = [f"{below}*_sync/{content}" for below in ("", "*/", "*/*/")]
        found = [path for pattern in patterns for path in sorted(self.root.glob(pattern))]
        drives = [path.parents[content.count("/")] for path in found]
        # Of two copies of a drive, the one nearer to the root.
        return {drive.name: drive for drive in reversed(drives)}

    def counts(self) -> Mapping[str, int]:
        """Number of frames with a depth map for training and test."""
        return Counter(entry.split for entry in self.entries() if entry.split)

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The frame of the left colour camera, about 375 x 1242 pixels."""
        image = read_image(entry.files[0])
        return np.ascontiguousarray(image[self._shown(entry.files[0], image.shape[0], image.shape[1])])

    def target(self, entry: Entry) -> DepthTarget:
        """The depth; it is not known of most pixels."""
        depth = read_depth(entry.files[1], _UNITS_PER_METRE)
        height, width = depth.shape
        top, bottom, left, right = _CROPS[self.options.crop]
        rows, columns = slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))
        valid = counted(depth, rows, columns, self.options.max_depth)
        shown = self._shown(entry.files[1], height, width)
        return DepthTarget(np.ascontiguousarray(depth[shown]), np.ascontiguousarray(valid[shown]))

    def _shown(self, path: Path, height: int, width: int) -> tuple[slice, slice]:
        if not self.options.kb_crop:
            return slice(None), slice(None)
        if height < _BENCHMARK_HEIGHT or width < _BENCHMARK_WIDTH:
            raise UserError(
                f"{path}: is {width}x{height}, less than {_BENCHMARK_WIDTH}x{_BENCHMARK_HEIGHT}; set kb_crop to false"
            )
        left = (width - _BENCHMARK_WIDTH) // 2
        return slice(height - _BENCHMARK_HEIGHT, height), slice(left, left + _BENCHMARK_WIDTH)


def _drive(listed: PurePosixPath) -> str:
    """The drive of a listed path; empty where it names none."""
    return next((part for part in listed.parts if part.endswith("_sync")), "")


def _name(image: PurePosixPath) -> str:
    return f"{_drive(image).removesuffix('_sync')}-{image.stem}"


def _located(listed: PurePosixPath, drives: Mapping[str, Path], path: Path) -> Path:
    """The file that a list means; lists name the date of a drive above it or not.

    Raises:
        UserError: its drive is not there.
    """
    drive = _drive(listed)
    if drive not in drives:
        raise UserError(f"{path}: names {listed}, whose drive is not there; unpack it or remove the list")
    return drives[drive].joinpath(*listed.parts[listed.parts.index(drive) + 1 :])
