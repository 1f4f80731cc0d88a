"""`dino_nano`: timm's vision transformer at a size that two CPU cores can train and search."""

from __future__ import annotations

from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer

from redfree.models.catalogue import DinoNanoArchitecture

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_dino_nano(arch: DinoNanoArchitecture, input_side: int | None = None) -> VisionTransformer:
    """Builds an untrained `VisionTransformer` of the given sizes, with a class token and without a classifier.

    Args:
        arch: its sizes.
        input_side: height and width of the input in pixels where it is another than that of the training; position
            embeddings are interpolated then.
    """
    module = VisionTransformer(
        img_size=arch.image_size,
        patch_size=arch.patch_size,
        embed_dim=arch.channels,
        depth=arch.depth,
        num_heads=arch.heads,
        init_values=1.0,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
    )
    side = input_side or arch.image_size
    cast(Any, module).pretrained_cfg = {
        "input_size": (3, side, side),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    return module
