import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searchworld import NoScreen, check_on_a_model, checked, planted
from tinyworld import make_model, make_sample

from redfree.channels import ChannelMap
from redfree.search.racing import RacingSearch

IMAGES = [17, 2, 3, 11, 5, 7, 13, 1, 19, 0, 4, 8]


def races(evaluator):
    return [(count, images) for label, count, images in evaluator.asked if label == "race"]


@pytest.mark.parametrize("semantics", ["simultaneous", "sequential"])
@pytest.mark.parametrize("seed", range(3))
def test_the_planted_swap_wins_by_a_margin_on_every_image(semantics, seed):
    pairs = {(0, 5): 0.05, (3, 7): 0.09, (6, 1): 0.07}
    spy = NoScreen(8, 20, planted(8, pairs, noise=0.015))
    found = checked(RacingSearch(5, semantics, finalists=6, seed=seed), spy, IMAGES)
    assert found.channel_map == ChannelMap(8, tuple(sorted(pairs)))
    assert found.top[:3] == ((3, 7), (6, 1), (0, 5))


def test_rounds_halve_the_pairs_and_double_the_images():
    spy = NoScreen(12, 20, planted(12, {(0, 5): 0.05}, noise=0.02))
    found = RacingSearch(3, first_images=1, keep=3, growth=2, finalists=6)(spy, IMAGES)
    assert [(count, len(images)) for count, images in races(spy)] == [(132, 1), (44, 2), (14, 4)]
    entered = [d for _, images in races(spy) for d in images]
    assert len(set(entered)) == len(entered), "no image enters twice"
    assert [s.evaluations for s in found.trace if s.stage == "candidates"] == [6]
    passes, exhaustive = sum(s.decoder_passes for s in found.trace), 132 * len(IMAGES)
    assert passes < exhaustive / 3


def test_a_round_drops_the_pairs_that_lost_so_far():
    spy = NoScreen(12, 20, planted(12, {}, noise=0.2))
    RacingSearch(3, first_images=1, keep=3, finalists=6)(spy, IMAGES)
    entrants = [[index for index, chosen in spy.maps if chosen == images] for _, images in races(spy)]
    everywhere = [index for index, chosen in spy.maps if len(chosen) == len(IMAGES)]
    seen = []
    for (_, images), raced, staying in zip(races(spy), entrants, [*entrants[1:], everywhere[1:7]], strict=True):
        seen += images
        ranked = sorted(raced, key=lambda index: -spy.mean(index, seen))
        assert set(staying) == set(ranked[: len(staying)])
    assert [len(raced) for raced in entrants] == [132, 44, 14]


def test_few_pairs_or_few_images_are_not_raced():
    for search, images in ((RacingSearch(3, finalists=56), IMAGES), (RacingSearch(3, finalists=4), [1, 2])):
        spy = NoScreen(8, 20, planted(8, {(0, 5): 0.05}))
        found = checked(search, spy, images)
        assert races(spy) == []
        assert found.channel_map == ChannelMap(8, ((0, 5),))
        assert [s.evaluations for s in found.trace if s.stage == "candidates"] == [56]


def test_the_seed_sets_the_order_in_which_images_join():
    orders = []
    for seed in (0, 0, 1):
        spy = NoScreen(8, 20, planted(8, {}, noise=0.02))
        RacingSearch(3, finalists=4, seed=seed)(spy, IMAGES)
        orders.append(races(spy)[0][1])
    assert orders[0] == orders[1] != orders[2]


def test_the_unchanged_model_is_kept_where_every_pair_hurts():
    found = checked(RacingSearch(3, finalists=6), NoScreen(8, 20, planted(8, {})), IMAGES)
    assert found.channel_map.is_identity


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 3))
def test_any_scores(seed, first_images, keep, finalists, growth):
    table = np.random.default_rng(seed).random((4**4, 20))

    def value(index, d):
        return table[sum(f * 4**c for c, f in enumerate(index)), d]

    search = RacingSearch(3, "simultaneous", first_images, keep, growth, finalists, seed)
    found = checked(search, NoScreen(4, 20, value), IMAGES)
    assert found.search_score >= max(found.baseline_score, found.best_single_score)


def test_on_a_model(tiny_sam, tmp_path):
    samples = [make_sample(seed) for seed in range(4)]
    search = RacingSearch(4, first_images=1, finalists=20)
    found, passes = check_on_a_model(search, make_model(tiny_sam), samples, tmp_path)
    assert [s.stage for s in found.trace][:3] == ["identity", "race", "candidates"]
    assert sum(s.decoder_passes for s in found.trace) == passes
