"""Exact scores of many channel maps on cached features of a segmentation model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redfree.channels import ChannelMap
from redfree.data.stored import AnySegmentationSample
from redfree.models.base import Features, Model
from redfree.search.batching import in_batches
from redfree.search.log import SearchLog
from redfree.search.scores import IndexMatrix, Ledger, Scores, Screen, maps_sha256
from redfree.tasks.loss import sharp_iou_loss
from redfree.tasks.segmentation import Counts, count_pixels
from redfree.tasks.upscaled_iou import UpscaledTarget

# A piece of work in the search log holds about so many passes: few files, and little to repeat after a kill.
_UNIT_PASSES = 4096


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """The mask at another (height, width): a pixel is set where at least half of its area is."""
    rows, columns = (_overlaps(source, target) for source, target in zip(mask.shape, size, strict=True))
    return torch.from_numpy(2 * (rows @ mask @ columns.T) >= mask.size)


def _overlaps(source: int, target: int) -> NDArray[np.float64]:
    """Lengths (target, source) shared by pixels of a line of source * target units divided in both ways."""
    ours, theirs = np.arange(target)[:, None] * source, np.arange(source) * target
    shared = np.minimum(ours + source, theirs + target) - np.maximum(ours, theirs)
    # Whole numbers below 2**53 are exact in float64, whose matrix product is a hundred times faster than int64's.
    return shared.clip(min=0).astype(np.float64)


@dataclass(frozen=True)
class SegmentationEvaluator:
    """Exact scores of channel maps on some images, from features that were encoded once.

    Scores are IoU in the model's input frame: the logits upscaled to the size that the image takes in the model's input
    and the target resized to it. For images of the input's own size this is the IoU of the final mask.

    Attributes:
        model: the frozen model.
        samples: the D images.
        features: their features.
        log: keeps every score on disk, so that equal questions are answered once and a killed search goes on.
        batch: maps decoded at a time, halved where memory runs out.
        decoder: "shared" computes once what maps share, "generic" decodes each map on its own; "auto" takes the faster.
        dtype: number format of the decoder that scores maps; screens and final counts are always float32.
        ledger: what this evaluator was asked for, each set of images and maps once.
    """

    model: Model
    samples: Sequence[AnySegmentationSample]
    features: Features
    log: SearchLog
    batch: int = 64
    decoder: Literal["auto", "shared", "generic"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    ledger: Ledger = field(default_factory=Ledger)

    @cached_property
    def _context(self) -> str:
        model = (self.model.checkpoint_sha256, sorted(self.model.options().items()))
        facts = (*model, self.batch, self._shares, self.dtype, torch.get_num_threads())
        return repr((*facts, torch.__version__, str(self.features.maps.device), "input-frame IoU"))

    @cached_property
    def _fingerprints(self) -> list[str]:
        """Of each image with its mask and prompt, and of its features, which options of the encoder change."""
        features = (self.features.select([d]) for d in range(len(self)))
        pairs = zip(self.samples, features, strict=True)
        return [f"{sample.fingerprint()} {own.fingerprint()}" for sample, own in pairs]

    @property
    def _shares(self) -> bool:
        return self.decoder == "shared" or (self.decoder == "auto" and self.model.prefers_shared_decoding)

    @property
    def channels(self) -> int:
        """Channels C of the features."""
        return self.model.channels

    def __len__(self) -> int:
        """Number of images D."""
        return len(self.samples)

    def score(self, maps: IndexMatrix, images: Sequence[int] | None = None, label: str = "score") -> Scores:
        """IoU of each map on each image.

        Args:
            maps: (M, C) index vectors; -1 for a zeroed channel.
            images: which of the D images, all of them by default.
            label: title of the progress bar.

        Returns:
            Scores of shape (M, images), with the seconds that computing them took, now or in an earlier process.
        """
        chosen = list(range(len(self)) if images is None else images)
        maps_key = maps_sha256(maps)
        size = max(1, _UNIT_PASSES // max(1, len(maps)))
        parts, spent = [], 0.0
        for unit in self.log.track([chosen[k : k + size] for k in range(0, len(chosen), size)], label):
            key = (self._context, *(self._fingerprints[d] for d in unit), maps_key)
            scores, seconds = self.log.unit(key, partial(self._score_images, maps, unit))
            self.ledger.enter(key, scores.size, seconds)
            parts.append(scores)
            spent += seconds
        return Scores(np.concatenate(parts, 1), spent)

    def _score_images(self, maps: IndexMatrix, images: Sequence[int]) -> tuple[NDArray[np.float64], float]:
        start = time.perf_counter()
        index = torch.from_numpy(maps.astype(np.int64)).to(self.features.maps.device)
        return np.stack([self._score_image(index, d) for d in images], 1), time.perf_counter() - start

    @cached_property
    def _tokens(self) -> list[Tensor]:
        pairs = zip(self.samples, self.features.frames, strict=True)
        return [self.model.prompt_tokens(sample.prompt, frame) for sample, frame in pairs]

    @cached_property
    def _targets(self) -> list[Tensor]:
        device, pairs = self.features.maps.device, zip(self.samples, self.features.frames, strict=True)
        return [resize_mask(sample.mask, frame.resized).to(device) for sample, frame in pairs]

    @cached_property
    def _ignored(self) -> list[Tensor | None]:
        """Where the truth of each image is unknown, but for pixels of which half are the object."""
        device, triples = self.features.maps.device, zip(self.samples, self.features.frames, self._targets, strict=True)
        return [
            None if (ignore := sample.ignore) is None else resize_mask(ignore, frame.resized).to(device) & ~target
            for sample, frame, target in triples
        ]

    def _score_image(self, index: Tensor, d: int) -> NDArray[np.float64]:
        one, tokens = self.features.select([d]), self._tokens[d]
        target = UpscaledTarget.of(self._targets[d], *self.model.low_resolution(one), self._ignored[d])
        decode = self.model.swap_decoder(one, tokens) if self._shares else self.model.map_decoder(one, tokens)

        def score(chunk: Tensor) -> NDArray[np.float64]:
            with torch.autocast(one.maps.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                logits = decode(chunk)
            return target.iou(logits.float())

        return np.concatenate(in_batches(score, index, self.batch))

    def screen(self, channel_map: ChannelMap, images: Sequence[int]) -> Screen:
        """First-order gain of every pair on top of a map, one forward and one backward pass of the decoder an image.

        Entry (i, j) is the mean over images of <-dL/dX'_i, X_j - X'_i>, with X the features, X' the mapped features and
        L the sharp IoU loss (`sharp_iou_loss`, whose width counts as a constant) in the model's input frame.
        """
        question = ("screen: gains, spread, distances", repr(channel_map))
        key = (self._context, *question, *(self._fingerprints[d] for d in images))
        effects, seconds = self.log.unit(key, partial(self._screen_images, channel_map, images))
        self.ledger.enter(key, passes := 3 * len(images), seconds)
        gains, spread, distances = effects
        return Screen(gains, spread, distances, passes, seconds)

    def _screen_images(self, channel_map: ChannelMap, images: Sequence[int]) -> tuple[NDArray[np.float64], float]:
        start, effects = time.perf_counter(), torch.zeros(3, self.channels, self.channels, dtype=torch.float64)
        # Images are decoded together only where their prompts have equally many tokens.
        for _, group in groupby(sorted(images, key=self._token_count), key=self._token_count):
            for part in in_batches(
                partial(self._screen_part, channel_map=channel_map), torch.tensor(list(group)), self.batch
            ):
                effects += part
        return effects.numpy() / len(images), time.perf_counter() - start

    def _token_count(self, d: int) -> int:
        return self._tokens[d].shape[1]

    def _screen_part(self, images: Tensor, channel_map: ChannelMap) -> Tensor:
        chosen = images.tolist()
        features = self.features.select(chosen)
        original = features.maps

        def loss(logits: Tensor) -> Tensor:
            triples = zip(logits, features.frames, chosen, strict=True)
            masks = [(self.model.upscale(low[None], frame, frame.resized)[0], d) for low, frame, d in triples]
            return torch.stack([sharp_iou_loss(m, self._targets[d], self._ignored[d]) for m, d in masks]).sum()

        mapped = channel_map.apply(original)
        gradient = self.model.gradient(features.with_maps(mapped), torch.cat([self._tokens[d] for d in chosen]), loss)
        slopes, before, after = gradient.flatten(2), mapped.flatten(2), original.flatten(2).transpose(1, 2)
        gains = (slopes * before).sum(2, keepdim=True) - slopes @ after
        squares = before.square().sum(2, keepdim=True) + after.square().sum(1, keepdim=True)
        distances = squares - 2 * (before @ after)
        return torch.stack([effect.double().sum(0) for effect in (gains, gains.abs(), distances)]).cpu()

    def count(self, channel_map: ChannelMap) -> Counts:
        """Raw counts of one map on every image at the image's own size: (D, 4) tp, fp, fn, tn."""
        return np.array([self._count_image(channel_map, d) for d in range(len(self))], np.int64)

    def _count_image(self, channel_map: ChannelMap, d: int) -> tuple[int, int, int, int]:
        # One image at a time: masks at the size of photographs are as large as features.
        one, sample = self.features.select([d]), self.samples[d]
        (logits,) = self.model.decode(one.with_maps(channel_map.apply(one.maps)), [sample.prompt])
        return count_pixels(np.asarray(logits.cpu() > 0), sample.mask, sample.ignore)
