"""What every model offers: a heavy encoding, once for each image, and a light decoding, many times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
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
    """Encoder outputs of some images.

    Attributes:
        maps: (B, C, H, W) float32, on which swaps act.
        frames: the B frames.
        high_resolution: of SAM 2, the features (B, C / 8, 4H, 4W) and (B, C / 4, 2H, 2W), which swaps leave alone.
    """

    maps: Tensor
    frames: tuple[Frame, ...]
    high_resolution: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.frames)

    @property
    def nbytes(self) -> int:
        """Memory that the features take."""
        return sum(tensor.nbytes for tensor in (self.maps, *self.high_resolution))

    def fingerprint(self) -> str:
        """A hash of the values."""
        digest = hashlib.blake2b()
        for level in (self.maps, *self.high_resolution):
            digest.update(level.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def select(self, images: Sequence[int]) -> Features:
        """The features of some of the images."""
        chosen, frames = list(images), tuple(self.frames[d] for d in images)
        return Features(self.maps[chosen], frames, tuple(high[chosen] for high in self.high_resolution))

    def with_maps(self, maps: Tensor) -> Features:
        """The same with other maps (B, C, H, W)."""
        return replace(self, maps=maps)

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """The features of the images of all parts, in order."""
        frames = tuple(frame for part in parts for frame in part.frames)
        levels = zip(*(part.high_resolution for part in parts), strict=True)
        return cls(torch.cat([part.maps for part in parts]), frames, tuple(torch.cat(level) for level in levels))


class Model(Protocol):
    """A frozen promptable segmentation model."""

    name: str
    channels: int
    checkpoint_sha256: str

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        """Features of RGB images, each (H, W, 3) uint8 of any size."""
        ...

    def encode_each(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[Features]:
        """As `encode`, a batch at a time."""
        ...

    def options(self) -> dict[str, Any]:
        """What a record says of the model beside its name and weights."""
        ...

    def prompt_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """Prompt embeddings (1, N, C) of one prompt."""
        ...

    @property
    def prefers_shared_decoding(self) -> bool:
        """Whether `swap_decoder` is faster than `map_decoder`."""
        ...

    def map_decoder(self, image: Features, tokens: Tensor) -> MapDecoder:
        """Decodes each map of the features of one image on its own."""
        ...

    def swap_decoder(self, image: Features, tokens: Tensor) -> MapDecoder:
        """Decodes maps of the features of one image, computing once what they share."""
        ...

    def low_resolution(self, features: Features) -> tuple[tuple[int, int], int]:
        """(h, w) of the logits of features, and the factor from there to the model's input."""
        ...

    def gradient(self, features: Features, tokens: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient by the maps of B images with tokens (B, N, C) of a loss of the low-resolution logits (B, h, w)."""
        ...

    def upscale(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Logits (B, h, w) of one frame brought to (B, *size), size being the frame's `original` or `resized`.

        It is differentiable.
        """
        ...

    def decode(self, features: Features, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Logits of each image with its prompt, each (height, width) of the image itself; positive on the object."""
        ...
