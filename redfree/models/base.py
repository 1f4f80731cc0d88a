"""What every model offers: a heavy encoding, once for each image, and a light decoding, many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from redfree.data.schema import Prompt

# From index vectors (B, C) of one image's channels, -1 for a zeroed one, to low-resolution logits (B, h, w).
MapDecoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the model's square input.

    Attributes:
        original: (height, width) of the image in pixels.
        resized: (height, width) it takes in the top left corner of the input.
    """

    original: tuple[int, int]
    resized: tuple[int, int]


@dataclass(frozen=True)
class Features:
    """Encoder outputs of some images, on which swaps act.

    Attributes:
        maps: (B, C, H, W) float32.
        frames: the B frames.
    """

    maps: Tensor
    frames: tuple[Frame, ...]


class Model(Protocol):
    """A frozen promptable segmentation model."""

    name: str
    channels: int
    checkpoint_sha256: str

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        """Features of RGB images, each (H, W, 3) uint8 of any size."""
        ...

    def prompt_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """Prompt embeddings (1, N, C) of one prompt."""
        ...

    @property
    def prefers_shared_decoding(self) -> bool:
        """Whether `swap_decoder` is faster than `map_decoder`."""
        ...

    def map_decoder(self, features: Tensor, tokens: Tensor) -> MapDecoder:
        """Decodes each map of one image's features (C, H, W) on its own."""
        ...

    def swap_decoder(self, features: Tensor, tokens: Tensor) -> MapDecoder:
        """Decodes maps of one image's features (C, H, W), computing once what they share."""
        ...

    def low_resolution(self, features: Tensor) -> tuple[tuple[int, int], int]:
        """(h, w) of the logits of features (..., H, W), and the factor from there to the model's input."""
        ...

    def gradient(self, features: Tensor, tokens: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient by features (B, C, H, W) with tokens (B, N, C) of a loss of the low-resolution logits (B, h, w)."""
        ...

    def decode_maps(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """Low-resolution logits (B, h, w) of B feature maps (B, C, H, W) with (1, N, C) or (B, N, C) prompt tokens."""
        ...

    def upscale(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Logits (B, h, w) of one frame brought to (B, *size), size being the frame's `original` or `resized`.

        It is differentiable.
        """
        ...

    def decode(self, features: Features, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Logits of each image with its prompt, each (height, width) of the image itself; positive on the object."""
        ...
