"""Successive halving: all pairs on a few images, the better part of them on more, and so on. No gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from redfree.channels import ChannelMap
from redfree.search.base import Evaluator, Exploration, SearchResult
from redfree.search.scores import index_matrix
from redfree.search.subsets import climb, top_candidates


@dataclass(frozen=True)
class RacingSearch:
    """Drops losing pairs in rounds (successive halving, Jamieson and Talwalkar 2016), then climbs in the Top-N.

    Attributes:
        n_pairs: N, how many candidates subsets are made of.
        semantics: how a subset becomes a map: simultaneous or sequential.
        first_images: images of the first round; every round adds `growth` times as many as the one before.
        keep: one pair in so many stays in the race after a round.
        growth: see `first_images`.
        finalists: pairs that the last round scores on all images.
        seed: seed of the order in which images join.
    """

    n_pairs: int = 10
    semantics: str = "simultaneous"
    first_images: int = 2
    keep: int = 4
    growth: int = 2
    finalists: int = 64
    seed: int = 0

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Runs the search on some of the evaluator's images; returns the identity where nothing scores more."""
        channels, exploration = evaluator.channels, Exploration(evaluator, images)
        waiting = np.random.default_rng(self.seed).permutation(list(images)).tolist()
        pairs = list(permutations(range(channels), 2))
        totals, joining = np.zeros(len(pairs)), self.first_images
        while len(pairs) > self.finalists and len(waiting) > joining:
            entering, waiting = waiting[:joining], waiting[joining:]
            maps = index_matrix([ChannelMap(channels, (pair,)) for pair in pairs])
            found = evaluator.score(maps, entering, "race")
            totals = totals + found.values.sum(1)
            mean = float(totals.max()) / (len(images) - len(waiting))
            exploration.note("race", len(pairs), len(pairs) * len(entering), found.seconds, mean)
            stay = np.argsort(-totals, kind="stable")[: max(self.finalists, len(pairs) // self.keep)]
            pairs, totals, joining = [pairs[i] for i in stay], totals[stay], joining * self.growth
        singles = exploration.score([ChannelMap(channels, (pair,)) for pair in pairs], "candidates")
        top = top_candidates(pairs, singles, self.n_pairs)
        return exploration.result(climb(exploration, top, self.semantics), top)
