"""One first-order screen of all pairs; only its best are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap, Pair
from redfree.search.base import Evaluator, Exploration, SearchResult
from redfree.search.scores import Screen
from redfree.search.subsets import climb, ranked_pairs, top_candidates


def calibrated(screen: Screen, scored: Mapping[Pair, float]) -> NDArray[np.float64]:
    """Predicted gain (C, C) of every pair: a screen fitted to exact gains by least squares.

    A swap is a long step, beyond where the first order holds. What that adds to the loss grows with the squared
    distance that the features move, and with how much images disagree on the first-order change; how fast, the exact
    gains tell.

    Args:
        screen: first-order effects of all pairs.
        scored: exact gains of some of them.
    """
    columns = np.stack([screen.gains, screen.spread, screen.distances], -1)
    rows = tuple(np.array(list(scored)).T)
    weights = np.linalg.lstsq(columns[rows], np.array(list(scored.values())), rcond=None)[0]
    return np.asarray(columns @ weights, np.float64)


@dataclass(frozen=True)
class ShortlistSearch:
    """Screens all pairs by score(i, j) = <dL/dX_i, X_i - X_j>, scores the best exactly, and climbs in their Top-N.

    The pairs are scored in rounds, and all but the first come from the screen calibrated by what was scored before.

    Attributes:
        n_pairs: N, how many candidates subsets are made of.
        semantics: how a subset becomes a map: simultaneous or sequential.
        scored: K, how many pairs are scored exactly.
        rounds: rounds in which they are.
    """

    n_pairs: int = 10
    semantics: str = "simultaneous"
    scored: int = 256
    rounds: int = 4

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Runs the search on some of the evaluator's images; returns the identity where nothing scores more."""
        exploration = Exploration(evaluator, images)
        scores = self._score_pairs(exploration)
        top = top_candidates(list(scores), np.array(list(scores.values())), self.n_pairs)
        return exploration.result(climb(exploration, top, self.semantics), top)

    def _score_pairs(self, exploration: Exploration) -> dict[Pair, float]:
        channels, screen = exploration.evaluator.channels, exploration.screen(exploration.identity)
        scores = dict[Pair, float]()
        for part in np.array_split(np.arange(self.scored), min(self.rounds, self.scored)):
            gains = {pair: score - exploration.baseline for pair, score in scores.items()}
            ranked = ranked_pairs(calibrated(screen, gains) if gains else screen.gains)
            fresh = list(islice((pair for pair in ranked if pair not in scores), len(part)))
            found = exploration.score([ChannelMap(channels, (pair,)) for pair in fresh], "candidates")
            scores.update(zip(fresh, found.tolist(), strict=True))
        return scores
