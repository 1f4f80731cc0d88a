"""Kvasir-SEG: frames of colonoscopies with the outline of polyps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from redfree.data.about import about_of
from redfree.data.listing import images_in
from redfree.data.reading import MaskRule, binary, read_image
from redfree.data.source import Entry, SegmentationTarget, require
from redfree.validation import Strict

_TOP = "Kvasir-SEG"


class KvasirSeg:
    """Folders `images` and `masks` of JPEG files of the same names, in `Kvasir-SEG/`, `kvasir-seg/Kvasir-SEG/` or here.

    The owner does not divide them. Several polyps on one frame are one mask. The boxes in `kavsir_bboxes.json` are not
    read.
    """

    class Options(Strict):
        """How masks are read.

        Attributes:
            mask_threshold: least grey value of a polyp. Masks are JPEG: around 0 and 255 they hold noise, so that "not
                0" would draw polyps larger than they are.
        """

        mask_threshold: int = Field(default=128, ge=1, le=255)

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the folders are, and how masks are read."""
        self.root, self.about = root, about_of("kvasir-seg")
        self.rule = MaskRule(threshold=(options or self.Options()).mask_threshold)

    def entries(self) -> list[Entry]:
        """One sample an image, of the name of its file."""
        images, masks = (require(self._top() / name, self.about) for name in ("images", "masks"))
        return [Entry(path.stem, (path, masks / path.name)) for path in images_in(images)]

    def _top(self) -> Path:
        tops = (self.root / _TOP, self.root / "kvasir-seg" / _TOP, self.root)
        return next((top for top in tops if (top / "images").is_dir()), tops[0])

    def counts(self) -> Mapping[str, int]:
        """Number of images."""
        return {"all": len(self.entries())}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The frame."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The polyps."""
        return SegmentationTarget(binary(entry.files[1], self.rule))
