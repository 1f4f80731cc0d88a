"""Token models: any backbone of timm, such as DINOv2, CLIP, MAE and DINOv3, with swaps on its features."""

from __future__ import annotations

import contextlib
import difflib
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from redfree.channels import ChannelMap
from redfree.errors import UserError, unknown
from redfree.hooks import SwapAt, SwapOn, check_class, swap_tokens, token_layout
from redfree.models.promptable import Encoding
from redfree.models.timm_names import TIMM_BACKBONES

Fit = Literal["crop", "squash"]


@dataclass(frozen=True)
class TokenFeatures:
    """Features of some images.

    Attributes:
        tokens: (B, N, C) float32, on which swaps act: the prefix, then the patches row by row.
        prefix: number of leading tokens that are no patches: the class token, if any, then the registers.
        grid: (h, w) of the patches; N is prefix + h * w.
        has_class: whether the first token is a class token.
        normalised: whether the tokens have passed the model's final norm.
    """

    tokens: Tensor
    prefix: int
    grid: tuple[int, int]
    has_class: bool
    normalised: bool

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Memory that the tokens take."""
        return self.tokens.nbytes

    @property
    def class_token(self) -> Tensor:
        """Class tokens (B, C).

        Raises:
            UserError: the model has none.
        """
        if not self.has_class:
            raise UserError("the model has no class token; use its patches")
        return self.tokens[:, 0]

    @property
    def patches(self) -> Tensor:
        """Patch tokens (B, h * w, C)."""
        return self.tokens[:, self.prefix :]

    @property
    def mean_patch(self) -> Tensor:
        """Mean of the patch tokens of each image, (B, C)."""
        return self.patches.mean(1)

    @property
    def maps(self) -> Tensor:
        """Patch tokens as maps (B, C, h, w)."""
        return self.patches.transpose(1, 2).reshape(len(self), self.tokens.shape[2], *self.grid)

    def pooled(self) -> Tensor:
        """Class token and mean patch (B, 2C), the input of DINOv2's linear head; mean patch (B, C) without the former.

        The head wants normalised tokens (`_LinearClassifierWrapper` in dinov2's hub/classifiers.py).
        """
        return torch.cat([self.class_token, self.mean_patch], 1) if self.has_class else self.mean_patch

    def select(self, images: Sequence[int]) -> TokenFeatures:
        """The features of some of the images."""
        return replace(self, tokens=self.tokens[list(images)])

    def with_tokens(self, tokens: Tensor) -> TokenFeatures:
        """The same with other tokens (B, N, C)."""
        return replace(self, tokens=tokens)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenFeatures]) -> TokenFeatures:
        """The features of the images of all parts, in order.

        Raises:
            ValueError: there are no parts, or they are not of one model and one input size.
        """
        if len({(part.prefix, part.grid, part.has_class, part.normalised) for part in parts}) != 1:
            raise ValueError("features to concatenate must be some, and of one model and one input size")
        return parts[0].with_tokens(torch.cat([part.tokens for part in parts]))


def _final_norm(module: nn.Module) -> nn.Module | None:
    norm = getattr(module, "norm", None)
    return norm if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity | nn.ModuleList) else None


class TokenModel:
    """A frozen timm model with swaps on the tokens that its `forward_features` gives.

    Swaps act by default on "both", the class token and the patches: they share their channels and the norm, and
    DINOv2's linear heads read both. Without a class token "both" means the patches. Registers, and the distillation
    token of DeiT, are never swapped. Where `forward_features` gives maps, as in a ResNet, these are the patches.

    Attributes:
        name: name under which records list the model.
        module: the wrapped model, in evaluation mode, without gradients.
        checkpoint_sha256: hex SHA-256 of the weights file.
        encoding: how images are encoded; its `attention` concerns SAM alone.
        swap_on: tokens that are swapped.
        swap_at: whether tokens are taken, and swapped, after or before the final norm. Of a model that norms after
            pooling (timm's fc_norm) or not at all both are the same.
        fit: how an image becomes a square. "crop" is timm's evaluation transform as resolved from the model: the
            shorter side is resized, the centre cropped. "squash" resizes the whole image, whatever its shape.
        channels: channels C of the tokens.
        input_side: height and width of the model's input in pixels.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        checkpoint_sha256: str,
        encoding: Encoding | None = None,
        *,
        swap_on: SwapOn = "both",
        swap_at: SwapAt = "after_norm",
        fit: Fit = "crop",
    ) -> None:
        """Freezes the model.

        Raises:
            UserError: class tokens are to be swapped and the model has none, or its input is not square.
        """
        self.name, self.checkpoint_sha256, self.encoding = name, checkpoint_sha256, encoding or Encoding()
        self.module = module.eval().requires_grad_(False)
        self.swap_on, self.swap_at, self.fit = swap_on, swap_at, fit
        self.channels, self._layout = int(cast(int, module.num_features)), token_layout(module)
        check_class(self._layout[1], swap_on)
        norm, before = _final_norm(module), swap_at == "before_norm"
        # The norm that has yet to follow the features, if any.
        self._due, self._normalised = norm if before else None, norm is not None and not before
        config = _data_config(module)
        if config["input_size"][1] != config["input_size"][2]:
            raise UserError(f"{name}: its input of {config['input_size'][1:]} is not square; give input_side")
        self.input_side = int(config["input_size"][1])
        whole = {"crop_mode": "squash", "crop_pct": 1.0} if fit == "squash" else {}
        self._transform = create_transform(**{**config, **whole})

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    def options(self) -> dict[str, Any]:
        """What a record says of the model beside its name and weights."""
        return {"swap_on": self.swap_on, "swap_at": self.swap_at, "fit": self.fit, "input_side": self.input_side}

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> TokenFeatures:
        """Tokens of RGB images, each (H, W, 3) uint8 of any size.

        Raises:
            UserError: the model gives neither tokens nor maps, or does not end in the norm before which they are taken.
            ValueError: there are no images.
        """
        return TokenFeatures.concatenate(list(self.encode_each(images)))

    @torch.inference_mode()
    def encode_each(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[TokenFeatures]:
        """As `encode`, a batch at a time."""
        for start in range(0, len(images), self.encoding.batch):
            batch = images[start : start + self.encoding.batch]
            inputs = torch.stack([self._transform(Image.fromarray(image)) for image in batch]).to(self.device)
            with self.encoding.autocast(self.device):
                output = self._forward(inputs)
            yield self._as_features(output)

    def swapped(self, features: TokenFeatures, channel_map: ChannelMap) -> TokenFeatures:
        """What `forward_features` would give with the swap: the mapped tokens, after the model's final norm.

        Args:
            features: what this model's `encode` gave.
            channel_map: the swap; the identity gives `forward_features` bit for bit.

        Raises:
            ValueError: the features were taken on the other side of the norm, or the map has other channels.
        """
        if features.normalised != self._normalised:
            raise ValueError(f"these features were not taken where this model swaps, {self.swap_at}")
        tokens = swap_tokens(features.tokens, channel_map, self.swap_on, features.prefix, features.has_class)
        if self._due is None:
            return features.with_tokens(tokens)
        with torch.inference_mode(), self.encoding.autocast(self.device):
            return replace(features, tokens=self._due(tokens).float(), normalised=True)

    def _forward(self, inputs: Tensor) -> object:
        """The features at `swap_at`."""
        forward = cast(Any, self.module).forward_features
        if self._due is None:
            return forward(inputs)
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self._due.register_forward_hook(lambda _norm, args, output: seen.append((args[0], output)))
        try:
            result = forward(inputs)
        finally:
            handle.remove()
        if not seen or seen[-1][1] is not result:
            raise UserError(f"{self.name} does not end in its norm; choose swap_at: after_norm")
        return seen[-1][0]

    def _as_features(self, output: object) -> TokenFeatures:
        if isinstance(output, Tensor) and output.ndim == 4:
            if self._due is not None:
                raise UserError(f"{self.name} gives maps, which are swapped as they are; choose swap_at: after_norm")
            if getattr(self.module, "output_fmt", "NCHW") != "NHWC":
                output = output.permute(0, 2, 3, 1)
            tokens, grid = output.flatten(1, 2).float().contiguous(), (output.shape[1], output.shape[2])
            return TokenFeatures(tokens, 0, grid, False, self._normalised)
        if not isinstance(output, Tensor) or output.ndim != 3:
            raise UserError(f"{self.name} gives neither tokens nor maps; choose another backbone")
        (prefix, has_class), count = self._layout, output.shape[1]
        side = math.isqrt(max(count - prefix, 0))
        if side == 0 or prefix + side**2 != count:
            raise UserError(f"{self.name} gives {count} tokens, not {prefix} and a square of patches; choose another")
        return TokenFeatures(output.float(), prefix, (side, side), has_class, self._normalised)


def _data_config(module: nn.Module) -> dict[str, Any]:
    config = dict(resolve_model_data_config(module))  # type: ignore[no-untyped-call]
    embed = getattr(module, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    # A model of a fixed size may have been built for another than its published one; without a published
    # configuration timm would assume 224.
    if size is not None and (getattr(embed, "strict_img_size", False) or not hasattr(module, "pretrained_cfg")):
        config["input_size"] = (config["input_size"][0], *size)
    return config


def build_timm(name: str, input_side: int | None = None) -> nn.Module:
    """Builds an untrained backbone whose state dict has the shapes of the published weights.

    It has a classifier only where the published file holds one: CLIP's projection, for example.

    Args:
        name: a key of `TIMM_BACKBONES`, or any name that timm knows, with or without its tag.
        input_side: height and width of the input in pixels; the published ones if null. Vision transformers
            interpolate the published position embeddings at every call (timm's `dynamic_img_size`): as DINOv2's own
            code does with registers, not quite as it does without them. Other models of a fixed size are built for
            this one.

    Raises:
        UserError: timm has no such model, or its patches do not divide the side.
    """
    name = _timm_name(name)
    if input_side is None:
        return timm.create_model(name, pretrained=False)
    module = _create_at(name, input_side)
    size = getattr(getattr(module, "patch_embed", None), "patch_size", 1)
    patch = size if isinstance(size, int) else size[0]
    if input_side % patch:
        near = max(1, round(input_side / patch)) * patch
        raise UserError(f"input_side: {input_side} is not a multiple of the model's patches of {patch}; take {near}")
    published = cast(dict[str, Any], module.pretrained_cfg)
    cast(Any, module).pretrained_cfg = {**published, "input_size": (3, input_side, input_side)}
    return module


def _create_at(name: str, input_side: int) -> nn.Module:
    with contextlib.suppress(TypeError):  # timm keeps no list of the models that know the argument
        module = timm.create_model(name, pretrained=False, dynamic_img_size=True)
        if getattr(module, "dynamic_img_size", False):
            return module
    config = timm.models.get_pretrained_cfg(name)
    fixed: dict[str, Any] = {"img_size": input_side} if config is not None and config.fixed_input_size else {}
    return timm.create_model(name, pretrained=False, **fixed)


def _timm_name(name: str) -> str:
    known = {*TIMM_BACKBONES, *timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise unknown("timm backbone", name, nearest or TIMM_BACKBONES)
    return TIMM_BACKBONES.get(name, name)


def timm_state(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An official state dict in the keys of its timm model, by timm's own conversion.

    It knows the files of DINOv2 (whose mask token is dropped; with registers the class token takes in its position
    embedding), OpenAI's CLIP, MAE and DINOv3, and leaves a state dict of timm's as it is.

    Args:
        module: the model that the state is for, whose Python module holds the conversion, `checkpoint_filter_fn`.
        state: tensors by their official names.

    Returns:
        Tensors by timm's names, to be loaded strictly; the state itself where timm cannot convert it, so that strict
        loading says what is wrong with it.
    """
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints the biases that a DINOv3 model has no place for
            return cast(Mapping[str, Tensor], convert(dict(state), module))
    except (KeyError, RuntimeError):
        return state
