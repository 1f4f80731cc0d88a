"""The mask decoder of SAM and SAM 2 over many features at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# SAM's classes and SAM 2's copies of them have the same parts.
Attention = Any
TwoWayAttentionBlock = Any


@dataclass(frozen=True)
class DecoderLayers:
    """The layers of a mask decoder, which SAM and SAM 2 share but for one token and two feature maps.

    Attributes:
        prompt_encoder: embeds prompts.
        transformer: the two-way transformer.
        constant: (1, C), added to the features at every position: what stands for the absence of a mask prompt.
        output_tokens: (T, C) learned tokens that precede the prompt.
        quality: index of the token that predicts IoU; the tokens of the masks, the single mask first, follow it.
        upscaling: two transposed convolutions with norm and activations, from (B, C, H, W) to (B, C / 8, 4H, 4W).
        kernels: of each mask token, the layers that turn it into a kernel of C / 8 numbers.
        iou_head: predicts the IoU of each mask.
    """

    prompt_encoder: nn.Module
    transformer: TwoWayTransformer
    constant: Tensor
    output_tokens: Tensor
    quality: int
    upscaling: nn.Sequential
    kernels: nn.ModuleList
    iou_head: nn.Module

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.transformer.num_heads)

    def position(self) -> Tensor:
        """(1, C, H, W) positional encoding of the features."""
        return cast(Tensor, self.prompt_encoder.get_dense_pe())  # type: ignore[operator]

    def queries(self, sparse: Tensor) -> Tensor:
        """The tokens (B, T + N, C) of the two-way transformer, for prompts (B, N, C)."""
        return torch.cat([self.output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)


def sam_layers(sam: Sam) -> DecoderLayers:
    """The decoder of a model of `segment_anything`."""
    decoder = cast(Any, sam.mask_decoder)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    return _layers(decoder, sam.prompt_encoder, sam.prompt_encoder.no_mask_embed.weight, tokens, 0)


def sam2_layers(model: SAM2Base, lacks: Tensor | None = None) -> DecoderLayers:
    """The decoder of a model of `sam2`, which has one more token where it predicts whether there is an object.

    Args:
        model: the model.
        lacks: (1, C) constant that the features lack, such as `no_mem_embed`, which is then added with the decoder's.
    """
    decoder, prompts = cast(Any, model.sam_mask_decoder), cast(Any, model.sam_prompt_encoder)
    tokens = [decoder.iou_token.weight, decoder.mask_tokens.weight]
    if decoder.pred_obj_scores:
        tokens.insert(0, decoder.obj_score_token.weight)
    constant = prompts.no_mask_embed.weight if lacks is None else prompts.no_mask_embed.weight + lacks
    return _layers(decoder, prompts, constant, torch.cat(tokens), len(tokens) - 2)


def _layers(
    decoder: Any,  # noqa: ANN401
    prompt_encoder: nn.Module,
    constant: Tensor,
    tokens: Tensor,
    quality: int,
) -> DecoderLayers:
    return DecoderLayers(
        prompt_encoder=prompt_encoder,
        transformer=decoder.transformer,
        constant=constant,
        output_tokens=tokens,
        quality=quality,
        upscaling=decoder.output_upscaling,
        kernels=decoder.output_hypernetworks_mlps,
        iou_head=decoder.iou_prediction_head,
    )


def embed_points(prompt_encoder: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """Prompt tokens of point prompts, padded as the official predictors pad points without a box.

    Args:
        prompt_encoder: that of the model.
        points: (B, N, 2) pixel indices (x, y) in the model's input frame; the prompt encoder adds half a pixel itself.
        labels: (B, N), 1 for a point on the object, 0 for one on the background; in SAM 2 also 2 and 3 for the upper
            left and lower right corner of a box.

    Returns:
        Sparse embeddings of shape (B, N + 1, C).
    """
    sparse, _ = prompt_encoder(points=(points, labels), boxes=None, masks=None)
    return cast(Tensor, sparse)


def _heads(attention: Attention, projected: Tensor) -> Tensor:
    batch, tokens, width = projected.shape
    heads = int(attention.num_heads)
    return projected.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The official attention with scores laid out (keys, queries), so that softmax never runs along a short last axis.

    Image-to-token attention has 7 keys; along a last axis of 7 the CPU softmax is not vectorised and takes a third of
    the decoder's time.
    """
    q = _heads(attention, attention.q_proj(query))
    k = _heads(attention, attention.k_proj(key))
    v = _heads(attention, attention.v_proj(value))
    scores = (k / math.sqrt(q.shape[-1])) @ q.transpose(2, 3)
    if scores.shape[2] > scores.shape[3]:
        mixed = scores.transpose(2, 3).softmax(3) @ v
    else:
        mixed = scores.softmax(2).transpose(2, 3) @ v
    return cast(Tensor, attention.out_proj(mixed.transpose(1, 2).flatten(2)))


def _two_way_block(
    block: TwoWayAttentionBlock, queries: Tensor, keys: Tensor, query_position: Tensor, key_position: Tensor
) -> tuple[Tensor, Tensor]:
    if block.skip_first_layer_pe:
        queries = attend(block.self_attn, queries, queries, queries)
    else:
        placed = queries + query_position
        queries = queries + attend(block.self_attn, placed, placed, queries)
    queries = block.norm1(queries)
    placed_keys = keys + key_position
    seen = attend(block.cross_attn_token_to_image, queries + query_position, placed_keys, keys)
    queries = block.norm2(queries + seen)
    queries = block.norm3(queries + block.mlp(queries))
    told = attend(block.cross_attn_image_to_token, placed_keys, queries + query_position, queries)
    return queries, block.norm4(keys + told)


def _two_way(
    transformer: TwoWayTransformer, features: Tensor, position: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer.forward`: (B, N, C) tokens and (B, H W, C) image positions after all layers."""
    keys, key_position = features.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)
    queries = tokens
    for block in transformer.layers:
        queries, keys = _two_way_block(block, queries, keys, tokens, key_position)
    seen = attend(transformer.final_attn_token_to_image, queries + tokens, keys + key_position, keys)
    return transformer.norm_final_attn(queries + seen), keys


def _transform(layers: DecoderLayers, features: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """Output tokens (B, T + N, C) and image tokens (B, C, H, W) after the two-way transformer."""
    placed = features + layers.constant.reshape(1, -1, 1, 1)
    queries, keys = _two_way(layers.transformer, placed, layers.position(), layers.queries(sparse))
    return queries, keys.transpose(1, 2).reshape(len(features), *features.shape[1:])


def _upscale(layers: DecoderLayers, keys: Tensor, high_resolution: Sequence[Tensor]) -> Tensor:
    if not high_resolution:
        return cast(Tensor, layers.upscaling(keys))
    first, norm, activation, second, last = layers.upscaling
    fine, middle = high_resolution
    upscaled = activation(norm(first(keys) + middle))
    return cast(Tensor, last(second(upscaled) + fine))


def decode_features(
    layers: DecoderLayers, features: Tensor, sparse: Tensor, high_resolution: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Single-mask logits of B features with one prompt each.

    SAM's official `MaskDecoder.predict_masks` pairs one feature map with many prompts, or many with one prompt. This is
    the same computation for B of each; the three multimask outputs, which `multimask_output=False` discards, are not
    computed.

    Args:
        layers: the decoder.
        features: (B, C, H, W) encoder outputs.
        sparse: (B, N, C) prompt tokens of `embed_points`, or (1, N, C) for one prompt shared by all.
        high_resolution: of SAM 2, the features (B or 1, C / 8, 4H, 4W) and (B or 1, C / 4, 2H, 2W).

    Returns:
        Logits of shape (B, 4H, 4W) and predicted IoU of shape (B,), equal to the official decoder's first output.
    """
    queries, keys = _transform(layers, features, sparse)
    upscaled = _upscale(layers, keys, high_resolution)
    kernel = layers.kernels[0](queries[:, layers.quality + 1])
    logits = torch.einsum("bc,bchw->bhw", kernel, upscaled)
    return logits, layers.iou_head(queries[:, layers.quality])[:, 0]


def decode_all_masks(
    layers: DecoderLayers, features: Tensor, sparse: Tensor, high_resolution: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """As `decode_features`, for the single mask and the multimask outputs: (B, 4, 4H, 4W) and (B, 4)."""
    queries, keys = _transform(layers, features, sparse)
    upscaled = _upscale(layers, keys, high_resolution)
    tokens = queries[:, layers.quality + 1 :]
    kernels = torch.stack([kernel(tokens[:, k]) for k, kernel in enumerate(layers.kernels)], 1)
    return torch.einsum("bmc,bchw->bmhw", kernels, upscaled), layers.iou_head(queries[:, layers.quality])
