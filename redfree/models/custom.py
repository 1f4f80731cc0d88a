"""A model of your own, from two functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import resize

from redfree.data.schema import Prompt
from redfree.errors import UserError
from redfree.models.base import Features, Frame, MapDecoder
from redfree.models.promptable import too_thin

Encode = Callable[[Tensor], Tensor]
Decode = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class FunctionModel:
    """A frozen model that consists of an encoder and a decoder function.

    Images are squashed to the square input, as SAM 2 does.

    Attributes:
        name: name under which records list the model.
        channels: channels C of the features.
        input_side: height and width S of the input in pixels.
        encode_images: from RGB images (B, 3, S, S) in 0..1 to features (B, C, H, W).
        decode_points: from maps (M, C, H, W), points (N, 2) as (x, y) pixel indices of the input, and labels (N,), 1 on
            the object and 0 off it, to logits (M, h, w), positive on the object; S must be a multiple of h and w.
        checkpoint_sha256: what identifies the weights; every change of them must change it.
        facts: what a record should say of the model beside its name and weights.
        batch: images encoded at a time.
    """

    name: str
    channels: int
    input_side: int
    encode_images: Encode
    decode_points: Decode
    checkpoint_sha256: str
    facts: dict[str, Any] = field(default_factory=dict)
    batch: int = 8
    prefers_shared_decoding: bool = field(default=False, init=False)

    def options(self) -> dict[str, Any]:
        """What a record says of the model beside its name and weights."""
        return dict(self.facts)

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        """Features of RGB images, each (H, W, 3) uint8 of any size.

        Raises:
            UserError: an image has a side of one pixel, or the features have another number of channels.
        """
        return Features.concatenate(list(self.encode_each(images)))

    @torch.inference_mode()
    def encode_each(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[Features]:
        """As `encode`, a batch at a time."""
        for start in range(0, len(images), self.batch):
            some = images[start : start + self.batch]
            maps = self.encode_images(torch.stack([self._input(image) for image in some])).float()
            if maps.ndim != 4 or maps.shape[1] != self.channels:
                raise UserError(f"{self.name}: features of shape {tuple(maps.shape)}, not (B, {self.channels}, H, W)")
            square = (self.input_side, self.input_side)
            yield Features(maps, tuple(Frame((int(i.shape[0]), int(i.shape[1])), square) for i in some))

    def _input(self, image: NDArray[np.uint8]) -> Tensor:
        if min(image.shape[:2]) < 2:
            raise too_thin(image, self.name, self.input_side)
        pixels = torch.tensor(image).permute(2, 0, 1) / 255
        return torch.as_tensor(resize(pixels, [self.input_side, self.input_side], antialias=True)).clamp(0, 1)

    def prompt_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """Points and labels (1, N, 3) in the input's frame.

        Raises:
            UserError: the prompt is a box.
        """
        if prompt.box is not None:
            raise UserError(f"{self.name}: takes points, not boxes")
        height, width = frame.original
        points = torch.tensor(prompt.points, dtype=torch.float32)
        # Centres of pixels, not their corners, keep their place.
        placed = (points + 0.5) * self.input_side / torch.tensor([width, height]) - 0.5
        return torch.cat([placed, torch.tensor(prompt.labels, dtype=torch.float32)[:, None]], 1)[None]

    def _decode(self, maps: Tensor, tokens: Tensor) -> Tensor:
        return self.decode_points(maps, tokens[0, :, :2].to(maps.device), tokens[0, :, 2].to(maps.device))

    def map_decoder(self, image: Features, tokens: Tensor) -> MapDecoder:
        """Decodes each map of the features of one image on its own."""
        padded = torch.cat([image.maps[0], torch.zeros_like(image.maps[0, :1])])

        @torch.inference_mode()
        def decode(index: Tensor) -> Tensor:
            return self._decode(padded[torch.where(index < 0, self.channels, index)], tokens)

        return decode

    def swap_decoder(self, image: Features, tokens: Tensor) -> MapDecoder:
        """There is none for functions.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.name}: decoder: shared knows SAM's decoder only; choose generic or auto")

    @torch.inference_mode()
    def low_resolution(self, features: Features) -> tuple[tuple[int, int], int]:
        """(h, w) of the logits of features, and the factor from there to the model's input."""
        height, width = self._decode(features.maps[:1], torch.ones(1, 1, 3)).shape[-2:]
        return (int(height), int(width)), self.input_side // int(height)

    def gradient(self, features: Features, tokens: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient by the maps of B images with tokens (B, N, 3) of a loss of the low-resolution logits (B, h, w)."""
        with torch.enable_grad():
            leaf = features.maps.clone().requires_grad_()
            logits = [self._decode(one[None], given[None]) for one, given in zip(leaf, tokens, strict=True)]
            (gradient,) = torch.autograd.grad(loss(torch.cat(logits)), leaf)
        return gradient

    def upscale(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Logits (B, h, w) of one frame brought bilinearly to its `original` or `resized` size."""
        return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    @torch.inference_mode()
    def decode(self, features: Features, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Logits of each image with its prompt, each (height, width) of the image itself; positive on the object."""
        masks = []
        for one, frame, prompt in zip(features.maps, features.frames, prompts, strict=True):
            low = self._decode(one[None], self.prompt_tokens(prompt, frame))
            masks.append(self.upscale(low, frame, frame.original)[0])
        return masks
