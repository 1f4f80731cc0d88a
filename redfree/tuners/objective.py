"""What a fit minimises: the loss of the masks that a tuned model makes of its training samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from redfree.data.stored import AnySegmentationSample, LazyImages, PackedMask
from redfree.models.base import Features, Frame
from redfree.models.promptable import PromptableModel
from redfree.progress import track
from redfree.search.evaluate import resize_mask
from redfree.tasks.loss import dice_bce_loss
from redfree.tasks.segmentation import count_pixels, image_iou
from redfree.tuners.base import Attachment


def features_are_fixed(model: PromptableModel, attachment: Attachment) -> bool:
    """Whether training leaves features as they are: nothing is inserted, nothing freed that they are computed with.

    In SAM 2 they are computed with two convolutions of the mask decoder too, so that decoder-only changes them.
    """
    below = tuple(f"{part}." for part in model.feature_parts)
    return not attachment.inserted and not any(f"{name}.".startswith(below) for name in attachment.freed)


def added_modules(attachment: Attachment) -> list[nn.Module]:
    """The modules that a tuner added: those with parameters all of which it inserted, and the modules within them.

    A module of the tuner's that wraps one of the model's is not among them; its dropout has to be in a part of its own.
    """
    inserted = {id(parameter) for parameter in attachment.inserted.values()}
    added: dict[int, nn.Module] = {}
    for module in attachment.anatomy.module.modules():
        parameters = [id(parameter) for parameter in module.parameters()]
        if parameters and inserted.issuperset(parameters):
            added |= {id(part): part for part in module.modules()}
    return list(added.values())


@contextmanager
def training_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block some modules, and none of their parts, are in training mode; after it in evaluation mode."""
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False


class Objective(nn.Module):
    """The loss of a tuned model on batches of samples, whose images and prompts may differ in size."""

    def __init__(
        self, model: PromptableModel, attachment: Attachment, samples: Sequence[AnySegmentationSample]
    ) -> None:
        """Encodes all images once where training leaves features as they are."""
        super().__init__()
        self.model, self.samples = model, samples
        # Several devices share the gradients of what is registered here.
        self.network, self.inserted = model.module, nn.ParameterList(attachment.inserted.values())
        self.fixed = _encode(model, samples) if features_are_fixed(model, attachment) else None
        self._added = added_modules(attachment)
        self._truths: dict[int, tuple[PackedMask, PackedMask | None]] = {}

    def forward(self, chosen: Sequence[int]) -> Tensor:
        """Mean loss of some samples, in the input's frame: logits brought to the size that the image takes in it.

        Dropout is active in the modules that the tuner added, and nowhere else.
        """
        with training_mode(self._added):
            features = self._trainable_features(chosen)
            pairs = zip(chosen, features.frames, strict=True)
            tokens = [self.model.trainable_tokens(self.samples[d].prompt, frame) for d, frame in pairs]
            losses = []
            # Images are decoded together where their prompts have equally many tokens.
            counts = [token.shape[1] for token in tokens]
            for _, group in groupby(sorted(range(len(chosen)), key=counts.__getitem__), key=counts.__getitem__):
                members = list(group)
                low = self.model.trainable_logits(features.select(members), torch.cat([tokens[k] for k in members]))
                losses += [self._loss(low[k], features.frames[m], chosen[m]) for k, m in enumerate(members)]
        return torch.stack(losses).mean()

    def _trainable_features(self, chosen: Sequence[int]) -> Features:
        if self.fixed is not None:
            return self.fixed.select(chosen)
        return self.model.trainable_features([self.samples[d].image for d in chosen])

    def _loss(self, low: Tensor, frame: Frame, d: int) -> Tensor:
        logits = self.model.upscale(low.float()[None], frame, frame.resized)[0]
        masks = [None if mask is None else torch.from_numpy(mask.unpacked()) for mask in self._truth(d, frame)]
        target, ignore = (None if mask is None else mask.to(logits.device) for mask in masks)
        assert target is not None
        return dice_bce_loss(logits, target, ignore)

    def _truth(self, d: int, frame: Frame) -> tuple[PackedMask, PackedMask | None]:
        """Target and ignored pixels in the input's frame, kept from their first use."""
        if d not in self._truths:
            sample = self.samples[d]
            target = resize_mask(sample.mask, frame.resized)
            ignore = None if sample.ignore is None else resize_mask(sample.ignore, frame.resized) & ~target
            kept = None if ignore is None else PackedMask.of(ignore.numpy())
            self._truths[d] = (PackedMask.of(target.numpy()), kept)
        return self._truths[d]

    def iou(self, chosen: Sequence[int]) -> float:
        """Mean over some samples of the IoU of the final mask, at the image's own size."""
        self.model.weights_changed()
        return float(np.mean([self._iou(d) for d in chosen]))

    def _iou(self, d: int) -> float:
        sample = self.samples[d]
        features = self.model.encode([sample.image]) if self.fixed is None else self.fixed.select([d])
        (logits,) = self.model.decode(features, [sample.prompt])
        counts = count_pixels(np.asarray(logits.cpu() > 0), sample.mask, sample.ignore)
        return float(image_iou(np.array(counts, np.int64)))


def _encode(model: PromptableModel, samples: Sequence[AnySegmentationSample]) -> Features:
    batches = math.ceil(len(samples) / model.encoding.batch)
    return Features.concatenate(list(track(model.encode_each(LazyImages(samples)), batches, "encode")))
