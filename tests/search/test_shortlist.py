from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from searchworld import Spy, check_on_a_model, checked, planted
from tinyworld import make_model, make_sample

from redfree.channels import ChannelMap
from redfree.search.scores import Screen
from redfree.search.shortlist import ShortlistSearch, calibrated
from redfree.search.subsets import ranked_pairs

IMAGES = [4, 1, 6]


def scored_alone(spy):
    return [
        next((i, j) for i, j in enumerate(index) if i != j)
        for index, _ in spy.maps
        if sum(i != j for i, j in enumerate(index)) == 1
    ]


@pytest.mark.parametrize("semantics", ["simultaneous", "sequential"])
def test_the_planted_swap_is_found(semantics):
    pairs = {(0, 5): 0.04, (3, 7): 0.09, (6, 1): 0.02}
    found = checked(ShortlistSearch(4, semantics), Spy(8, 9, planted(8, pairs)), IMAGES)
    assert found.channel_map == ChannelMap(8, tuple(sorted(pairs)))
    assert found.top[:3] == ((3, 7), (0, 5), (6, 1))


@given(arrays(np.float64, (5, 5), elements=st.integers(-9, 9).map(float)), st.integers(1, 25))
def test_the_best_pairs_are_those_of_the_largest_gains(gains, count):
    pairs = list(islice(ranked_pairs(gains), count))
    others = [gains[i, j] for i in range(5) for j in range(5) if i != j and (i, j) not in pairs]
    values = [gains[pair] for pair in pairs]
    assert len(pairs) == len(set(pairs)) == min(count, 20)
    assert all(i != j for i, j in pairs)
    assert values == sorted(values, reverse=True)
    assert max(others, default=-99) <= min(values)


@pytest.mark.parametrize("scored", [1, 5, 16, 56, 1000])
def test_exactly_the_best_of_the_screen_are_scored(scored):
    spy = Spy(8, 9, planted(8, {(0, 5): 0.04, (3, 7): 0.09}, noise=0.02))
    ranked = list(ranked_pairs(spy.screen(ChannelMap(8), IMAGES).gains))
    spy.asked, spy.maps = [], []
    found = ShortlistSearch(3, scored=scored)(spy, IMAGES)
    assert scored_alone(spy)[: min(scored, 56)] == ranked[:scored]
    assert sum(s.evaluations for s in found.trace if s.stage == "candidates") == min(scored, 56)
    assert set(found.top) <= set(ranked[:scored])


def test_256_are_scored_by_default():
    found = checked(ShortlistSearch(3), Spy(17, 9, planted(17, {(0, 5): 0.04})), IMAGES)
    assert [(s.stage, s.evaluations) for s in found.trace][:6] == [
        ("identity", 1),
        ("screen", 0),
        *[("candidates", 64)] * 4,
    ]


def test_calibration_finds_what_steps_cost_from_a_few_exact_gains():
    rng = np.random.default_rng(0)
    gains, spread, distances = rng.normal(size=(6, 6)), rng.random((6, 6)), rng.random((6, 6))
    screen = Screen(gains, spread, distances, 0, 0.0)
    true = 0.5 * gains - 2 * spread - 0.25 * distances
    scored = {(i, j): true[i, j] for i, j in [(0, 1), (2, 3), (4, 5), (5, 0)]}
    np.testing.assert_allclose(calibrated(screen, scored), true, atol=1e-12)


def test_later_rounds_follow_the_calibration():
    distances = np.abs(np.subtract.outer(np.arange(12.0), np.arange(12.0)))
    gains = np.fromfunction(lambda i, j: 0.01 * distances + 0.0001 * i * j, (12, 12), dtype=float)

    def value(index, _d):
        return 0.5 + sum(gains[i, j] - 0.02 * distances[i, j] for i, j in enumerate(index) if i != j) / 10

    class Misled(Spy):
        def screen(self, channel_map, images):
            return replace(super().screen(channel_map, images), gains=gains, distances=distances)

    best = max(value([j if c == i else c for c in range(12)], 0) for i, j in np.ndindex(12, 12))
    one, four = (ShortlistSearch(3, scored=40, rounds=r)(Misled(12, 9, value), IMAGES) for r in (1, 4))
    assert four.best_single_score == pytest.approx(best)
    assert one.best_single_score < best


def test_one_screen_of_the_unchanged_model_is_enough():
    spy = Spy(8, 9, planted(8, {(0, 5): 0.04}))
    ShortlistSearch(3)(spy, IMAGES)
    assert spy.screened == [ChannelMap(8)]


def test_the_unchanged_model_is_kept_where_every_pair_hurts():
    found = checked(ShortlistSearch(3), Spy(8, 9, planted(8, {})), IMAGES)
    assert found.channel_map.is_identity
    assert found.search_score == found.baseline_score > found.best_single_score


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12))
def test_any_scores(seed, n_pairs, scored):
    table = np.random.default_rng(seed).random((4**4, 3))

    def value(index, d):
        return table[sum(f * 4**c for c, f in enumerate(index)), d]

    found = checked(ShortlistSearch(n_pairs, scored=scored), Spy(4, 3, value), [2, 0])
    assert found.search_score >= max(found.baseline_score, found.best_single_score)
    assert len(found.channel_map.pairs) <= len(found.top) <= n_pairs


def test_on_a_model(tiny_sam, tmp_path):
    samples = [make_sample(seed) for seed in range(4)]
    search = ShortlistSearch(4, scored=40)
    found, passes = check_on_a_model(search, make_model(tiny_sam), samples, tmp_path)
    assert sum(s.decoder_passes for s in found.trace) == passes
