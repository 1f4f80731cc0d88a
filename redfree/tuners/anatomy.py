"""The parts of a live model that tuners speak of, whatever package it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from redfree.errors import UserError

# Of a decoder, what a single mask without a choice among several never reaches: the IoU head, the layers of the other
# masks, and in SAM 2 the layers that tell whether there is an object.
_UNUSED_PARTS = ("iou_prediction_head.", "pred_obj_score_head.")
_MASK_KERNELS = "output_hypernetworks_mlps."
_SINGLE_MASK_KERNEL = f"{_MASK_KERNELS}0."


@dataclass(frozen=True)
class Anatomy:
    """Parts of a model, each with the prefix of its parameters' names in the whole.

    Attributes:
        module: the whole model.
        encoder_name: name of the image encoder; empty where the model is nothing but one.
        decoder_name: name of the mask decoder; None for a model that gives tokens.
        prompt_encoder_name: name of the prompt encoder; None for a model that gives tokens.
        blocks: the transformer blocks of the encoder, in order, by name; none in an encoder of another kind.
        qkv: of each block, the linear layer that makes queries, keys and values together, by name; none where they are
            apart.
    """

    module: nn.Module
    encoder_name: str
    decoder_name: str | None
    prompt_encoder_name: str | None
    blocks: Mapping[str, nn.Module]
    qkv: Mapping[str, nn.Linear]

    def parameters_of(self, part: str) -> dict[str, nn.Parameter]:
        """Parameters below a part, by their names in the whole; those of the whole for an empty name."""
        prefix = f"{part}." if part else ""
        return {name: value for name, value in self.module.named_parameters() if name.startswith(prefix)}

    def unused_by_single_mask(self) -> frozenset[str]:
        """Names of the decoder's parameters that a single mask does not depend on."""
        if self.decoder_name is None:
            return frozenset()
        prefix = f"{self.decoder_name}."
        return frozenset(name for name in self.parameters_of(self.decoder_name) if _unused(name.removeprefix(prefix)))


def _unused(name: str) -> bool:
    other_mask = name.startswith(_MASK_KERNELS) and not name.startswith(_SINGLE_MASK_KERNEL)
    return other_mask or name.startswith(_UNUSED_PARTS)


def anatomy_of(module: nn.Module) -> Anatomy:
    """The parts of a model of `segment_anything`, `sam2` or timm's vision transformers.

    Raises:
        UserError: the model is none of these.
    """
    if hasattr(module, "mask_decoder"):
        names: tuple[str, str | None, str | None] = ("image_encoder", "mask_decoder", "prompt_encoder")
        blocks = "image_encoder.blocks"
    elif hasattr(module, "sam_mask_decoder"):
        names, blocks = ("image_encoder", "sam_mask_decoder", "sam_prompt_encoder"), "image_encoder.trunk.blocks"
    elif hasattr(module, "blocks") and hasattr(module, "forward_features"):
        names, blocks = ("", None, None), "blocks"
    else:
        kind = type(module).__name__
        raise UserError(f"{kind}: tuners know segment_anything, sam2 and timm's vision transformers; use one of them")
    found = {name: block for name, block in module.named_modules() if name.rpartition(".")[0] == blocks}
    qkv = {f"{name}.attn.qkv": getattr(getattr(block, "attn", None), "qkv", None) for name, block in found.items()}
    return Anatomy(module, *names, found, {name: layer for name, layer in qkv.items() if isinstance(layer, nn.Linear)})
