"""What SAM and SAM 2 share: one light decoder behind two encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from redfree.data.schema import Prompt
from redfree.errors import UserError
from redfree.models.base import Features, Frame, MapDecoder
from redfree.models.decoding import DecoderLayers, decode_features
from redfree.models.swap_decoding import SharedWeights, SwapDecoder, changes_of

# Of a prompt of one point, with the padding that the predictors add.
_PROMPT_TOKENS = 2


@dataclass(frozen=True)
class Encoding:
    """How images are encoded.

    Attributes:
        batch: images encoded at a time.
        precision: float32, or the format of the encoder's matrix products under autocast; features are float32.
        attention: "lean" never holds a whole attention matrix, "official" runs the package's own code.
    """

    batch: int = 1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["lean", "official"] = "lean"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which an encoder on a device runs in this precision."""
        dtype = getattr(torch, self.precision)
        enabled = dtype is not torch.float32
        return torch.autocast(device.type, dtype if enabled else None, enabled=enabled)


def too_thin(image: NDArray[np.uint8], name: str, side: int) -> UserError:
    """An error for an image (H, W, 3) with nothing to segment in the square input of a model."""
    height, width = image.shape[:2]
    size = f"an image of {width} x {height} pixels (width x height)"
    return UserError(f"{size} is too thin for the {side} px input of {name}; crop its longer side, or leave it out")


class PromptableModel(ABC):
    """A frozen model that turns features and a prompt into one mask.

    Attributes:
        name: name under which records list the model.
        module: the wrapped model, in evaluation mode, without gradients.
        checkpoint_sha256: hex SHA-256 of the weights file.
        encoding: how images are encoded.
        channels: channels of the encoder output.
        input_side: height and width of the model's input in pixels.
        feature_parts: names in the module of all that features are computed with.
    """

    channels: int
    input_side: int
    feature_parts: tuple[str, ...]

    def __init__(self, name: str, module: nn.Module, checkpoint_sha256: str, encoding: Encoding) -> None:
        """Freezes the model."""
        self.name, self.checkpoint_sha256, self.encoding = name, checkpoint_sha256, encoding
        self.module = module.eval().requires_grad_(False)

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    @abstractmethod
    def fresh_layers(self) -> DecoderLayers:
        """The layers of the decoder, of whose weights some are copied as they are now; gradients flow."""

    @cached_property
    def layers(self) -> DecoderLayers:
        """The layers of the decoder, kept until `weights_changed`."""
        with torch.inference_mode(False):  # a gradient may be taken later
            return self.fresh_layers()

    def weights_changed(self) -> None:
        """Forgets what was computed from weights that somebody has changed since, as by training.

        Features that were encoded before, and scores that were logged, are not known here.
        """
        for kept in ("layers", "_shared_weights"):
            self.__dict__.pop(kept, None)

    @abstractmethod
    def _encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        """Features of a few RGB images."""

    @abstractmethod
    def trainable_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """As `prompt_tokens`; gradients flow to the prompt encoder."""

    @torch.inference_mode()
    def prompt_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """Prompt embeddings (1, N, C) of one prompt, whose points are pixel indices of the original image."""
        return self.trainable_tokens(prompt, frame)

    @abstractmethod
    def upscale(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Logits (B, h, w) of one frame brought to its `original` or `resized` size; differentiable."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        """Features of RGB images, each (H, W, 3) uint8 of any size, prepared as the official predictor does.

        Raises:
            UserError: an image has a side of one pixel, or nothing of its shorter side would be left in the input.
        """
        return Features.concatenate(list(self.encode_each(images)))

    @torch.inference_mode()
    def encode_each(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[Features]:
        """As `encode`, a batch at a time."""
        for start in range(0, len(images), self.encoding.batch):
            with self.encoding.autocast(self.device):
                features = self._encode_together(images[start : start + self.encoding.batch])
            yield features

    def trainable_features(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        """As `encode`, all images in one batch; gradients flow to the encoder, then with official attention.

        The encoding's precision holds here too, unless it is float32: then the caller's autocast does.

        Raises:
            UserError: as `encode`.
        """
        reduced = self.encoding.precision != "float32"
        with self.encoding.autocast(self.device) if reduced else nullcontext():
            return self._encode_together(images)

    def _encode_together(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        for image in images:
            if min(image.shape[:2]) < 2:
                raise too_thin(image, self.name, self.input_side)
        features = self._encode_batch(images)
        high_resolution = tuple(level.float().contiguous() for level in features.high_resolution)
        return Features(features.maps.float().contiguous(), features.frames, high_resolution)

    def _logits(self, maps: Tensor, tokens: Tensor, high_resolution: Sequence[Tensor]) -> Tensor:
        return decode_features(self.layers, maps, tokens, high_resolution)[0]

    @torch.inference_mode()
    def decode_maps(self, features: Features, tokens: Tensor) -> Tensor:
        """Low-resolution logits (B, 4H, 4W) of B maps, with prompt tokens (1, N, C) or (B, N, C).

        The maps are those of B images, or B versions of the maps of one image.
        """
        return self._logits(features.maps, tokens, features.high_resolution)

    def trainable_logits(self, features: Features, tokens: Tensor) -> Tensor:
        """As `decode_maps`, from the weights as they are now; gradients flow.

        It is the single mask's also where a model chooses among several, as SAM 2's does with post-processing.
        """
        return decode_features(self.fresh_layers(), features.maps, tokens, features.high_resolution)[0]

    @cached_property
    def _shared_weights(self) -> SharedWeights:
        return SharedWeights(self.layers)

    @property
    def prefers_shared_decoding(self) -> bool:
        """Whether `swap_decoder` is faster: an attention's rank, heads times tokens, is far below the channels."""
        return self.channels >= 2 * self.layers.heads * (len(self.layers.output_tokens) + _PROMPT_TOKENS)

    def map_decoder(self, image: Features, tokens: Tensor) -> MapDecoder:
        """Decodes each map of the features of one image on its own, with prompt tokens (1, N, C)."""
        padded = torch.cat([image.maps[0], torch.zeros_like(image.maps[0, :1])])

        def decode(index: Tensor) -> Tensor:
            return self.decode_maps(image.with_maps(padded[torch.where(index < 0, self.channels, index)]), tokens)

        return decode

    def swap_decoder(self, image: Features, tokens: Tensor) -> MapDecoder:
        """Decodes maps of the features of one image, computing once what they share (`SwapDecoder`)."""
        features, high_resolution = image.maps[0], [high[0] for high in image.high_resolution]
        with torch.inference_mode():
            decoder = SwapDecoder(self._shared_weights, features, tokens, high_resolution)

        @torch.inference_mode()
        def decode(index: Tensor) -> Tensor:
            return decoder(*changes_of(features, index))

        return decode

    def low_resolution(self, features: Features) -> tuple[tuple[int, int], int]:
        """(h, w) of the logits of features, and the factor from there to the model's input."""
        height, width = (4 * int(side) for side in features.maps.shape[-2:])
        return (height, width), self.input_side // height

    def gradient(self, features: Features, tokens: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient by the maps of B images with tokens (B, N, C) of a loss of the low-resolution logits (B, h, w)."""
        with torch.enable_grad():
            leaf, high = features.maps.clone().requires_grad_(), [h.clone() for h in features.high_resolution]
            (gradient,) = torch.autograd.grad(loss(self._logits(leaf, tokens.clone(), high)), leaf)
        return gradient

    def decode(self, features: Features, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Logits of each image with its prompt, each (height, width) of the image itself; positive on the object."""
        masks = []
        for d, (frame, prompt) in enumerate(zip(features.frames, prompts, strict=True)):
            low = self.decode_maps(features.select([d]), self.prompt_tokens(prompt, frame))
            masks.append(self.upscale(low, frame, frame.original)[0])
        return masks

    def options(self) -> dict[str, Any]:
        """What a record says of the model beside its name and weights."""
        return {}
