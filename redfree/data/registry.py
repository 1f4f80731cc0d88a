"""Dataset adapters by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from redfree.data.procedural import ProceduralDataset
from redfree.data.procedural.scenes import DOMAINS
from redfree.data.schema import SegmentationDataset
from redfree.errors import unknown

DATASETS: Mapping[str, Callable[[], SegmentationDataset]] = {
    f"procedural/{domain}": partial(ProceduralDataset, domain) for domain in DOMAINS
}


def open_dataset(name: str) -> SegmentationDataset:
    """Builds the adapter of a named dataset.

    Raises:
        UserError: there is no such dataset.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return DATASETS[name]()
