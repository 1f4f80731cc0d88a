"""From ranked candidates to a swap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap, Pair
from redfree.search.base import Exploration

ZERO = -1


def build_map(channels: int, chosen: Sequence[Pair], semantics: str = "simultaneous") -> ChannelMap:
    """The map of some candidates, where (i, -1) sets channel i to zero; zeroed channels are not mixed with pairs."""
    zeroed = [i for i, j in chosen if j == ZERO]
    return ChannelMap.zero(channels, zeroed) if zeroed else ChannelMap.from_pairs(channels, chosen, semantics)


def ranked_pairs(gains: NDArray[np.float64]) -> Iterator[Pair]:
    """The pairs (i, j), i != j, by falling gain (C, C); of equals the first in row-major order."""
    for flat in np.argsort(-gains, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(gains))
        if i != j:
            yield i, j


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


def climb(exploration: Exploration, top: Sequence[Pair], semantics: str = "simultaneous") -> ChannelMap:
    """Climbs to a subset that no pair added, removed or exchanged improves, from the unchanged model.

    It scores of the order of N^2 subsets where all are 2^N - 1. It is not guaranteed to find the best of them.

    Args:
        exploration: what the search has scored.
        top: the N candidates, no source channel twice.
        semantics: how several pairs act together.
    """
    channels = exploration.evaluator.channels
    chosen: frozenset[Pair] = frozenset()

    def score(sets: Sequence[frozenset[Pair]], stage: str) -> NDArray[np.float64]:
        ordered = [[pair for pair in top if pair in one] for one in sets]
        return exploration.score([build_map(channels, one, semantics) for one in ordered], stage)

    best = exploration.baseline
    while True:
        toggled = [chosen ^ {pair} for pair in top]
        exchanged = [chosen - {old} | {new} for old in chosen for new in top if new not in chosen]
        for moves in (toggled, exchanged):
            scores = score(moves, "subsets") if moves else np.array([-np.inf])
            if scores.max() > best:
                chosen, best = moves[int(scores.argmax())], float(scores.max())
                break
        else:
            return build_map(channels, [pair for pair in top if pair in chosen], semantics)
