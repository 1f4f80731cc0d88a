"""Closed-form scores of channel maps under a linear head, where a pair changes the logits by a rank-one amount."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from redfree.channels import ChannelMap
from redfree.search.scores import IndexMatrix, Ledger, Scores, Screen, maps_sha256

Integers = NDArray[np.integer[Any]]
# The allocator holds on to a few times this much; larger chunks were slower, as they leave the caches.
CHUNK_BYTES = 16 * 2**20


def pair_logits(features: Tensor, weight: Tensor, bias: Tensor, pairs: Integers) -> Tensor:
    """Logits of a linear head after each single pair (i, j): X W^T + b + (X[:, j] - X[:, i]) W[:, i]^T.

    Args:
        features: (D, C) features X.
        weight: (K, C) weight W of the head.
        bias: (K,) bias b of the head.
        pairs: (M, 2) channels i in 0..C-1 and j in -1..C-1; -1 sets channel i to zero.

    Returns:
        Logits (M, D, K), within rounding those of the head on the swapped features.

    Raises:
        ValueError: shapes do not match, or a channel is out of range.
    """
    _check_head(features, weight, bias)
    channels = features.shape[1]
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs have shape {pairs.shape}, not (M, 2)")
    _check_range(pairs[:, 0], 0, channels)
    _check_range(pairs[:, 1], -1, channels)
    return _LinearHead(features, weight, bias).changed_logits(pairs[:, :1], pairs[:, 1:])


def map_logits(features: Tensor, weight: Tensor, bias: Tensor, maps: IndexMatrix) -> Tensor:
    """Logits of a linear head after each channel map; the cost grows with the channels that a map changes.

    Args:
        features: (D, C) features X.
        weight: (K, C) weight W of the head.
        bias: (K,) bias b of the head.
        maps: (M, C) index vectors; -1 for a zeroed channel.

    Returns:
        Logits (M, D, K), within rounding those of the head on the swapped features; exactly the unchanged logits for
        the identity.

    Raises:
        ValueError: shapes do not match, or a channel is out of range.
    """
    _check_head(features, weight, bias)
    _check_maps(maps, features.shape[1])
    return _LinearHead(features, weight, bias).map_logits(maps)


class _LinearHead:
    """A linear head on some features, laid out for gathering the channels that maps change."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.base = F.linear(features, weight, bias)
        # A last row of zeros is what index -1 reads.
        self.rows = torch.cat([features, torch.zeros_like(features[:, :1])], 1).T.contiguous()
        self.columns = weight.T.contiguous()

    def changed_logits(self, changed: Integers, sources: Integers) -> Tensor:
        """Logits (M, D, K) of M maps that change k channels each; both arguments are (M, k)."""
        i, j = (torch.from_numpy(a.astype(np.int64)).to(self.base.device) for a in (changed, sources))
        change = (self.rows[j] - self.rows[i]).transpose(1, 2)
        return torch.baddbmm(self.base.expand(len(i), *self.base.shape), change, self.columns[i])

    def map_logits(self, maps: IndexMatrix) -> Tensor:
        """Logits (M, D, K) of any maps: those that change equally many channels share a batched product."""
        logits = self.base.new_empty(len(maps), *self.base.shape)
        differs = _differs(maps)
        counts = differs.sum(1)
        for k in np.unique(counts):
            rows = np.flatnonzero(counts == k)
            changed = np.nonzero(differs[rows])[1].reshape(len(rows), k)
            logits[torch.from_numpy(rows)] = self.changed_logits(changed, maps[rows[:, None], changed])
        return logits

    def chunks(self, maps: IndexMatrix) -> Iterator[slice]:
        """Slices of the maps whose logits, with what computing them takes, stay below CHUNK_BYTES; 1 map at least."""
        images, classes = self.base.shape
        changed = int(_differs(maps).sum(1).max(initial=0))
        # Logits are held once for a group and once for all; two gathered channels and their difference beside them.
        values = 2 * images * classes + 3 * images * changed + classes * changed
        step = max(1, CHUNK_BYTES // (max(1, values) * self.base.element_size()))
        return (slice(first, first + step) for first in range(0, len(maps), step))


def _differs(maps: IndexMatrix) -> NDArray[np.bool_]:
    return np.asarray(maps != np.arange(maps.shape[1], dtype=maps.dtype))


def _check_head(features: Tensor, weight: Tensor, bias: Tensor) -> None:
    shapes = f"features {tuple(features.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
    if features.ndim != 2 or weight.ndim != 2 or bias.shape != weight.shape[:1] or features.shape[1] != weight.shape[1]:
        raise ValueError(f"{shapes} are not (D, C), (K, C), (K,)")


def _check_maps(maps: IndexMatrix, channels: int) -> None:
    if maps.ndim != 2 or maps.shape[1] != channels:
        raise ValueError(f"maps have shape {maps.shape}, not (M, {channels})")
    _check_range(maps, -1, channels)


def _check_range(index: Integers, lowest: int, channels: int) -> None:
    wrong = index[(index < lowest) | (index >= channels)]
    if wrong.size:
        raise ValueError(f"channel {wrong[0]} is outside {lowest}..{channels - 1}")


def pair_squared_errors(features: Tensor, weight: Tensor, bias: float, target: Tensor) -> NDArray[np.float64]:
    """Squared error of a linear regression head after each of all C^2 single pairs, from Gram matrices alone.

    With residuals r = X w + b - t, the pair (i, j) gives
    sum r^2 + 2 w_i (r.X_j - r.X_i) + w_i^2 (|X_j|^2 - 2 X_j.X_i + |X_i|^2), computed in float64. Sums over parts of the
    positions add up.

    Args:
        features: (N, C) features X.
        weight: (C,) weight w of the head.
        bias: bias b of the head.
        target: (N,) values t to predict.

    Returns:
        Summed squared errors (C, C), entry (i, j) where channel i takes the values of channel j; the diagonal is the
        error of the unchanged head.

    Raises:
        ValueError: shapes do not match.
    """
    if features.ndim != 2 or weight.shape != features.shape[1:] or target.shape != features.shape[:1]:
        shapes = f"features {tuple(features.shape)}, weight {tuple(weight.shape)}, target {tuple(target.shape)}"
        raise ValueError(f"{shapes} are not (N, C), (C,), (N,)")
    x, w, t = (tensor.detach().double() for tensor in (features, weight, target))
    residual = x @ w + bias - t
    gram, overlap = x.T @ x, residual @ x
    norms = gram.diagonal()
    distances = norms[None] + norms[:, None] - 2 * gram
    errors = residual @ residual + 2 * w[:, None] * (overlap[None] - overlap[:, None]) + w[:, None] ** 2 * distances
    return errors.cpu().numpy()


# Tensors have no truth value to compare by, so evaluators compare by identity.
@dataclass(frozen=True, eq=False)
class LinearHeadEvaluator:
    """Top-1 accuracy of channel maps on some images under a frozen linear head, without calling the head.

    Attributes:
        features: (D, C) float32 features of the D images.
        labels: (D,) int64 classes, 0..K-1.
        weight: (K, C) weight of the head.
        bias: (K,) bias of the head.
        ledger: what this evaluator was asked for, each image and set of maps once.
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        """Checks shapes and labels.

        Raises:
            ValueError: shapes do not match, or a label is not a class of the head.
        """
        _check_head(self.features, self.weight, self.bias)
        if self.labels.shape != self.features.shape[:1]:
            raise ValueError(f"labels have shape {tuple(self.labels.shape)}, not ({len(self.features)},)")
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.weight))]
        if len(wrong):
            raise ValueError(f"label {int(wrong[0])} is outside 0..{len(self.weight) - 1}")

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.features.shape[1]

    def __len__(self) -> int:
        """Number of images D."""
        return len(self.features)

    def score(self, maps: IndexMatrix, images: Sequence[int] | None = None, label: str = "score") -> Scores:
        """Top-1 accuracy of each map on each image, 1.0 or 0.0; of equal logits the first class is the prediction.

        Args:
            maps: (M, C) index vectors; -1 for a zeroed channel.
            images: which of the D images, all of them by default.
            label: name of the stage; scoring is too quick for a progress bar.

        Returns:
            Scores of shape (M, images), with the seconds that computing them took.

        Raises:
            ValueError: the maps have another number of channels, or one of their channels is out of range.
        """
        _check_maps(maps, self.channels)
        start = time.perf_counter()
        chosen = list(range(len(self)) if images is None else images)
        values = self._hits(maps, chosen)
        seconds = time.perf_counter() - start
        maps_key = maps_sha256(maps)
        for d in chosen:
            self.ledger.enter(("linear", maps_key, str(d)), len(maps), seconds / len(chosen))
        return Scores(values, seconds)

    @torch.no_grad()
    def _hits(self, maps: IndexMatrix, chosen: list[int]) -> NDArray[np.float64]:
        head = _LinearHead(self.features[chosen], self.weight, self.bias)
        labels = self.labels[chosen]
        values = np.empty((len(maps), len(chosen)))
        for part in head.chunks(maps):
            values[part] = (head.map_logits(maps[part]).argmax(-1) == labels).cpu().numpy()
        return values

    @torch.no_grad()
    def screen(self, channel_map: ChannelMap, images: Sequence[int]) -> Screen:
        """First-order decrease of the cross-entropy for each pair added to a map.

        With original features X and swapped features X', entry (i, j) is the mean over the images of
        -(dL/dX'_i) (X_j - X'_i), where dL/dX' = (softmax - onehot) W.

        Args:
            channel_map: the map that is there already.
            images: which of the D images.

        Returns:
            Gains (C, C) in nats, positive where channel i taking the values of channel j promises to help. The diagonal
            is the gain of undoing what the map does to channel i, about 0 where it does nothing.

        Raises:
            ValueError: no image is given, or the map has another number of channels.
        """
        start, chosen = time.perf_counter(), list(images)
        if not chosen:
            raise ValueError("a screen needs at least 1 image")
        original, weight = self.features[chosen].double(), self.weight.double()
        swapped = channel_map.apply(original)
        logits = F.linear(swapped, weight, self.bias.double())
        gradient = (logits.softmax(1) - F.one_hot(self.labels[chosen], len(weight))) @ weight
        changes = gradient[:, :, None] * (swapped[:, :, None] - original[:, None, :])
        distances = (swapped[:, :, None] - original[:, None, :]).square()
        gains, spread, squares = (effect.mean(0).cpu().numpy() for effect in (changes, changes.abs(), distances))
        seconds, passes = time.perf_counter() - start, 3 * len(chosen)
        self.ledger.enter(("linear screen", repr((channel_map, chosen))), passes, seconds)
        return Screen(gains, spread, squares, passes, seconds)
