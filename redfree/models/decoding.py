"""SAM's mask decoder over many features at once."""

from __future__ import annotations

from typing import cast

import torch
from segment_anything.modeling import MaskDecoder, Sam
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
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
    no_mask = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    queries, keys = decoder.transformer(features + no_mask, sam.prompt_encoder.get_dense_pe(), tokens)
    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(batch, channels, *features.shape[2:]))
    kernel = decoder.output_hypernetworks_mlps[0](queries[:, 1])
    logits = torch.einsum("bc,bchw->bhw", kernel, upscaled)
    return logits, decoder.iou_prediction_head(queries[:, 0])[:, 0]
