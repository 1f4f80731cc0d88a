"""SAM's mask decoder for many swaps of one image, computing once what they share.

A swap of k pairs adds a rank-k term to the image tokens. Each image-to-token attention adds one of rank heads x prompt
tokens: 8 x 7 = 56 for a point in SAM, whose image tokens have 256 channels. The image tokens of a swap are kept as

    keys = scale * base + factors^T @ rows + offset

with `base` shared by all swaps, and `rows` a few coefficients of a swap times shared matrices. Every linear layer acts
on `base` once for an image, and on the few rows for a swap; layer normalisation needs the mean, which centred matrices
remove, and the square norm, which is a quadratic form of the factors. Nothing is approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redfree.models.decoding import Attention, DecoderLayers, TwoWayAttentionBlock, attend

Computed = TypeVar("Computed")


@dataclass(frozen=True)
class _Shared:
    """A linear function of the image tokens, but for the scale of each token.

    Attributes:
        matrices: (n, p) matrices of the rows: one row a channel, which is the function of the features themselves, then
            for each attention d for its output and 1 for its offset.
        offset: (p,).
    """

    matrices: tuple[Tensor, ...]
    offset: Tensor

    def project(self, weight: Tensor, bias: Tensor) -> _Shared:
        """Followed by the layer with weight (C, p) and bias (p,)."""
        return _Shared(tuple(matrix @ weight for matrix in self.matrices), torch.addmv(bias, weight.T, self.offset))

    def add(self, layer: nn.Linear) -> _Shared:
        """With the output of an attention, mixed from the columns of its last layer, and its offset."""
        bias = (self.offset + layer.bias)[None]
        return _Shared((*self.matrices, layer.weight.T, bias), torch.zeros_like(self.offset))

    def centre(self) -> _Shared:
        """Less the mean over channels."""
        return _Shared(tuple(matrix - matrix.mean(1, keepdim=True) for matrix in self.matrices), self.offset)

    def normalise(self, norm: nn.LayerNorm) -> _Shared:
        """After layer normalisation of what was centred."""
        return _Shared(tuple(matrix * norm.weight for matrix in self.matrices), norm.bias)

    def split(self, sizes: list[int]) -> list[_Shared]:
        """Its columns in parts."""
        columns = [torch.split(matrix, sizes, 1) for matrix in self.matrices]
        offsets = torch.split(self.offset, sizes)
        return [_Shared(tuple(parts), offset) for *parts, offset in zip(*columns, offsets, strict=True)]


class _Image:
    """What was computed once from the unswapped tokens (P, C) of an image."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens, self._known = tokens, dict[object, Any]()

    def of(self, owner: object, compute: Callable[[Tensor], Computed]) -> Computed:
        """What `compute` made of the tokens for an owner, now or before."""
        if owner not in self._known:
            self._known[owner] = compute(self._tokens)
        return cast(Computed, self._known[owner])


@dataclass
class _Keys:
    """The image tokens of M swaps: scale * base + factors^T @ rows + offset.

    Attributes:
        image: what their base is computed from.
        channels: (M, k) changed channels.
        factors: (M, r, P).
        scale: (M, 1, P), None for 1.
        values: of each attention, (M, heads, T, d / heads): its rows are values times a shared matrix.
    """

    image: _Image
    channels: Tensor
    factors: Tensor
    scale: Tensor | None
    values: list[Tensor]

    def rows(self, matrices: tuple[Tensor, ...]) -> Tensor:
        """The rows (M, r, p) of shared matrices with p columns."""
        count, changed = self.channels.shape
        sizes = [changed, *(size for v in self.values for size in (v.shape[1] * v.shape[2], 1))]
        rows = matrices[0].new_empty(count, sum(sizes), matrices[0].shape[1])
        parts = torch.split(rows, sizes, 1)
        parts[0].copy_(matrices[0][self.channels])
        for values, mixed, offset, of_values, of_offset in zip(
            self.values, matrices[1::2], matrices[2::2], parts[1::2], parts[2::2], strict=True
        ):
            heads = mixed.reshape(values.shape[1], -1, mixed.shape[1])
            _unflatten(of_values, 1, values.shape[1]).copy_(torch.einsum("mhtd,hdp->mhtp", values, heads))
            of_offset.copy_(offset.expand_as(of_offset))
        return rows

    def add(self, attention: Tensor, values: Tensor) -> None:
        """Adds the output of an attention (M, heads, T, P) to values (M, heads, T, d / heads), and its offset."""
        weights = attention.flatten(1, 2)
        self.factors = torch.cat([self.factors, weights, torch.ones_like(weights[:, :1])], 1)
        self.values.append(values)

    def multiply(self, scale: Tensor) -> None:
        """Scales each token by (M, 1, P)."""
        self.factors = self.factors.mul_(scale)
        self.scale = scale if self.scale is None else self.scale * scale


def _unflatten(tensor: Tensor, dim: int, count: int) -> Tensor:
    """Splits a dimension into `count` parts of equal size."""
    return torch.unflatten(tensor, dim, (count, tensor.shape[dim] // count))


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """(..., n, d) to (..., heads, n, d / heads)."""
    return _unflatten(tokens, -1, heads).transpose(-2, -3)


class _Look:
    """A projection of the image tokens in a cross attention."""

    def __init__(self, projected: _Shared, position: Tensor, heads: int) -> None:
        self.heads, self.position = heads, _by_head(position, heads)
        self.matrix, self.offset = projected.matrices[0], projected.offset

    def _base(self, keys: _Keys) -> Tensor:
        return keys.image.of(self, lambda tokens: _by_head(tokens @ self.matrix, self.heads))

    def scores(self, others: Tensor, rows: Tensor, keys: _Keys) -> Tensor:
        """Inner products (M, heads, T, P) of the projected `keys + position` with others (M or 1, heads, T, d)."""
        base = torch.einsum("mhtd,hpd->mhtp", others, self._base(keys))
        base = base if keys.scale is None else base.mul_(keys.scale[:, None])
        base = base + torch.einsum("mhtd,hpd->mhtp", others, self.position)
        base += (others * self.offset.reshape(self.heads, 1, -1)).sum(3, keepdim=True)
        weights = torch.einsum("mrhd,mhtd->mhtr", _unflatten(rows, 2, self.heads), others.expand(len(rows), -1, -1, -1))
        shape = (len(rows), *base.shape[1:])
        return torch.baddbmm(base.expand(shape).flatten(1, 2), weights.flatten(1, 2), keys.factors).reshape(shape)

    def mix(self, attention: Tensor, rows: Tensor, keys: _Keys) -> Tensor:
        """Projected `keys` averaged with attention (M, heads, T, P): (M, T, d)."""
        shares = _unflatten(torch.bmm(attention.flatten(1, 2), keys.factors.transpose(1, 2)), 1, self.heads)
        weighted = attention if keys.scale is None else attention * keys.scale[:, None]
        mixed = torch.einsum("mhtp,hpd->mhtd", weighted, self._base(keys))
        mixed = mixed + torch.einsum("mhtr,mrhd->mhtd", shares, _unflatten(rows, 2, self.heads))
        return mixed.transpose(1, 2).flatten(2) + self.offset


class _Looks:
    """Several projections of the same image tokens, whose rows are computed in one go."""

    def __init__(self, shared: _Shared, position: Tensor, layers: Sequence[nn.Linear], heads: int) -> None:
        weight = torch.cat([layer.weight for layer in layers]).T
        projected = shared.project(weight, torch.cat([layer.bias for layer in layers]))
        self.matrices, self.sizes = projected.matrices, [layer.out_features for layer in layers]
        positions = torch.split(position @ weight, self.sizes, 1)
        parts = zip(projected.split(self.sizes), positions, strict=True)
        self.looks = [_Look(part, placed, heads) for part, placed in parts]

    def rows(self, keys: _Keys) -> tuple[Tensor, ...]:
        """The rows (M, r, d) of each projection."""
        return tuple(torch.split(keys.rows(self.matrices), self.sizes, 2))


def _read(attention: Attention, queries: Tensor, looks: list[_Look], rows: tuple[Tensor, ...], keys: _Keys) -> Tensor:
    """Token-to-image attention: output (M, T, C) for queries (M or 1, T, C), which hold their position already."""
    query = _by_head(attention.q_proj(queries), int(attention.num_heads))
    scores = looks[0].scores(query / math.sqrt(query.shape[-1]), rows[0], keys)
    return cast(Tensor, attention.out_proj(looks[1].mix(scores.softmax(3), rows[1], keys)))


class _Block:
    """One two-way block: the prompt tokens read the image tokens, then add to them."""

    def __init__(self, block: TwoWayAttentionBlock, shared: _Shared, position: Tensor) -> None:
        self.block, self.heads = block, int(block.cross_attn_image_to_token.num_heads)
        told, asked = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        self.looks = _Looks(shared, position, (told.k_proj, told.v_proj, asked.q_proj), self.heads)
        self.centred = shared.add(asked.out_proj).centre()
        self.after = self.centred.normalise(block.norm4)

    def __call__(self, queries: Tensor, tokens: Tensor, keys: _Keys) -> Tensor:
        """Prompt tokens (M, T, C) after the block; the image tokens are changed in `keys`."""
        block, rows = self.block, self.looks.rows(keys)
        placed = queries if block.skip_first_layer_pe else queries + tokens
        told = attend(block.self_attn, placed, placed, queries)
        queries = block.norm1(told if block.skip_first_layer_pe else queries + told)
        seen = _read(block.cross_attn_token_to_image, queries + tokens, self.looks.looks, rows, keys)
        queries = block.norm2(queries + seen)
        queries = cast(Tensor, block.norm3(queries + block.mlp(queries)))
        self._write(queries, tokens, rows[2], keys)
        return queries

    def _write(self, queries: Tensor, tokens: Tensor, rows: Tensor, keys: _Keys) -> None:
        attention = self.block.cross_attn_image_to_token
        key = _by_head(attention.k_proj(queries + tokens), self.heads)
        scores = self.looks.looks[2].scores(key / math.sqrt(key.shape[-1]), rows, keys)
        keys.add(scores.softmax(2), _by_head(attention.v_proj(queries), self.heads))
        keys.multiply(self._scale(keys))

    def _squares(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Square norms (P,) of an image's centred base, and the centred matrices beside their products with it."""
        base = tokens @ self.centred.matrices[0]
        return base.square().sum(1), tuple(torch.cat([m, m @ base.T], 1) for m in self.centred.matrices)

    def _scale(self, keys: _Keys) -> Tensor:
        """1 / standard deviation (M, 1, P) of the image tokens over their channels."""
        base_square, joined = keys.image.of(self, self._squares)
        channels, positions = len(self.centred.offset), len(base_square)
        rows, cross = torch.split(keys.rows(joined), [channels, positions], 2)
        cross = 2 * cross if keys.scale is None else (2 * keys.scale) * cross
        square = torch.baddbmm(cross, torch.bmm(rows, rows.transpose(1, 2)), keys.factors)
        square = square.mul_(keys.factors).sum(1, keepdim=True)
        square += base_square if keys.scale is None else base_square * keys.scale.square()
        return torch.rsqrt(square / channels + self.block.norm4.eps)


def changes_of(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What index vectors change, as `SwapDecoder` takes it.

    Args:
        features: (C, H, W).
        index: (M, C) index vectors, -1 for a zeroed channel.

    Returns:
        (M, k) channels and (M, k, H W) differences, with k the most channels that a map changes, at least 1.
    """
    identity = torch.arange(len(features), device=index.device)
    changed = index != identity
    most = max(1, int(changed.sum(1).max()))
    channels = torch.topk(changed.to(torch.uint8), most, dim=1).indices
    sources, flat = index.gather(1, channels), features.flatten(1)
    values = flat[sources.clamp(min=0)] * (sources >= 0)[..., None]
    return channels, values - flat[channels]


class SharedWeights:
    """What all images share: the decoder's layers, applied to the matrices of the rows."""

    def __init__(self, layers: DecoderLayers) -> None:
        """Computes it from layers whose weights must not change afterwards."""
        transformer = layers.transformer
        self.layers, position = layers, layers.position()[0].flatten(1).T
        one_hot = torch.eye(position.shape[1], dtype=position.dtype, device=position.device)
        shared = _Shared((one_hot,), torch.zeros_like(one_hot[0]))
        self.blocks: list[_Block] = []
        for layer in transformer.layers:
            self.blocks.append(_Block(layer, shared, position))
            shared = self.blocks[-1].after
        last = transformer.final_attn_token_to_image
        self.last, self.looks = last, _Looks(shared, position, (last.k_proj, last.v_proj), int(last.num_heads))
        first = cast(nn.ConvTranspose2d, layers.upscaling[0])
        bias = cast(Tensor, first.bias).repeat(4)
        self.upscaling = shared.project(first.weight.permute(0, 2, 3, 1).flatten(1), bias)


def _by_quarters(high: Tensor, times: int) -> Tensor:
    """A feature map (c, 2**times h, 2**times w) in the order in which a position is split in four, `times` times.

    Returns:
        (h w 4**(times - 1), 4 c).
    """
    channels, height, width = high.shape
    parts = high.reshape(channels, height >> times, *[2] * times, width >> times, *[2] * times)
    rows, columns = [1, *range(2, 2 + times)], [2 + times, *range(3 + times, 3 + 2 * times)]
    order = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
    return parts.permute(*order, 0).reshape(-1, 4 * channels)


class SwapDecoder:
    """Single-mask logits of many swaps of one image, equal to the official decoder's to 1e-5 of the largest logit.

    In float32 this holds for features without an extreme channel: where one channel is 64 times as large as the others
    the error was 1e-4 of the largest logit. In float64 it is below 1e-10.
    """

    def __init__(
        self, weights: SharedWeights, features: Tensor, sparse: Tensor, high_resolution: Sequence[Tensor] = ()
    ) -> None:
        """Prepares one image.

        Args:
            weights: the decoder.
            features: (C, H, W) encoder output that the swaps change.
            sparse: (1, N, C) prompt tokens of `embed_points`.
            high_resolution: of SAM 2, the features (C / 8, 4H, 4W) and (C / 4, 2H, 2W), which the swaps leave alone.
        """
        self.weights, self.size = weights, features.shape[1:]
        self.tokens = weights.layers.queries(sparse)
        self.image = _Image(features.flatten(1).T + weights.layers.constant)
        self.high = [_by_quarters(high, times) for times, high in zip((2, 1), high_resolution, strict=False)]

    def __call__(self, channels: Tensor, differences: Tensor) -> Tensor:
        """Decodes M swaps.

        Args:
            channels: (M, k) changed channels, each at most once a swap but for those whose difference is zero.
            differences: (M, k, H W), what is added to them.

        Returns:
            Logits (M, 4H, 4W).
        """
        weights, keys = self.weights, _Keys(self.image, channels, differences, None, [])
        queries = self.tokens
        for block in weights.blocks:
            queries = block(queries, self.tokens, keys)
        # Of all prompt tokens only the single mask's is used from here on.
        single = slice(weights.layers.quality + 1, weights.layers.quality + 2)
        mask_token, placed = queries[:, single], queries[:, single] + self.tokens[:, single]
        read = _read(weights.last, placed, weights.looks.looks, weights.looks.rows(keys), keys)
        mask_token = weights.layers.transformer.norm_final_attn(mask_token + read)
        return self._upscale(weights.layers.kernels[0](mask_token), keys)

    def _upscale(self, kernel: Tensor, keys: _Keys) -> Tensor:
        """The two transposed convolutions and the product with the mask token's kernel (M, 1, c)."""
        upscaling, (_, norm, _, second, _) = self.weights.upscaling, cast(Any, self.weights.layers.upscaling)
        batch, (height, width), inner = len(kernel), self.size, second.weight.shape[0]
        offset = upscaling.offset.expand(1, 1, -1)
        if self.high:
            offset = offset + self.high[1]
        coarse = torch.baddbmm(offset, keys.factors.transpose(1, 2), keys.rows(upscaling.matrices))
        assert keys.scale is not None
        coarse.addcmul_(self.image.of("upscaling", lambda t: t @ upscaling.matrices[0]), keys.scale.transpose(1, 2))
        coarse = F.layer_norm(coarse.reshape(batch, -1, inner), (inner,), norm.weight, norm.bias, norm.eps)
        weight, bias = second.weight.permute(2, 3, 1, 0).flatten(0, 2), second.bias.repeat(4)
        # In place: allocating a fresh megabyte takes as long as the activation itself.
        fine = F.linear(torch.ops.aten.gelu_(coarse), weight, bias)
        if self.high:
            fine.view(batch, *self.high[0].shape).add_(self.high[0])
        fine = torch.ops.aten.gelu_(fine)
        logits = torch.bmm(fine.reshape(batch, -1, kernel.shape[2]), kernel.transpose(1, 2))
        logits = logits.reshape(batch, height, width, 2, 2, 2, 2)
        return logits.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, 4 * height, 4 * width)
