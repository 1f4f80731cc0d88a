from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searchworld import Spy, check_on_a_model, checked, planted
from tinyworld import make_model, make_sample

from redfree.channels import ChannelMap
from redfree.search.greedy import GreedySearch

IMAGES = [4, 1, 6]
A, B, B2, C = (0, 3), (1, 3), (1, 4), (2, 4)


def by_table(table, default=-9.0):
    """Scores by the pairs that a map has."""
    known = {frozenset(pairs): float(score) for pairs, score in table.items()}
    return lambda index, _d: known.get(frozenset((i, j) for i, j in enumerate(index) if i != j), default)


def random_scores(seed, channels=3, images=2):
    table = np.random.default_rng(seed).random((channels**channels, images))
    return lambda index, d: table[sum(f * channels**c for c, f in enumerate(index)), d]


@pytest.mark.parametrize("together", [1, 3])
def test_the_planted_swap_is_found(together):
    pairs = {(0, 5): 0.04, (3, 7): 0.09, (6, 1): 0.02, (7, 2): 0.03}
    found = checked(GreedySearch(6, 8, together), Spy(8, 9, planted(8, pairs, noise=0.01)), IMAGES)
    assert found.channel_map == ChannelMap(8, tuple(sorted(pairs)))
    assert found.top[:2] == ((3, 7), (0, 5))


@pytest.mark.parametrize("n_pairs", [1, 2, 3])
def test_of_more_than_the_allowed_pairs_the_best_are_taken(n_pairs):
    pairs = {(0, 5): 0.04, (3, 7): 0.09, (6, 1): 0.02, (7, 2): 0.03}
    spy = Spy(8, 9, planted(8, pairs))
    found = checked(GreedySearch(n_pairs, 8, 3), spy, IMAGES)
    assert set(found.channel_map.pairs) == set(sorted(pairs, key=pairs.get, reverse=True)[:n_pairs])
    assert max(sum(i != j for i, j in enumerate(index)) for index, _ in spy.maps) == n_pairs


def test_a_pair_that_an_exchange_made_harmful_is_removed():
    table = {(): 0, (A,): 5, (B,): 2, (C,): 1, (A, B): 6, (A, B, C): 7, (A, B2, C): 8, (B2, C): 10}
    spy = Spy(5, 1, by_table(table))
    found = checked(GreedySearch(5), spy, [0])
    assert found.channel_map == ChannelMap(5, (B2, C))
    assert [m.pairs for m in dict.fromkeys(spy.screened)] == [(), (A, B, C), (A, B2, C), (B2, C)]
    assert (found.search_score, found.best_single_score) == (10, 5)
    bests = [s.best_score for s in found.trace if s.stage == "moves" and s.best_score > 0]
    assert bests == [5, 8, 10], "added, exchanged, removed"


def test_moves_that_are_good_alone_and_bad_together_are_not_joined():
    found = checked(GreedySearch(5), Spy(5, 1, by_table({(): 0, (A,): 5, (B,): 4, (C,): 3})), [0])
    assert found.channel_map == ChannelMap(5, (A,))


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_it_stops_when_nothing_improves_and_keeps_the_unchanged_model(patience):
    spy = Spy(8, 9, planted(8, {}))
    found = checked(GreedySearch(4, 10, patience=patience), spy, IMAGES)
    assert found.channel_map.is_identity
    assert found.search_score == found.baseline_score
    assert [s.evaluations for s in found.trace if s.stage == "moves"] == [10] * (patience + 1)


def test_ties_do_not_improve():
    found = checked(GreedySearch(4, 10, patience=0), Spy(5, 1, lambda _index, _d: 0.5), [0])
    assert found.channel_map.is_identity
    assert sum(step.evaluations for step in found.trace) == 1 + 10


class Misleading(Spy):
    """Its screens are all equal, with (0, 5) and (3, 7) about in the middle of 56 moves."""

    def screen(self, channel_map, images):
        found, order = super().screen(channel_map, images), np.full((8, 8), -1.0)
        order[~np.eye(8, dtype=bool)] = -np.arange(2.0, 58)
        order[0, 5] = order[3, 7] = -20.5
        return replace(found, gains=order)


@pytest.mark.parametrize(("patience", "pairs"), [(0, ()), (1, ((0, 5), (3, 7))), (9, ((0, 5), (3, 7)))])
def test_patience_reaches_lower_ranks_of_the_screen_and_starts_anew_after_a_success(patience, pairs):
    spy = Misleading(8, 9, planted(8, {(0, 5): 0.04, (3, 7): 0.05}))
    found = checked(GreedySearch(4, 15, together=1, patience=patience), spy, IMAGES)
    assert found.channel_map == ChannelMap(8, pairs)


@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3))
def test_the_budget_and_the_number_of_pairs_are_kept(seed, budget, n_pairs, scored, together):
    spy = Spy(3, 2, random_scores(seed))
    found = checked(GreedySearch(n_pairs, scored, together, budget=budget), spy, [1, 0])
    assert sum(s.evaluations for s in found.trace) <= max(1, budget)
    assert max(sum(i != j for i, j in enumerate(index)) for index, _ in spy.maps) <= n_pairs
    assert len(found.top) <= n_pairs


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_no_single_move_improves_the_result(seed, n_pairs):
    spy = Spy(3, 2, random_scores(seed))
    found = checked(GreedySearch(n_pairs), spy, [0, 1])
    index = found.channel_map.index()
    for i, j in np.ndindex(3, 3):
        moved = [j if c == i else f for c, f in enumerate(index)]
        if sum(c != f for c, f in enumerate(moved)) <= n_pairs:
            assert spy.mean(moved, [0, 1]) <= found.search_score


def test_on_a_model(tiny_sam, tmp_path):
    samples = [make_sample(seed) for seed in range(4)]
    found, passes = check_on_a_model(GreedySearch(4, 16, budget=150), make_model(tiny_sam), samples, tmp_path)
    # The ledger counts a map that is screened again, after a round without improvement, once.
    screened = {step.best_score for step in found.trace if step.stage == "screen"}
    assert sum(s.decoder_passes for s in found.trace if s.stage != "screen") + 3 * 3 * len(screened) == passes
