"""How many maps are decoded at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from torch import Tensor

Part = TypeVar("Part")

MAX_BATCH = 64
_CPU_SHARE, _CPU_BYTES, _DEVICE_SHARE = 16, 256 * 2**20, 4
# Decoding a map keeps about so many copies of its features: attentions, tokens, and upscaled ones, which are largest.
_COPIES = 16


def default_batch(features: Tensor) -> int:
    """Maps decoded at a time: a power of two up to 64 that fits the memory of the machine.

    On a CPU it is small enough for the caches, and depends on installed, not on free memory, so that equal machines
    choose equally.

    Args:
        features: (D, C, H, W) on the device that decodes.
    """
    bytes_of_map = _COPIES * features[0].numel() * features.element_size()
    if features.device.type == "cuda":
        room = torch.cuda.mem_get_info(features.device)[0] // _DEVICE_SHARE
    else:
        room = min(_CPU_BYTES, psutil.virtual_memory().total // _CPU_SHARE)
    fitting = max(1, min(MAX_BATCH, room // bytes_of_map))
    return 1 << (int(fitting).bit_length() - 1)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def in_batches(compute: Callable[[Tensor], Part], items: Tensor, batch: int) -> list[Part]:
    """Applies a function to items (N, ...) a batch at a time, with half the batch wherever memory runs out.

    Raises:
        RuntimeError: memory runs out for a single item.
    """
    parts, start, batch = list[Part](), 0, max(1, min(batch, len(items)))
    while start < len(items):
        try:
            parts.append(compute(items[start : start + batch]))
            start += batch
        except RuntimeError as error:
            if batch == 1 or not _out_of_memory(error):
                raise
            batch = max(1, batch // 2)
    return parts
