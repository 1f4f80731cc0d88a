"""`sam_nano`: the `segment_anything` classes at a size that two CPU cores can train and search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn


@dataclass(frozen=True)
class NanoArchitecture:
    """Sizes of a small SAM.

    Attributes:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels; the features have image_size / patch_size rows and columns.
        channels: channels of the encoder output, on which swaps act.
        encoder_dim: width of the image encoder.
        encoder_depth: number of encoder blocks, all with global attention.
        encoder_heads: attention heads of an encoder block.
        decoder_mlp_dim: hidden width of the two-way transformer's MLPs.
    """

    image_size: int = 128
    patch_size: int = 16
    channels: int = 64
    encoder_dim: int = 192
    encoder_depth: int = 5
    encoder_heads: int = 6
    decoder_mlp_dim: int = 256


NANO_ARCHITECTURES = {"sam_nano": NanoArchitecture()}


def build_nano(arch: NanoArchitecture) -> Sam:
    """Builds an untrained `segment_anything.modeling.Sam` of the given sizes, with SAM's own pixel statistics."""
    side = arch.image_size // arch.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=arch.image_size,
            patch_size=arch.patch_size,
            embed_dim=arch.encoder_dim,
            depth=arch.encoder_depth,
            num_heads=arch.encoder_heads,
            out_chans=arch.channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=0,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=arch.channels,
            image_embedding_size=(side, side),
            input_image_size=(arch.image_size, arch.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=arch.channels, mlp_dim=arch.decoder_mlp_dim, num_heads=8
            ),
            transformer_dim=arch.channels,
            iou_head_depth=3,
            iou_head_hidden_dim=arch.channels,
        ),
    )
