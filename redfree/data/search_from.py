"""A dataset that is tested on, with another one's training images to search and train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets

from redfree.data.schema import DatasetAdapter


@dataclass(frozen=True)
class SearchedElsewhere:
    """The test split of one dataset with the search and train splits of another.

    CHAMELEON has no training images: the convention of camouflaged object detection is to train on those of COD10K
    and CAMO. Any two datasets of one task may be combined, to see how a swap carries over.

    Attributes:
        tested: whose test split is scored.
        searched: whose training images choose.
    """

    tested: DatasetAdapter
    searched: DatasetAdapter

    def load(self, split: str, count: int | None, seed: int) -> datasets.Dataset:
        """Returns rows of a split of the one dataset or the other; see `DatasetAdapter.load`."""
        return (self.tested if split == "test" else self.searched).load(split, count, seed)

    def describe(self) -> dict[str, Any]:
        """Returns the description of the tested dataset, with the name of the searched one among the options."""
        about, other = self.tested.describe(), self.searched.describe()
        searched = {"search_from": other["name"], "search_options": other.get("options", {})}
        return {**about, "options": {**about.get("options", {}), **searched}}

    def verify(self) -> list[str]:
        """Returns the defects of both."""
        return [*self.tested.verify(), *self.searched.verify()]
