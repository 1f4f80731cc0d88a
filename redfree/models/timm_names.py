"""What timm calls the backbones whose weights redfree knows by name. Imports neither torch nor timm."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_DINOV2_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}

# Of OpenAI's weights timm has two forms; those with quickgelu compute what the original does. Of DINOv3's, those with
# qkvb keep the biases that the original files hold; its largest model has none.
TIMM_BACKBONES: Mapping[str, str] = MappingProxyType(
    {
        **{f"dinov2_vit{s}14": f"vit_{size}_patch14_dinov2.lvd142m" for s, size in _DINOV2_SIZES.items()},
        **{f"dinov2_vit{s}14_reg4": f"vit_{size}_patch14_reg4_dinov2.lvd142m" for s, size in _DINOV2_SIZES.items()},
        "clip_vit_b16": "vit_base_patch16_clip_quickgelu_224.openai",
        "clip_vit_b32": "vit_base_patch32_clip_quickgelu_224.openai",
        "clip_vit_l14": "vit_large_patch14_clip_quickgelu_224.openai",
        "mae_vit_b": "vit_base_patch16_224.mae",
        "dinov3_vits16": "vit_small_patch16_dinov3_qkvb.lvd1689m",
        "dinov3_vits16plus": "vit_small_plus_patch16_dinov3_qkvb.lvd1689m",
        "dinov3_vitb16": "vit_base_patch16_dinov3_qkvb.lvd1689m",
        "dinov3_vitl16": "vit_large_patch16_dinov3_qkvb.lvd1689m",
        "dinov3_vith16plus": "vit_huge_plus_patch16_dinov3_qkvb.lvd1689m",
        "dinov3_vit7b16": "vit_7b_patch16_dinov3.lvd1689m",
        "dinov3_vitl16_sat493m": "vit_large_patch16_dinov3_qkvb.sat493m",
        "dinov3_vit7b16_sat493m": "vit_7b_patch16_dinov3.sat493m",
    }
)
