"""`sam_nano`: the `segment_anything` classes at a size that two CPU cores can train and search."""

from __future__ import annotations

from functools import partial

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from redfree.models.catalogue import NANO_ARCHITECTURES, NanoArchitecture

__all__ = ["NANO_ARCHITECTURES", "NanoArchitecture", "build_nano"]


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
