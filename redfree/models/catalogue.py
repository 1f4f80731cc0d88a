"""Names, sizes and options of the models; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from redfree.models.timm_names import TIMM_BACKBONES
from redfree.validation import Strict


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


NANO_ARCHITECTURES = {"sam_nano": NanoArchitecture(), "sam_nano256": NanoArchitecture(channels=256)}


@dataclass(frozen=True)
class Sam2NanoArchitecture:
    """Sizes of a small SAM 2.

    Attributes:
        image_size: side of the square input in pixels.
        channels: channels of the features at stride 16, on which swaps act.
        embed_dim: width of Hiera's first stage; it doubles from stage to stage.
        stages: blocks of each of the four stages, which have strides 4, 8, 16 and 32.
        windows: side of the attention windows of each stage.
        global_blocks: blocks with global attention.
        background: side of the positional embedding that is stretched over the image.
    """

    image_size: int = 128
    channels: int = 64
    embed_dim: int = 40
    stages: tuple[int, ...] = (1, 2, 5, 1)
    windows: tuple[int, ...] = (8, 4, 8, 4)
    global_blocks: tuple[int, ...] = (5, 7)
    background: int = 4


SAM2_NANO_ARCHITECTURES = {"sam2_nano": Sam2NanoArchitecture()}


@dataclass(frozen=True)
class DinoNanoArchitecture:
    """Sizes of a small vision transformer.

    Attributes:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        channels: width of the tokens, on which swaps act.
        depth: number of blocks.
        heads: attention heads of a block.
    """

    image_size: int = 128
    patch_size: int = 16
    channels: int = 128
    depth: int = 6
    heads: int = 4


DINO_NANO_ARCHITECTURES = {"dino_nano": DinoNanoArchitecture()}

Family = Literal["segment_anything", "sam2", "timm", "mobile_sam"]
PROMPTABLE: tuple[Family, ...] = ("segment_anything", "sam2", "mobile_sam")


class ModelOptions(Strict):
    """How a model is run; every option that is not at its default is part of a record's identity.

    Attributes:
        batch: images encoded at a time; null takes 16 for nano models and 1 for others.
        precision: number format of the encoder's matrix products; features are float32 in any case.
        attention: of SAM's encoder: lean never holds a large attention matrix, official is the package's own code.
        device: where the model computes.
        features: number format to which features are rounded, and in which they are kept on disk.
    """

    batch: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["lean", "official"] = "lean"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    features: Literal["float32", "float16"] = "float32"

    def recorded(self) -> dict[str, JsonValue]:
        """What a record says of the model: the options of its family, and others that are not at their default."""
        own = self.model_dump(mode="json", exclude=set(ModelOptions.model_fields))
        return {**own, **self.model_dump(mode="json", include=set(ModelOptions.model_fields), exclude_defaults=True)}


class Sam2Options(ModelOptions):
    """Options of SAM 2.

    Attributes:
        apply_postprocessing: whether an unstable single mask gives way to the best of three, as `build_sam2` has it by
            default; off here, because it makes scores jump.
        swap_at: swaps act on the `image_embed` that the predictor keeps, or before `no_mem_embed` is added to it.
    """

    apply_postprocessing: bool = False
    swap_at: Literal["image_embed", "before_no_mem_embed"] = "image_embed"


class TokenOptions(ModelOptions):
    """Options of token models.

    Attributes:
        swap_on: tokens on which swaps act; registers never.
        swap_at: before or after the final norm.
        fit: how an image is brought to the model's input: cropped to a square by timm's evaluation transform, or
            squashed as a whole.
        input_side: height and width of the input in pixels; null takes the model's own.
    """

    swap_on: Literal["patches", "class", "both"] = "both"
    swap_at: Literal["after_norm", "before_norm"] = "after_norm"
    fit: Literal["crop", "squash"] = "crop"
    input_side: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class ModelEntry:
    """A model by name.

    Attributes:
        family: the package that its classes come from.
        architecture: what that package calls it; the model's own name for nano models.
        parameters: number of parameters; None where nobody could count them here.
        channels: channels of the features, on which swaps act.
        ships: whether its weights are part of redfree; others are in the registry of checkpoints under the same name.
    """

    family: Family
    architecture: str
    parameters: int | None
    channels: int
    ships: bool = False

    @property
    def promptable(self) -> bool:
        """Whether it makes masks from prompts."""
        return self.family in PROMPTABLE

    @property
    def options(self) -> type[ModelOptions]:
        """The options that it takes."""
        own: dict[Family, type[ModelOptions]] = {"sam2": Sam2Options, "timm": TokenOptions}
        return own.get(self.family, ModelOptions)


def _sam2(version: str, size: str, parameters: int) -> ModelEntry:
    return ModelEntry("sam2", f"configs/{version}/{version}_hiera_{size}.yaml", parameters, 256)


def _timm(name: str, parameters: int, channels: int) -> dict[str, ModelEntry]:
    return {name: ModelEntry("timm", TIMM_BACKBONES[name], parameters, channels)}


MODELS: Mapping[str, ModelEntry] = {
    "sam_nano": ModelEntry("segment_anything", "sam_nano", 2_631_560, 64, ships=True),
    "sam_nano256": ModelEntry("segment_anything", "sam_nano256", 5_255_024, 256, ships=True),
    "sam2_nano": ModelEntry("sam2", "sam2_nano", 3_609_033, 64, ships=True),
    "dino_nano": ModelEntry("timm", "dino_nano", 1_298_304, 128, ships=True),
    "sam_vit_b": ModelEntry("segment_anything", "vit_b", 93_735_472, 256),
    "sam_vit_l": ModelEntry("segment_anything", "vit_l", 312_342_832, 256),
    "sam_vit_h": ModelEntry("segment_anything", "vit_h", 641_090_608, 256),
    "sam2_hiera_tiny": _sam2("sam2", "t", 38_945_986),
    "sam2_hiera_small": _sam2("sam2", "s", 46_043_842),
    "sam2_hiera_base_plus": _sam2("sam2", "b+", 80_833_666),
    "sam2_hiera_large": _sam2("sam2", "l", 224_430_130),
    "sam2.1_hiera_tiny": _sam2("sam2.1", "t", 38_962_498),
    "sam2.1_hiera_small": _sam2("sam2.1", "s", 46_060_354),
    "sam2.1_hiera_base_plus": _sam2("sam2.1", "b+", 80_850_178),
    "sam2.1_hiera_large": _sam2("sam2.1", "l", 224_446_642),
    "mobile_sam": ModelEntry("mobile_sam", "vit_t", None, 256),
    **_timm("dinov2_vits14", 22_056_192, 384),
    **_timm("dinov2_vitb14", 86_579_712, 768),
    **_timm("dinov2_vitl14", 304_367_616, 1024),
    **_timm("dinov2_vitg14", 1_136_479_232, 1536),
    **_timm("dinov2_vits14_reg4", 22_057_344, 384),
    **_timm("dinov2_vitb14_reg4", 86_582_016, 768),
    **_timm("dinov2_vitl14_reg4", 304_370_688, 1024),
    **_timm("dinov2_vitg14_reg4", 1_136_483_840, 1536),
    **_timm("clip_vit_b16", 86_193_152, 768),
    **_timm("mae_vit_b", 85_798_656, 768),
    **_timm("dinov3_vits16", 21_596_160, 384),
    **_timm("dinov3_vitb16", 85_659_648, 768),
    **_timm("dinov3_vitl16", 303_128_576, 1024),
}
