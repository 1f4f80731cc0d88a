"""Benchmark and reproducibility suite for channel swaps."""

from __future__ import annotations

from typing import Any

__all__ = ["ChannelMap", "load_swap"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Imports the public names on first use, so that `import redfree` alone does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'redfree' has no attribute {name!r}")
    from redfree import channels  # noqa: PLC0415

    return getattr(channels, name)
