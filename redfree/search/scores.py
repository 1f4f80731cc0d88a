"""Plain data between searches and evaluators."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap

IndexMatrix = NDArray[np.int16]


def index_matrix(maps: Sequence[ChannelMap]) -> IndexMatrix:
    """Stacks the index vectors of some maps: (maps, C), -1 for a zeroed channel."""
    return np.array([m.index() for m in maps], dtype=np.int16)


def maps_sha256(maps: IndexMatrix) -> str:
    """Hex SHA-256 of index vectors (M, C), by which the log and a ledger know them."""
    return hashlib.sha256(np.ascontiguousarray(maps).tobytes()).hexdigest()


@dataclass(frozen=True)
class Scores:
    """Scores of maps on images.

    Attributes:
        values: (maps, images) in 0..1.
        seconds: time that computing them took; also where they were read from the log.
    """

    values: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True)
class Screen:
    """First-order effects of every pair on top of one map; all (C, C), means over images.

    Attributes:
        gains: entry (i, j) estimates by how much the loss falls where channel i takes the original values of channel j.
        spread: of the absolute value of that estimate for each image.
        distances: squared distance between the present values of channel i and the original ones of channel j.
        decoder_passes: 3 an image, one forward and a backward pass of twice its cost.
        seconds: time that it took.
    """

    gains: NDArray[np.float64]
    spread: NDArray[np.float64]
    distances: NDArray[np.float64]
    decoder_passes: int
    seconds: float


class Ledger:
    """Decoder passes and seconds of everything scored, where what several stages share counts once."""

    def __init__(self) -> None:
        """Starts at nothing."""
        self._entries: dict[tuple[str, ...], tuple[int, float]] = {}

    def enter(self, key: tuple[str, ...], passes: int, seconds: float) -> None:
        """Notes one piece of work, unless it is known."""
        self._entries.setdefault(key, (passes, seconds))

    @property
    def passes(self) -> int:
        """Maps times images and three times the images of screens, without repetitions."""
        return sum(passes for passes, _ in self._entries.values())

    @property
    def seconds(self) -> float:
        """Seconds that this took, also where it was read from the search log."""
        return sum(seconds for _, seconds in self._entries.values())
