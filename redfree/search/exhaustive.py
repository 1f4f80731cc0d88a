"""The paper's search: score every candidate alone, keep the Top-N, try every subset of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap, Pair
from redfree.search.base import Evaluator, Exploration, SearchResult
from redfree.search.subsets import ZERO, build_map, climb, subsets, top_candidates


@dataclass(frozen=True)
class ExhaustiveSearch:
    """C (C - 1) + 2^N - 1 evaluations (paper, section "Method"), less the N that are made of one pair.

    Attributes:
        n_pairs: N, how many candidates the subsets are made of.
        semantics: how a subset becomes a map: simultaneous (the paper) or sequential (the authors' release).
        zero: search channels to set to zero instead of pairs (the deactivation control).
        climbs: climb among the subsets instead of scoring all of them; then the identity may be chosen.
    """

    n_pairs: int = 10
    semantics: str = "simultaneous"
    zero: bool = False
    climbs: bool = False

    def candidates(self, channels: int) -> list[Pair]:
        """Every ordered pair of different channels, or every channel with -1 for the deactivation control."""
        return [(c, ZERO) for c in range(channels)] if self.zero else list(permutations(range(channels), 2))

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Runs the search on some of the evaluator's images.

        Args:
            evaluator: scores maps on its images.
            images: the search images, as positions in the evaluator.

        Returns:
            The best non-empty subset; of equal ones the smallest, then the first in the order of the Top-N. With
            `climbs`, one that no pair added, removed or exchanged improves.
        """
        channels, exploration = evaluator.channels, Exploration(evaluator, images)
        candidates = self.candidates(channels)
        singles = exploration.score([build_map(channels, [c], self.semantics) for c in candidates], "candidates")
        top = top_candidates(candidates, singles, self.n_pairs)
        result = exploration.result(self._choose(exploration, top), top)
        return result if self.zero else replace(result, pair_scores=_matrix(channels, singles, exploration.baseline))

    def _choose(self, exploration: Exploration, top: Sequence[Pair]) -> ChannelMap:
        if self.climbs:
            return climb(exploration, top, self.semantics)
        maps = [build_map(exploration.evaluator.channels, subset, self.semantics) for subset in subsets(top)]
        return maps[int(exploration.score(maps, "subsets").argmax())]


def _matrix(channels: int, singles: NDArray[np.float64], baseline: float) -> NDArray[np.float32]:
    matrix = np.full((channels, channels), baseline, np.float32)
    matrix[~np.eye(channels, dtype=bool)] = singles
    return matrix
