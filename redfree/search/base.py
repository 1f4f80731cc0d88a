"""What every search shares: its interface, its result and its trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap, Pair
from redfree.search.scores import IndexMatrix, Scores, Screen, index_matrix


class Evaluator(Protocol):
    """Scores channel maps on images whose features were computed once."""

    @property
    def channels(self) -> int:
        """Channels C of the features."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def score(self, maps: IndexMatrix, images: Sequence[int] | None = None, label: str = "score") -> Scores:
        """Scores (M, images) of index vectors (M, C) on some of the images, all of them by default."""
        ...

    def screen(self, channel_map: ChannelMap, images: Sequence[int]) -> Screen:
        """First-order effects of every pair on top of a map, from one backward pass through the decoder an image."""
        ...


@dataclass(frozen=True)
class TraceStep:
    """One stage of a search.

    Attributes:
        stage: what the search did, such as candidates or subsets.
        evaluations: maps scored, on all images each once a search; a race scores some of them in several rounds.
        decoder_passes: maps times images; a forward and backward pass of a screen counts as 3.
        seconds: time that it took.
        best_score: mean score of the best of the maps, or of the map that was screened.
    """

    stage: str
    evaluations: int
    decoder_passes: int
    seconds: float
    best_score: float


@dataclass(frozen=True)
class SearchResult:
    """What a search chose.

    Attributes:
        channel_map: the chosen swap.
        top: the Top-N candidates (i, j), best first; j is -1 where channel i is zeroed.
        search_score: mean score of the swap on the search images.
        baseline_score: mean score of the unchanged model on them.
        best_single_score: mean score of the best candidate alone.
        trace: the stages, in order.
        pair_scores: (C, C) mean score of each pair (i, j) alone, where the search scored all; the baseline for i = j.
    """

    channel_map: ChannelMap
    top: tuple[Pair, ...]
    search_score: float
    baseline_score: float
    best_single_score: float
    trace: tuple[TraceStep, ...]
    pair_scores: NDArray[np.float32] | None = None


class Search(Protocol):
    """Chooses a swap from the images it is given, and from nothing else."""

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Returns the swap chosen on some of the evaluator's images."""
        ...


class Exploration:
    """The maps that one search has scored on its images, each once, and what that took."""

    def __init__(self, evaluator: Evaluator, images: Sequence[int]) -> None:
        """Scores the unchanged model."""
        self.evaluator, self.images, self.trace = evaluator, list(images), list[TraceStep]()
        self._known: dict[ChannelMap, float] = {}
        self._screened: tuple[ChannelMap, Screen] | None = None
        self.identity = ChannelMap(evaluator.channels)
        self.baseline = float(self.score([self.identity], "identity")[0])

    @property
    def evaluations(self) -> int:
        """Maps scored on all images."""
        return len(self._known)

    def knows(self, channel_map: ChannelMap) -> bool:
        """Whether a map was scored."""
        return channel_map in self._known

    def score(self, maps: Sequence[ChannelMap], stage: str) -> NDArray[np.float64]:
        """Mean score of each map; those that are known cost nothing."""
        fresh = list(dict.fromkeys(m for m in maps if m not in self._known))
        if fresh:
            found = self.evaluator.score(index_matrix(fresh), self.images, stage)
            means = found.values.mean(1)
            self._known.update(zip(fresh, means.tolist(), strict=True))
            self.note(stage, len(fresh), len(fresh) * len(self.images), found.seconds, float(means.max()))
        return np.array([self._known[m] for m in maps])

    def screen(self, channel_map: ChannelMap) -> Screen:
        """First-order effects of every pair on top of a map that was scored; asking again costs nothing."""
        if self._screened is None or self._screened[0] != channel_map:
            found = self.evaluator.screen(channel_map, self.images)
            self.note("screen", 0, found.decoder_passes, found.seconds, self._known[channel_map])
            self._screened = channel_map, found
        return self._screened[1]

    def note(self, stage: str, evaluations: int, passes: int, seconds: float, best_score: float) -> None:
        """Adds a stage to the trace."""
        self.trace.append(TraceStep(stage, evaluations, passes, seconds, best_score))

    def result(self, chosen: ChannelMap, top: Iterable[Pair]) -> SearchResult:
        """The result of a search that chose a map which was scored."""
        singles = [s for m, s in self._known.items() if len(m.pairs) + len(m.zeroed) == 1]
        single = max(singles, default=self.baseline)
        return SearchResult(chosen, tuple(top), self._known[chosen], self.baseline, single, tuple(self.trace))
