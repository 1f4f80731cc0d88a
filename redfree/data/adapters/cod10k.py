"""COD10K: camouflaged objects, mostly animals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.adapters.cod_repack import MaskOptions, Part, count_splits, entries_of, not_there, repack_parts
from redfree.data.listing import IMAGE_EXTENSIONS, images_in
from redfree.data.reading import MaskRule, binary, read_image
from redfree.data.source import Entry, SegmentationTarget, require
from redfree.errors import UserError

# With its hyphens: "CAM" is also in NonCAM, whose images have no object.
_MARK = "-CAM-"


class Cod10k:
    """The camouflaged images of the owner's third version, or of the community's repack.

    The owner's tree is `{Train,Test}/{Image,GT_Object}`, with images without camouflage (NonCAM) among them, which are
    left out, and lists in `Info`. Some copies draw objects in pure red, so that the largest colour channel is what the
    threshold is compared with. Training and test images of one class have interleaved numbers.
    """

    Options = MaskOptions

    def __init__(self, root: Path, options: MaskOptions | None = None) -> None:
        """Remembers where the folders are and how masks are read."""
        self.root, self.about = root, about_of("cod10k")
        self.rule = MaskRule((options or MaskOptions()).mask_threshold, "max")

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file; see `Source.entries`.

        Raises:
            UserError: also where the owner's lists name an image that is not there.
        """
        parts = self._own_parts() or repack_parts(self.root, "COD10K", _MARK)
        if not parts:
            raise not_there(self.root, "cod10k", "Train/Image and Test/Image nor TestDataset/COD10K/Imgs")
        return entries_of(parts, _MARK)

    def _own_parts(self) -> list[Part]:
        splits = ("Train", "Test")
        for place in (self.root / "COD10K-v3", self.root):
            if any((place / split / "Image").is_dir() for split in splits):
                return [self._own_part(place, split) for split in splits]
        return []

    def _own_part(self, place: Path, split: str) -> Part:
        images, masks = (require(place / split / kind, self.about) for kind in ("Image", "GT_Object"))
        _check_list(place / "Info" / f"CAM_{split.lower()}.txt", images)
        return Part(split.lower(), images, masks)

    def counts(self) -> Mapping[str, int]:
        """Number of images for training and test."""
        return count_splits(self.entries())

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The camouflaged object, or all of them."""
        return SegmentationTarget(binary(entry.files[1], self.rule))


def _check_list(path: Path, images: Path) -> None:
    """Refuses a folder that lacks an image of the owner's list; nothing is checked where there is no list."""
    if not path.is_file():
        return
    there = {image.stem for image in images_in(images)}
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    missing = [stem for stem in (_stem(line.split()[0]) for line in lines if line.strip()) if stem not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{path}: names {missing[0]}{more}, missing from {images}; unpack the archive anew")


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_EXTENSIONS else path.name
