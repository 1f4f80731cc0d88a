"""SAM's image encoder without the matrix of all queries by all keys: the same features in a fraction of the memory.

The official `Attention.forward` keeps several copies of a (heads, N, N) matrix; for the 4096 tokens of an image of
1024 x 1024 pixels and the 12 heads of ViT-B each is 805 MB. Here a fused kernel never writes the products of queries
and keys down, and the relative-position terms, which it wants as a matrix, are laid out for some queries at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

# Bytes of a chunk of relative-position terms. On a CPU it should stay in the shared cache between being written and
# being read, yet small chunks spend more time on waking threads than on the work. On any other device one chunk has to
# occupy all of it: 2**28 bytes are four heads of 4096 queries and keys in float32.
BUDGETS: Mapping[str, int] = {"cpu": 2**25, "cuda": 2**28}

_Part = tuple[slice, slice]


def _position_terms(attention: Attention, queries: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Terms by key row (G, N, H) and key column (G, N, W) of queries (G, N, d) on a map of size (H, W)."""
    grid = torch.unflatten(queries, 1, size)
    rows, columns = (
        get_rel_pos(side, side, table)
        for side, table in zip(size, (attention.rel_pos_h, attention.rel_pos_w), strict=True)
    )
    by_row = torch.einsum("ghwc,hkc->ghwk", grid, rows)
    by_column = torch.einsum("ghwc,wkc->ghwk", grid, columns)
    return by_row.flatten(1, 2), by_column.flatten(1, 2)


def _parts(groups: int, tokens: int, rows: int) -> Iterator[_Part]:
    """Slices of groups and of their queries with at most `rows` queries in all: whole groups where one fits."""
    count, length = max(1, rows // tokens), min(rows, tokens)
    for group in range(0, groups, count):
        for query in range(0, tokens, length):
            yield slice(group, group + count), slice(query, query + length)


class _Bias:
    """Sums of the relative-position terms for any key, in one buffer that every part of a layer overwrites.

    Fresh memory for each part would have to be mapped by the kernel page by page, which takes as long as filling it.
    """

    def __init__(self, by_row: Tensor, by_column: Tensor, rows: int) -> None:
        self._by_row, self._by_column = by_row, by_column
        groups, tokens, height = by_row.shape
        self._width = by_column.shape[2]
        self._buffer = by_row.new_empty(min(rows, groups * tokens) * height * self._width)

    def __call__(self, part: _Part) -> Tensor:
        """The sums (1, g, n, N) for g groups and n queries; valid until the next call."""
        by_row, by_column = self._by_row[part][..., None], self._by_column[part][..., None, :]
        shape = (*by_row.shape[:3], self._width)
        sums = self._buffer[: by_row.numel() * self._width].view(shape)
        return torch.add(by_row, by_column, out=sums).flatten(2)[None]


def _mix(projected: Tensor, scale: float, bias: _Bias | None, rows: int) -> Tensor:
    """Values averaged with attention (G, N, d), from queries, keys and values (3, G, N, d)."""
    queries, keys, values = projected.unbind(0)
    mixed = queries.new_empty(queries.shape)
    for part in _parts(queries.shape[0], queries.shape[1], rows):
        terms = None if bias is None else bias(part)
        q, k, v = queries[part][None], keys[part[0]][None], values[part[0]][None]
        mixed[part] = F.scaled_dot_product_attention(q, k, v, attn_mask=terms, scale=scale)[0]
    return mixed


def _forward(attention: Attention, budget: int | None, tokens: Tensor) -> Tensor:
    """What `Attention.forward` gives for tokens (B, H, W, C), by itself where its matrix fits into the budget."""
    batch, height, width, _ = tokens.shape
    count, heads = height * width, int(attention.num_heads)
    budget = BUDGETS.get(tokens.device.type, BUDGETS["cuda"]) if budget is None else budget
    if batch * heads * count**2 * tokens.element_size() <= budget:
        return cast(Tensor, Attention.forward(attention, tokens))
    projected = attention.qkv(tokens).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
    rows = max(1, budget // (count * projected.element_size()))
    terms = _position_terms(attention, projected[0], (height, width)) if attention.use_rel_pos else None
    mixed = _mix(projected, attention.scale, _Bias(*terms, rows) if terms else None, rows)
    mixed = mixed.reshape(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4).flatten(3)
    return cast(Tensor, attention.proj(mixed))


@contextmanager
def lean_attention(encoder: nn.Module, budget: int | None = None) -> Iterator[None]:
    """Inside the block, every official `Attention` of an encoder computes its output without a large full matrix.

    The formula is that of segment_anything `image_encoder.Attention.forward` and `add_decomposed_rel_pos`; the output
    of the encoder in float32 agrees to 1e-5. Parameters, their names and hooks are as before, in the block and after
    it. A subclass of `Attention`, or a layer whose `forward` somebody replaced, is left as it is; blocks may be nested,
    and the outermost one counts. The replacement is seen by every thread that uses the encoder at that time.

    On a CPU torch's fused kernel runs. On CUDA the same call takes the memory-efficient one; where torch finds no
    fused kernel, its plain one holds a few chunks of the budget at most. CUDA has not been tried: the development
    machine has none.

    Args:
        encoder: a `segment_anything.modeling.ImageEncoderViT`, or a module that holds one.
        budget: bytes of the chunk of relative-position terms laid out at once, at least one query's; by default that
            of the device in `BUDGETS`. A layer whose full matrix is no larger runs the official code, bit for bit.

    Raises:
        RuntimeError: in the block, by torch: a gradient is asked for of relative-position terms, which share a buffer.
    """
    layers = [layer for layer in encoder.modules() if type(layer) is Attention and "forward" not in vars(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer, budget)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
