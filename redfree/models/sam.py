"""Models of the `segment_anything` package behind the common interface."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from redfree.data.schema import Prompt
from redfree.models.base import Features, Frame
from redfree.models.decoding import DecoderLayers, sam_layers
from redfree.models.lean_attention import lean_attention
from redfree.models.promptable import Encoding, PromptableModel, too_thin


class SamModel(PromptableModel):
    """A frozen `Sam`; agrees with `SamPredictor(multimask_output=False)` to 1e-5 on logits."""

    feature_parts = ("image_encoder",)

    def __init__(self, name: str, sam: Sam, checkpoint_sha256: str, encoding: Encoding | None = None) -> None:
        """Freezes the model."""
        super().__init__(name, sam, checkpoint_sha256, encoding or Encoding())
        self.sam, self.channels = sam, int(sam.prompt_encoder.embed_dim)
        self.input_side = int(sam.image_encoder.img_size)
        self._resize = ResizeLongestSide(self.input_side)

    def fresh_layers(self) -> DecoderLayers:
        """The layers of the decoder, of whose weights some are copied as they are now; gradients flow."""
        return sam_layers(self.sam)

    def _frame(self, image: NDArray[np.uint8]) -> Frame:
        original = (int(image.shape[0]), int(image.shape[1]))
        height, width = self._resize.get_preprocess_shape(*original, self.input_side)
        if min(height, width) < 1:
            raise too_thin(image, self.name, self.input_side)
        return Frame(original, (int(height), int(width)))

    def _input(self, image: NDArray[np.uint8]) -> Tensor:
        resized = self._resize.apply_image(image)
        return cast(Tensor, self.sam.preprocess(torch.tensor(resized, device=self.device).permute(2, 0, 1)))

    def _encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        frames = tuple(self._frame(image) for image in images)
        inputs = torch.stack([self._input(image) for image in images])
        # Lean attention takes no gradient.
        lean = self.encoding.attention == "lean" and not torch.is_grad_enabled()
        with lean_attention(self.sam.image_encoder) if lean else nullcontext():
            return Features(self.sam.image_encoder(inputs), frames)

    def trainable_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """As `prompt_tokens`; gradients flow to the prompt encoder."""
        points, boxes = None, None
        if prompt.points:
            placed = self._resize.apply_coords(np.asarray(prompt.points, np.float64), frame.original)
            labels = torch.tensor(prompt.labels, device=self.device)
            points = (self._tensor(placed)[None], labels[None])
        if prompt.box is not None:
            boxes = self._tensor(self._resize.apply_boxes(np.asarray([prompt.box], np.float64), frame.original))
        sparse, _ = self.sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        return cast(Tensor, sparse)

    def _tensor(self, coordinates: NDArray[Any]) -> Tensor:
        return torch.tensor(coordinates, dtype=torch.float32, device=self.device)

    def upscale(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Logits brought to the frame's `original` or `resized` size, as `Sam.postprocess_masks` does."""
        square = (self.input_side, self.input_side)
        full = F.interpolate(logits[:, None], square, mode="bilinear", align_corners=False)
        cropped = full[..., : frame.resized[0], : frame.resized[1]]
        if size != frame.resized:
            cropped = F.interpolate(cropped, size, mode="bilinear", align_corners=False)
        return cropped[:, 0]
