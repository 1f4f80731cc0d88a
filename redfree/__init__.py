"""Benchmark and reproducibility suite for channel swaps."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ChannelMap": "redfree.channels",
    "load_module": "redfree.models.loading",
    "load_sam": "redfree.models.loading",
    "load_swap": "redfree.channels",
}
__all__ = ["ChannelMap", "load_module", "load_sam", "load_swap"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Imports the public names on first use, so that `import redfree` alone does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'redfree' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
