"""`sam2_nano`: the classes of the `sam2` package at a size that two CPU cores can train and search."""

from __future__ import annotations

from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam2_base import SAM2Base

from redfree.models.catalogue import Sam2NanoArchitecture
from redfree.models.sam2_configs import POSTPROCESSING


def _image_encoder(arch: Sam2NanoArchitecture) -> ImageEncoder:
    trunk = Hiera(
        embed_dim=arch.embed_dim,
        num_heads=1,
        stages=arch.stages,
        window_spec=arch.windows,
        global_att_blocks=arch.global_blocks,
        window_pos_embed_bkg_spatial_size=(arch.background, arch.background),
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=arch.channels),
        d_model=arch.channels,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk, neck, scalp=1)


def build_sam2_nano(arch: Sam2NanoArchitecture, apply_postprocessing: bool = False) -> SAM2Base:
    """Builds an untrained `SAM2Base` of the given sizes with the switches of the official configurations.

    It has no memory attention and no memory encoder, which single images do not use.

    Args:
        arch: its sizes.
        apply_postprocessing: whether an unstable single mask gives way to the best of the multimask outputs, with the
            values of `sam2.build_sam.build_sam2`.
    """
    return SAM2Base(
        image_encoder=_image_encoder(arch),
        memory_attention=None,
        memory_encoder=None,
        image_size=arch.image_size,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        sam_mask_decoder_extra_args=POSTPROCESSING if apply_postprocessing else None,
    )
