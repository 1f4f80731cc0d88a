"""The paper's search: score every candidate alone, keep the Top-N, try every subset of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap, Pair
from redfree.search.base import Evaluator, Exploration, SearchResult
from redfree.search.subsets import subsets, top_candidates

ZERO = -1


@dataclass(frozen=True)
class ExhaustiveSearch:
    """C (C - 1) + 2^N - 1 evaluations (paper, section "Method"), less the N that are made of one pair.

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
        channels, exploration = evaluator.channels, Exploration(evaluator, images)
        candidates = self.candidates(channels)
        singles = exploration.score([self.build(channels, [c]) for c in candidates], "candidates")
        top = top_candidates(candidates, singles, self.n_pairs)
        maps = [self.build(channels, subset) for subset in subsets(top)]
        scores = exploration.score(maps, "subsets")
        result = exploration.result(maps[int(scores.argmax())], top)
        return result if self.zero else replace(result, pair_scores=_matrix(channels, singles, exploration.baseline))


def _matrix(channels: int, singles: NDArray[np.float64], baseline: float) -> NDArray[np.float32]:
    matrix = np.full((channels, channels), baseline, np.float32)
    matrix[~np.eye(channels, dtype=bool)] = singles
    return matrix
