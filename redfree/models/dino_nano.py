"""`dino_nano`: timm's vision transformer at a size that two CPU cores can train and search."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer

from redfree.models.catalogue import DinoNanoArchitecture

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_dino_nano(arch: DinoNanoArchitecture) -> VisionTransformer:
    """Builds an untrained `VisionTransformer` of the given sizes, with a class token and without a classifier."""
    return VisionTransformer(
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
