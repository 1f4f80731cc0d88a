"""One first-order screen of all pairs; only its best are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap, Pair
from redfree.search.base import Evaluator, Exploration, SearchResult
from redfree.search.subsets import climb, top_candidates


def best_pairs(gains: NDArray[np.float64], count: int) -> list[Pair]:
    """The pairs (i, j), i != j, of the largest gains (C, C), largest first."""
    ranked = gains.copy()
    np.fill_diagonal(ranked, -np.inf)
    order = np.argsort(-ranked, axis=None, kind="stable")[: min(count, gains.size - len(gains))]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, gains.shape), strict=True)]


@dataclass(frozen=True)
class ShortlistSearch:
    """Screens all pairs by score(i, j) = <dL/dX_i, X_i - X_j>, scores the best exactly, and climbs in their Top-N.

    Attributes:
        n_pairs: N, how many candidates subsets are made of.
        semantics: how a subset becomes a map: simultaneous or sequential.
        scored: K, how many pairs are scored exactly.
    """

    n_pairs: int = 10
    semantics: str = "simultaneous"
    scored: int = 256

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Runs the search on some of the evaluator's images; returns the identity where nothing scores more."""
        channels, exploration = evaluator.channels, Exploration(evaluator, images)
        pairs = best_pairs(exploration.screen(exploration.identity), self.scored)
        singles = exploration.score([ChannelMap(channels, (pair,)) for pair in pairs], "candidates")
        top = top_candidates(pairs, singles, self.n_pairs)
        return exploration.result(climb(exploration, top, self.semantics), top)
