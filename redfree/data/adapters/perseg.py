"""PerSeg: 40 objects, each on a few photographs, with its outline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.listing import visible_folders
from redfree.data.reading import MaskRule, binary, read_image
from redfree.data.source import Entry, SegmentationTarget, require
from redfree.validation import Strict

_REFERENCE = "00"


class PerSeg:
    """Folders `Images/<object>/NN.jpg` and `Annotations/<object>/NN.png`, in the owner's `data/` or here.

    The image 00 of each object is its reference, on which the owner's methods are fitted: the train split. All others
    are the test split. `Entry.key` is the object, for `redfree.tasks.object_iou`, the owner's own metric.

    Masks are (128,0,0) on black, which is 38 as a grey value: the object is whatever is not black, as in the owner's
    `eval_mioU.py`. The copy at 1024 x 1024 of the swap paper's authors is another layout, not read here: some of its
    masks are padded with white (255,255,255), which this rule would take for the object.
    """

    class Options(Strict):
        """Nothing to choose: the object is where a mask is not black."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the folders are."""
        self.root, self.about = root, about_of("perseg")

    def entries(self) -> list[Entry]:
        """One sample an image, `<object>/<number>`."""
        top = self.root / "data" if (self.root / "data" / "Images").is_dir() else self.root
        images, masks = (require(top / name, self.about) for name in ("Images", "Annotations"))
        folders = visible_folders(images)
        return [entry for folder in folders for entry in self._object(folder, masks / folder.name)]

    def _object(self, images: Path, masks: Path) -> list[Entry]:
        require(masks, self.about)
        paths = sorted(images.glob("[0-9][0-9].jpg"))
        return [
            Entry(
                f"{images.name}/{path.stem}",
                (path, masks / f"{path.stem}.png"),
                split="train" if path.stem == _REFERENCE else "test",
                key=images.name,
            )
            for path in paths
        ]

    def counts(self) -> Mapping[str, int]:
        """Number of references (train) and of other images (test)."""
        found = Counter(entry.split for entry in self.entries())
        return {split: found[split] for split in ("train", "test")}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph."""
        return read_image(entry.files[0])

    def target(self, entry: Entry) -> SegmentationTarget:
        """The object."""
        return SegmentationTarget(binary(entry.files[1], MaskRule(threshold=1)))
