"""Pair after pair: a fresh first-order screen of the swapped features, its best scored, the best of them taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from redfree.channels import ChannelMap, Pair
from redfree.search.base import Evaluator, Exploration, SearchResult
from redfree.search.subsets import ranked_pairs, top_candidates


def _with_source(channel_map: ChannelMap, i: int, j: int) -> ChannelMap:
    index = channel_map.index()
    index[i] = j
    return ChannelMap.from_index(index)


@dataclass(frozen=True)
class GreedySearch:
    """Adds, removes or exchanges a pair while that improves the score.

    A move sets channel i to the original values of channel j: it adds a pair, exchanges the pair that i has, or, for
    j = i, removes it. Moves come from a screen of the present features, score(i, j) = <dL/dX'_i, X'_i - X_j>; removals
    are always scored. The best moves of a round that touch different channels are also tried together. What it chooses
    is a map, so that the order of its pairs, and with it the semantics of a subset, does not matter.

    Attributes:
        n_pairs: pairs of the swap at most.
        scored: moves of the screen that are scored exactly in a round.
        together: how many of a round's improving moves are tried at once, at most.
        patience: rounds in a row without improvement that it takes to go on with lower ranks of the screen.
        budget: maps scored at most; the round that would exceed it is not begun.
    """

    n_pairs: int = 10
    scored: int = 32
    together: int = 3
    patience: int = 1
    budget: int = 480

    def __call__(self, evaluator: Evaluator, images: Sequence[int]) -> SearchResult:
        """Runs the search on some of the evaluator's images; returns the identity where nothing scores more."""
        exploration = Exploration(evaluator, images)
        chosen, best, failures = exploration.identity, exploration.baseline, 0
        first: tuple[Pair, ...] = ()
        while failures <= self.patience and exploration.evaluations + self._round <= self.budget:
            moves = self._moves(exploration, chosen)
            scores = exploration.score([_with_source(chosen, i, j) for i, j in moves], "moves")
            order = np.argsort(-scores, kind="stable")
            first = first or top_candidates(moves, scores, self.n_pairs)
            improving = [moves[k] for k in order if scores[k] > best]
            failures = 0 if improving else failures + 1
            if improving:
                maps = self._joined(chosen, improving)
                scores = exploration.score(maps, "together")
                chosen, best = maps[int(scores.argmax())], float(scores.max())
        return exploration.result(chosen, first)

    @property
    def _round(self) -> int:
        return self.scored + self.n_pairs + self.together

    def _moves(self, exploration: Exploration, chosen: ChannelMap) -> list[Pair]:
        """Removals, then the best of the screen that were not scored yet and leave the allowed number of pairs."""
        removals = [(i, i) for i, _ in chosen.pairs]
        ranked = ranked_pairs(exploration.screen(chosen).gains)
        fresh = (move for move in ranked if self._is_fresh(exploration, chosen, move))
        return removals + list(islice(fresh, self.scored))

    def _is_fresh(self, exploration: Exploration, chosen: ChannelMap, move: Pair) -> bool:
        moved = _with_source(chosen, *move)
        return len(moved.pairs) <= self.n_pairs and not exploration.knows(moved)

    def _joined(self, chosen: ChannelMap, improving: Sequence[Pair]) -> list[ChannelMap]:
        """The best move, the best two that touch different channels, and so on."""
        best_of_channel = {i: (i, j) for i, j in reversed(improving)}
        joined = []
        for move in islice((m for m in improving if best_of_channel[m[0]] == m), self.together):
            chosen = _with_source(chosen, *move)
            joined.append(chosen)
        return [m for m in joined if len(m.pairs) <= self.n_pairs]
