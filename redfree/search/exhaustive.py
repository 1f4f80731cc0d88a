"""The paper's search: score every candidate alone, keep the Top-N, try every subset of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap, Pair
from redfree.search.evaluate import Evaluator, index_matrix

ZERO = -1


@dataclass(frozen=True)
class TraceStep:
    """One stage of a search.

    Attributes:
        stage: identity, candidates or subsets.
        evaluations: maps scored.
        decoder_passes: maps times images.
        seconds: time that scoring them took.
        best_score: mean IoU of the best of them.
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
        search_score: mean IoU of the swap on the search images.
        baseline_score: mean IoU of the unchanged model on them.
        best_single_score: mean IoU of the best candidate alone.
        trace: the stages, in order.
    """

    channel_map: ChannelMap
    top: tuple[Pair, ...]
    search_score: float
    baseline_score: float
    best_single_score: float
    trace: tuple[TraceStep, ...]


class Search(Protocol):
    """Chooses a swap from the images it is given, and from nothing else."""

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Returns the swap chosen on some of the evaluator's images."""
        ...


@dataclass(frozen=True)
class ExhaustiveSearch:
    """C (C - 1) + 2^N - 1 evaluations (paper, section "Method").

    Attributes:
        n_pairs: N, how many candidates the subsets are made of.
        semantics: how a subset becomes a map: simultaneous (the paper) or sequential (the authors' release).
        zero: search channels to set to zero instead of pairs (the deactivation control).
    """

    n_pairs: int = 10
    semantics: str = "simultaneous"
    zero: bool = False

    def candidates(self, channels: int) -> list[Pair]:
        """Every ordered pair of different channels, or every channel with -1 for the deactivation control."""
        return [(c, ZERO) for c in range(channels)] if self.zero else list(permutations(range(channels), 2))

    def build(self, channels: int, chosen: Sequence[Pair]) -> ChannelMap:
        """The map of some candidates."""
        if self.zero:
            return ChannelMap.zero(channels, [i for i, _ in chosen])
        return ChannelMap.from_pairs(channels, chosen, self.semantics)

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Runs the search on some of the evaluator's images.

        Args:
            evaluator: scores maps on its images.
            images: the search images, as positions in the evaluator.

        Returns:
            The best non-empty subset; of equal ones the smallest, then the first in the order of the Top-N.
        """
        channels, passes = evaluator.model.channels, len(images)
        identity = evaluator.score(index_matrix([ChannelMap(channels)]), images, "baseline")
        candidates = self.candidates(channels)
        singles = evaluator.score(index_matrix([self.build(channels, [c]) for c in candidates]), images, "candidates")
        single_scores = singles.values.mean(1)
        top = top_candidates(candidates, single_scores, self.n_pairs)
        chosen = subsets(top)
        maps = [self.build(channels, subset) for subset in chosen]
        combined = evaluator.score(index_matrix(maps), images, "subsets")
        scores = combined.values.mean(1)
        best = int(scores.argmax())
        trace = (
            TraceStep("identity", 1, passes, identity.seconds, float(identity.values.mean())),
            TraceStep("candidates", len(candidates), len(candidates) * passes, singles.seconds, single_scores.max()),
            TraceStep("subsets", len(maps), len(maps) * passes, combined.seconds, float(scores[best])),
        )
        return SearchResult(maps[best], top, float(scores[best]), trace[0].best_score, trace[1].best_score, trace)


def top_candidates(candidates: Sequence[Pair], scores: NDArray[np.float64], n: int) -> tuple[Pair, ...]:
    """The n best candidates, at most one for each source channel i (authors' release); of equals the first."""
    kept: dict[int, Pair] = {}
    for position in np.argsort(-scores, kind="stable"):
        pair = candidates[int(position)]
        kept.setdefault(pair[0], pair)
        if len(kept) == n:
            break
    return tuple(kept.values())


def subsets(top: Sequence[Pair]) -> list[tuple[Pair, ...]]:
    """All 2^N - 1 non-empty subsets, smaller ones first."""
    return [subset for size in range(1, len(top) + 1) for subset in combinations(top, size)]
