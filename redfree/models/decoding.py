"""SAM's mask decoder over many features at once."""

from __future__ import annotations

import math
from typing import cast

import torch
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor


def embed_points(sam: Sam, points: Tensor, labels: Tensor) -> Tensor:
    """Prompt tokens of point prompts, padded as `SamPredictor` pads points without a box.

    Args:
        sam: model whose prompt encoder is used.
        points: (B, N, 2) pixel indices (x, y) in the model's input frame; the prompt encoder adds half a pixel itself.
        labels: (B, N), 1 for a point on the object, 0 for one on the background.

    Returns:
        Sparse embeddings of shape (B, N + 1, C).
    """
    sparse, _ = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
    return cast(Tensor, sparse)


def _heads(attention: Attention, projected: Tensor) -> Tensor:
    batch, tokens, width = projected.shape
    heads = int(attention.num_heads)
    return projected.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def prompt_queries(sam: Sam, sparse: Tensor) -> Tensor:
    """The tokens (B, 5 + N, C) of the two-way transformer: IoU, four masks, and B prompts (B, N, C)."""
    decoder = cast(MaskDecoder, sam.mask_decoder)
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    return torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)


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


def decode_features(sam: Sam, features: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """Single-mask logits of B features with one prompt each.

    The official `MaskDecoder.predict_masks` pairs one feature map with many prompts, or many with one prompt. This is
    the same computation for B of each; the three multimask outputs, which `multimask_output=False` discards, are not
    computed.

    Args:
        sam: model whose decoder is used.
        features: (B, C, H, W) encoder outputs.
        sparse: (B, N, C) prompt tokens of `embed_points`, or (1, N, C) for one prompt shared by all.

    Returns:
        Logits of shape (B, 4H, 4W) and predicted IoU of shape (B,), equal to the official decoder's first output.
    """
    decoder = cast(MaskDecoder, sam.mask_decoder)
    batch, channels = features.shape[:2]
    tokens = prompt_queries(sam, sparse)
    no_mask = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    queries, keys = _two_way(decoder.transformer, features + no_mask, sam.prompt_encoder.get_dense_pe(), tokens)
    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(batch, channels, *features.shape[2:]))
    kernel = decoder.output_hypernetworks_mlps[0](queries[:, 1])
    logits = torch.einsum("bc,bchw->bhw", kernel, upscaled)
    return logits, decoder.iou_prediction_head(queries[:, 0])[:, 0]
