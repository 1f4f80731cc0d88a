"""Hooks that swap channels in live models of `segment_anything`, `sam2` and timm; no parameter is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from redfree.errors import UserError

if TYPE_CHECKING:
    from redfree.channels import ChannelMap

SwapOn = Literal["patches", "class", "both"]
SwapAt = Literal["after_norm", "before_norm"]


def hook_sam(model: nn.Module, channel_map: ChannelMap) -> RemovableHandle:
    """Swaps the output of the `image_encoder` of a `segment_anything` model."""
    encoder = cast(nn.Module, model.image_encoder)
    _require_channels(_output_channels(encoder), channel_map)
    return encoder.register_forward_hook(lambda _module, _inputs, output: channel_map.apply(output))


def hook_sam2(model: nn.Module, channel_map: ChannelMap, at: str) -> RemovableHandle:
    """Swaps the image embedding of a `sam2` model.

    Args:
        model: a `SAM2Base`.
        channel_map: the swap.
        at: "image_embed" swaps what the decoder is given, also where a predictor had encoded the image before;
            "before_no_mem_embed" swaps what the encoder gives.

    Raises:
        UserError: the model has other channels than the swap, or no such place.
    """
    _require_channels(int(cast(Any, model).hidden_dim), channel_map)

    def before_decoding(_module: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
        return inputs, {**named, "image_embeddings": channel_map.apply(named["image_embeddings"])}

    def after_encoding(_module: nn.Module, _inputs: object, output: dict[str, Any]) -> dict[str, Any]:
        *finer, features = output["backbone_fpn"]
        mapped = channel_map.apply(features)
        return {**output, "vision_features": mapped, "backbone_fpn": [*finer, mapped]}

    if at == "image_embed":
        decoder = cast(nn.Module, model.sam_mask_decoder)
        return decoder.register_forward_pre_hook(before_decoding, with_kwargs=True)
    if at == "before_no_mem_embed":
        return cast(nn.Module, model.image_encoder).register_forward_hook(after_encoding)
    raise UserError(f"at={at!r} is no place in a sam2 model; it is image_embed or before_no_mem_embed")


def hook_tokens(
    module: nn.Module, channel_map: ChannelMap, swap_on: SwapOn = "both", swap_at: SwapAt = "after_norm"
) -> RemovableHandle:
    """Makes `forward_features` of a live timm model, and so the model itself, give swapped tokens.

    It hooks the final norm, `module.norm`, in which `forward_features` of timm's token models ends.
    `forward_intermediates`, which applies the same norm where asked to, is swapped there too.

    Args:
        module: a timm model whose `forward_features` gives tokens (B, N, C).
        channel_map: the swap.
        swap_on: tokens that are swapped.
        swap_at: whether the output or the input of the norm is swapped.

    Returns:
        A handle whose `remove()` restores the model.

    Raises:
        UserError: the model has no final norm of its own, no class token to swap, other channels than the swap, or no
            such place. Features that turn out not to be tokens raise it at the model's next call.
    """
    norm, layout = getattr(module, "norm", None), token_layout(module)
    if not isinstance(norm, nn.Module) or isinstance(norm, nn.ModuleList):
        raise UserError(f"{type(module).__name__} has no final norm; attach to a timm model that gives tokens")
    if swap_at not in ("after_norm", "before_norm"):
        raise UserError(f"at={swap_at!r} is no place in a timm model; it is after_norm or before_norm")
    check_class(layout[1], swap_on)
    _require_channels(int(cast(Any, module).num_features), channel_map)

    def swap(features: Tensor) -> Tensor:
        if features.ndim != 3:
            raise UserError(f"{type(module).__name__} gives no tokens but {tuple(features.shape)}; detach the swap")
        return swap_tokens(features, channel_map, swap_on, *layout)

    if swap_at == "after_norm":
        return norm.register_forward_hook(lambda _norm, _inputs, output: swap(output))
    return norm.register_forward_pre_hook(lambda _norm, inputs: (swap(inputs[0]), *inputs[1:]))


def token_layout(module: nn.Module) -> tuple[int, bool]:
    """Number of tokens before the patches of a timm model, and whether the first is a class token."""
    # Most of timm's models name the parameter so, in whatever submodule it lies.
    has_class = any(name.split(".")[-1].startswith("cls_token") for name, _ in module.named_parameters())
    return int(getattr(module, "num_prefix_tokens", has_class)), has_class


def swap_tokens(tokens: Tensor, channel_map: ChannelMap, swap_on: SwapOn, prefix: int, has_class: bool) -> Tensor:
    """Tokens (B, N, C) of which patches, class token, or both are mapped; registers never are."""
    mapped = channel_map.apply(tokens, dim=-1)
    if channel_map.is_identity:
        return tokens
    index = torch.arange(tokens.shape[1], device=tokens.device)
    patches, classes = index >= prefix, (index == 0) & has_class
    chosen = {"patches": patches, "class": classes, "both": patches | classes}[swap_on]
    return torch.where(chosen[:, None], mapped, tokens)


def check_class(has_class: bool, swap_on: SwapOn) -> None:
    """Checks that there is a class token where one is to be swapped.

    Raises:
        UserError: there is none.
    """
    if swap_on == "class" and not has_class:
        raise UserError("swap_on: class, but the model has no class token; choose patches")


def _require_channels(channels: int, channel_map: ChannelMap) -> None:
    if channels != channel_map.channels:
        raise UserError(f"the swap is for {channel_map.channels} channels, the model has {channels}")


def _output_channels(encoder: nn.Module) -> int:
    norms = [m for m in encoder.modules() if type(m).__name__ == "LayerNorm2d"]
    if not norms:
        raise UserError("the image_encoder is not segment_anything's: it ends in no LayerNorm2d")
    return len(cast(nn.Parameter, norms[-1].weight))
