"""Models of the `sam2` package (SAM 2 and 2.1) on single images, behind the common interface."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.transforms import SAM2Transforms
from torch import Tensor

from redfree.data.schema import Prompt
from redfree.errors import UserError
from redfree.models.base import Features, Frame, MapDecoder
from redfree.models.decoding import DecoderLayers, decode_all_masks, embed_points, sam2_layers
from redfree.models.promptable import Encoding, PromptableModel

SwapAt = Literal["image_embed", "before_no_mem_embed"]


class Sam2Model(PromptableModel):
    """A frozen `SAM2Base`; agrees with `SAM2ImagePredictor.predict(multimask_output=False)` to 1e-5 on logits.

    Swaps act on the `image_embed` that the predictor keeps, which holds `no_mem_embed` already, or on the features
    before it is added. They leave the two high-resolution features of the decoder alone.
    """

    # Two convolutions of the decoder make the high-resolution features.
    feature_parts = ("image_encoder", "no_mem_embed", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")

    def __init__(
        self,
        name: str,
        model: SAM2Base,
        checkpoint_sha256: str,
        encoding: Encoding | None = None,
        swap_at: SwapAt = "image_embed",
    ) -> None:
        """Freezes the model, with `apply_postprocessing` as it was built."""
        super().__init__(name, model, checkpoint_sha256, encoding or Encoding())
        self.sam2, self.channels, self.swap_at = model, int(model.hidden_dim), swap_at
        self.input_side = int(model.image_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package scripts its transforms, which torch is phasing out
            self._transforms = SAM2Transforms(self.input_side, mask_threshold=0.0)

    @property
    def post_processes(self) -> bool:
        """Whether an unstable single mask is replaced by the best of the multimask outputs."""
        return bool(self.sam2.sam_mask_decoder.dynamic_multimask_via_stability)

    def fresh_layers(self) -> DecoderLayers:
        """The layers of the decoder, of whose weights some are copied as they are now; gradients flow."""
        lacks = self.sam2.no_mem_embed[0] if self.swap_at == "before_no_mem_embed" else None
        return sam2_layers(self.sam2, lacks)

    def _encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> Features:
        inputs = torch.stack([self._transforms(np.array(image)) for image in images]).to(self.device)
        fine, middle, maps = self.sam2.forward_image(inputs)["backbone_fpn"]
        if self.swap_at == "image_embed":
            maps = maps + self.sam2.no_mem_embed[0, 0, :, None, None]
        resized = (self.input_side, self.input_side)
        frames = tuple(Frame((int(image.shape[0]), int(image.shape[1])), resized) for image in images)
        return Features(maps, frames, (fine, middle))

    def trainable_tokens(self, prompt: Prompt, frame: Frame) -> Tensor:
        """As `prompt_tokens`, a box being two points more, as the official predictor has it; gradients flow."""
        corners = () if prompt.box is None else (prompt.box[:2], prompt.box[2:])
        points = torch.tensor([*corners, *prompt.points], dtype=torch.float32, device=self.device)
        placed = self._transforms.transform_coords(points, normalize=True, orig_hw=frame.original)
        labels = torch.tensor([*(2, 3)[: len(corners)], *prompt.labels], dtype=torch.int, device=self.device)
        return embed_points(self.sam2.sam_prompt_encoder, placed[None], labels[None])

    def _logits(self, maps: Tensor, tokens: Tensor, high_resolution: Sequence[Tensor]) -> Tensor:
        if not self.post_processes:
            return super()._logits(maps, tokens, high_resolution)
        masks, quality = decode_all_masks(self.layers, maps, tokens, high_resolution)
        chosen, _ = self.sam2.sam_mask_decoder._dynamic_multimask_via_stability(masks, quality)
        return torch.as_tensor(chosen[:, 0])

    @property
    def prefers_shared_decoding(self) -> bool:
        """Whether `swap_decoder` is faster, and exact, which it is for the single mask alone."""
        return not self.post_processes and super().prefers_shared_decoding

    def swap_decoder(self, image: Features, tokens: Tensor) -> MapDecoder:
        """Decodes maps of the features of one image, computing once what they share (`SwapDecoder`).

        Raises:
            UserError: the model chooses among several masks.
        """
        if self.post_processes:
            raise UserError("decoder: shared decodes the single mask alone; with apply_postprocessing choose generic")
        return super().swap_decoder(image, tokens)

    def upscale(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
        """Logits brought to the frame's `original` or `resized` size, as `SAM2Transforms.postprocess_masks` does."""
        return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    def options(self) -> dict[str, Any]:
        """What a record says of the model beside its name and weights."""
        return {"apply_postprocessing": self.post_processes, "swap_at": self.swap_at}
