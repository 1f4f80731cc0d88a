"""Scores many channel maps on cached features."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redfree.channels import ChannelMap
from redfree.data.schema import Sample
from redfree.models.base import Features, Frame, Model
from redfree.search.log import SearchLog
from redfree.tasks.segmentation import Counts, count_pixels, iou_of_logits

IndexMatrix = NDArray[np.int16]


def index_matrix(maps: Sequence[ChannelMap]) -> IndexMatrix:
    """Stacks the index vectors of some maps: (maps, C), -1 for a zeroed channel."""
    return np.array([m.index() for m in maps], dtype=np.int16)


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
class Scores:
    """Scores of maps on images.

    Attributes:
        values: (maps, images) IoU in 0..1.
        seconds: time that computing them took; also where they were read from the log.
    """

    values: NDArray[np.float64]
    seconds: float


class Ledger:
    """Decoder passes and seconds of everything scored, where what several stages share counts once."""

    def __init__(self) -> None:
        """Starts at nothing."""
        self._entries: dict[tuple[str, ...], tuple[int, float]] = {}

    def enter(self, key: tuple[str, ...], passes: int, seconds: float) -> None:
        """Notes one image and set of maps, unless it is known."""
        self._entries.setdefault(key, (passes, seconds))

    @property
    def passes(self) -> int:
        """Maps times images, without repetitions."""
        return sum(passes for passes, _ in self._entries.values())

    @property
    def seconds(self) -> float:
        """Seconds of scoring them, also where they were read from the search log."""
        return sum(seconds for _, seconds in self._entries.values())


@dataclass(frozen=True)
class Evaluator:
    """Exact scores of channel maps on some images, from features that were encoded once.

    Scores are IoU in the model's input frame: the logits upscaled to the size that the image takes in the model's input
    and the target resized to it. For images of the input's own size this is the IoU of the final mask.

    Attributes:
        model: the frozen model.
        samples: the D images.
        features: their features.
        log: keeps every score on disk, so that nothing is scored twice and a killed search goes on.
        batch: maps decoded at a time.
        ledger: what this evaluator was asked for, each image and set of maps once.
    """

    model: Model
    samples: Sequence[Sample]
    features: Features
    log: SearchLog
    batch: int = 64
    ledger: Ledger = field(default_factory=Ledger)

    @cached_property
    def _context(self) -> str:
        facts = (
            self.model.checkpoint_sha256,
            self.batch,
            torch.get_num_threads(),
            torch.__version__,
            "input-frame IoU",
        )
        return repr(facts)

    @cached_property
    def _fingerprints(self) -> list[str]:
        return [sample.fingerprint() for sample in self.samples]

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
        chosen = range(len(self)) if images is None else images
        maps_key = hashlib.sha256(np.ascontiguousarray(maps).tobytes()).hexdigest()
        units = []
        for d in self.log.track(chosen, label):
            key = (self._context, self._fingerprints[d], maps_key)
            scores, seconds = self.log.unit(key, partial(self._score_image, maps, d))
            self.ledger.enter(key, len(maps), seconds)
            units.append((scores, seconds))
        return Scores(np.stack([scores for scores, _ in units], 1), sum(seconds for _, seconds in units))

    def _score_image(self, maps: IndexMatrix, d: int) -> tuple[NDArray[np.float64], float]:
        start = time.perf_counter()
        frame: Frame = self.features.frames[d]
        one = self.features.maps[d]
        padded = torch.cat([one, torch.zeros_like(one[:1])])
        tokens = self.model.prompt_tokens(self.samples[d].prompt, frame)
        target = resize_mask(self.samples[d].mask, frame.resized).to(one.device)
        index = torch.from_numpy(maps.astype(np.int64)).to(one.device)
        index = torch.where(index < 0, len(one), index)
        scores = []
        for chunk in torch.split(index, self.batch):
            logits = self.model.decode_maps(padded[chunk], tokens)
            scores.append(iou_of_logits(self.model.upscale(logits, frame, frame.resized), target))
        return np.concatenate(scores), time.perf_counter() - start

    def count(self, channel_map: ChannelMap) -> Counts:
        """Raw counts of one map on every image at the image's own size: (D, 4) tp, fp, fn, tn."""
        swapped = Features(channel_map.apply(self.features.maps), self.features.frames)
        logits = self.model.decode(swapped, [sample.prompt for sample in self.samples])
        pairs = zip(logits, self.samples, strict=True)
        return np.array([count_pixels(np.asarray(mask.cpu() > 0), sample.mask) for mask, sample in pairs], np.int64)
