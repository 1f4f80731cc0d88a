"""Dataset adapters by name; an adapter's module is imported only when it is opened."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from redfree.errors import unknown

if TYPE_CHECKING:
    from redfree.data.schema import SegmentationDataset

DATASETS: Mapping[str, tuple[str, str]] = {
    "procedural/natural": ("redfree.data.procedural:ProceduralDataset", "natural"),
    "procedural/medical": ("redfree.data.procedural:ProceduralDataset", "medical"),
    "procedural/camouflaged": ("redfree.data.procedural:ProceduralDataset", "camouflaged"),
}


def open_dataset(name: str) -> SegmentationDataset:
    """Builds the adapter of a named dataset.

    Raises:
        UserError: there is no such dataset.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    location, argument = DATASETS[name]
    module, attribute = location.split(":")
    return cast("SegmentationDataset", getattr(importlib.import_module(module), attribute)(argument))
