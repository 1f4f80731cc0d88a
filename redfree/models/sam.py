"""Models of the `segment_anything` package behind the common interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from redfree.data.schema import Prompt
from redfree.models.base import Features, Frame, MapDecoder
from redfree.models.decoding import decode_features, embed_points
from redfree.models.swap_decoding import SharedWeights, SwapDecoder, changes_of

_ENCODE_BATCH = 16


class SamModel:
    """A frozen `Sam`; agrees with `SamPredictor(multimask_output=False)` to 1e-5 on logits.

    Attributes:
        name: name under which records list the model.
        sam: the wrapped model, in evaluation mode, without gradients.
        channels: channels of the encoder output.
        checkpoint_sha256: hex SHA-256 of the weights file.
    """

    def __init__(self, name: str, sam: Sam, checkpoint_sha256: str) -> None:
        """Freezes the model."""
        self.name, self.sam, self.checkpoint_sha256 = name, sam.eval().requires_grad_(False), checkpoint_sha256
        self.channels = int(sam.prompt_encoder.embed_dim)
        self._resize = ResizeLongestSide(sam.image_encoder.img_size)

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(p.numel() for p in self.sam.parameters())

    def _frame(self, image: NDArray[np.uint8]) -> Frame:
        original = (int(image.shape[0]), int(image.shape[1]))
        height, width = self._resize.get_preprocess_shape(*original, self._resize.target_length)
        return Frame(original, (int(height), int(width)))

    def _input(self, image: NDArray[np.uint8]) -> Tensor:
        resized = self._resize.apply_image(image)
        return cast(Tensor, self.sam.preprocess(torch.tensor(resized, device=self.sam.device).permute(2, 0, 1)))

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        """Features of RGB images, each (H, W, 3) uint8 of any size, resized and padded as `SamPredictor` does."""
        maps = [
            self.sam.image_encoder(torch.stack([self._input(image) for image in images[start : start + _ENCODE_BATCH]]))
            for start in range(0, len(images), _ENCODE_BATCH)
        ]
        return Features(torch.cat(maps), tuple(self._frame(image) for image in images))

    @torch.inference_mode()
    def prompt_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """Prompt embeddings (1, N, C) of one prompt, whose points are pixel indices of the original image."""
        points = self._resize.apply_coords(np.asarray(prompt.points, np.float64), frame.original)
        coordinates = torch.tensor(points, dtype=torch.float32, device=self.sam.device)[None]
        return embed_points(self.sam, coordinates, torch.tensor(prompt.labels, device=self.sam.device)[None])

    @torch.inference_mode()
    def decode_maps(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """Low-resolution logits (B, 4H, 4W) of B feature maps (B, C, H, W) with (1, N, C) or (B, N, C) tokens."""
        return decode_features(self.sam, maps, tokens)[0]

    @cached_property
    def _shared_weights(self) -> SharedWeights:
        return SharedWeights(self.sam)

    @property
    def prefers_shared_decoding(self) -> bool:
        """Whether `swap_decoder` is faster: an attention's rank, heads times 7 tokens, is far below the channels."""
        return self.channels >= 2 * 7 * int(self.sam.mask_decoder.transformer.num_heads)

    def map_decoder(self, features: Tensor, tokens: Tensor) -> MapDecoder:
        """Decodes each map of one image's features (C, H, W) on its own, with prompt tokens (1, N, C)."""
        padded = torch.cat([features, torch.zeros_like(features[:1])])
        return lambda index: self.decode_maps(padded[torch.where(index < 0, self.channels, index)], tokens)

    def swap_decoder(self, features: Tensor, tokens: Tensor) -> MapDecoder:
        """Decodes maps of one image's features (C, H, W), computing once what they share (`SwapDecoder`)."""
        with torch.inference_mode():
            decoder = SwapDecoder(self._shared_weights, features, tokens)

        @torch.inference_mode()
        def decode(index: Tensor) -> Tensor:
            return decoder(*changes_of(features, index))

        return decode

    def low_resolution(self, features: Tensor) -> tuple[tuple[int, int], int]:
        """(h, w) of the logits of features (..., H, W), and the factor from there to the model's input."""
        height, width = (4 * int(side) for side in features.shape[-2:])
        return (height, width), self._resize.target_length // height

    def gradient(self, features: Tensor, tokens: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient by features (B, C, H, W) with tokens (B, N, C) of a loss of the low-resolution logits (B, h, w)."""
        with torch.enable_grad():
            leaf = features.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(decode_features(self.sam, leaf, tokens.clone())[0]), leaf)
        return gradient

    def upscale(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Logits brought to the frame's `original` or `resized` size, as `Sam.postprocess_masks` does."""
        side = self._resize.target_length
        full = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
        cropped = full[..., : frame.resized[0], : frame.resized[1]]
        if size != frame.resized:
            cropped = F.interpolate(cropped, size, mode="bilinear", align_corners=False)
        return cropped[:, 0]

    def decode(self, features: Features, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Logits of each image with its prompt, each (height, width) of the image itself; positive on the object."""
        return [
            self.upscale(self.decode_maps(one[None], self.prompt_tokens(prompt, frame)), frame, frame.original)[0]
            for one, frame, prompt in zip(features.maps, features.frames, prompts, strict=True)
        ]
