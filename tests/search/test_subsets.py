from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinyworld import RiggedEvaluator

from redfree.channels import ChannelMap
from redfree.search.base import Exploration
from redfree.search.subsets import climb

N = 4
TOP = tuple((i, N + i) for i in range(N))
WHOLE = st.integers(-9, 9)


def explore(channels, value, images=1):
    return Exploration(RiggedEvaluator(channels, images, value), range(images))


def all_subsets(top):
    return [frozenset(s) for size in range(len(top) + 1) for s in combinations(top, size)]


def subset_of(channel_map):
    return frozenset(channel_map.pairs)


def table_value(table):
    """Scores by a table with one entry for every subset of TOP."""
    return lambda index, _d: table[sum(2**i for i in range(N) if index[i] != i)]


def table_score(table, subset):
    return table[sum(2**i for i, _ in subset)]


def neighbours(chosen, top):
    """All sets that differ by one pair added, removed or exchanged."""
    return [s for s in all_subsets(top) if len(s - chosen) <= 1 and len(chosen - s) <= 1 and s != chosen]


@given(st.lists(st.lists(WHOLE, min_size=2, max_size=2), min_size=6, max_size=6))
def test_additive_scores_give_the_best_of_all_subsets(gains):
    top = tuple((i, 6) for i in range(6))

    def value(index, d):
        return sum(gains[i][d] for i in range(6) if index[i] == 6)

    exploration = explore(7, value, images=2)
    chosen = climb(exploration, top)
    assert subset_of(chosen) == frozenset((i, 6) for i in range(6) if sum(gains[i]) > 0)
    best = max(sum(sum(gains[i]) for i, _ in s) / 2 for s in all_subsets(top))
    assert exploration.result(chosen, top).search_score == best


@given(st.lists(WHOLE, min_size=2**N, max_size=2**N))
def test_no_pair_added_removed_or_exchanged_improves_the_result(table):
    chosen = subset_of(climb(explore(2 * N, table_value(table)), TOP))
    reached = table_score(table, chosen)
    assert chosen <= set(TOP)
    assert reached >= max(table_score(table, s) for s in neighbours(chosen, TOP))
    assert reached >= table[0]
    assert reached >= max(table_score(table, [pair]) for pair in TOP)


@given(st.lists(st.integers(-9, 0), min_size=2**N - 1, max_size=2**N - 1))
def test_ties_with_the_unchanged_model_keep_it(table):
    exploration = explore(2 * N, table_value([0, *table]))
    assert climb(exploration, TOP).is_identity
    assert exploration.evaluations == 1 + N, "each pair alone is tried, then nothing is left to exchange"


@given(st.lists(st.lists(WHOLE, min_size=4, max_size=4), min_size=4, max_size=4))
def test_sequential_subsets_are_scored_as_the_authors_release_applies_them(weights):
    top = ((0, 1), (2, 0), (1, 3), (3, 2))

    def score(index):
        return sum(weights[i][j] for i, j in enumerate(index))

    def applied(subset):
        index = list(range(4))
        for i, j in top:
            if (i, j) in subset:
                index[i] = index[j]
        return index

    exploration = explore(4, lambda index, _d: score(index))
    chosen = climb(exploration, top, "sequential").index()
    candidates = [s for s in all_subsets(top) if applied(s) == chosen]
    assert candidates
    assert any(score(chosen) >= max(score(applied(n)) for n in neighbours(s, top)) for s in candidates)
    assert score(chosen) >= max(score(applied([])), *(score(applied([pair])) for pair in top))


def test_an_exchange_is_found_where_no_addition_or_removal_helps():
    table = [0, 5, 3, 4, 1, 4, 9] + [0] * 9  # {0} is best alone, {1, 2} of all: by exchanges only
    table[4 + 1] = 6  # {0, 2}, from which 0 is exchanged for 1
    chosen = climb(explore(2 * N, table_value(table)), TOP)
    assert subset_of(chosen) == {TOP[1], TOP[2]}


def test_a_pair_that_another_makes_harmful_is_removed():
    table = {(): 0, (0,): 5, (1,): 1, (2,): 1, (0, 1): 6, (0, 2): 4, (1, 2): 2, (0, 1, 2): 8}
    by_mask = [table.get(tuple(i for i in range(N) if m >> i & 1), -9) for m in range(2**N)]
    by_mask[0b0110] = 10
    assert subset_of(climb(explore(2 * N, table_value(by_mask)), TOP)) == {TOP[1], TOP[2]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("interaction", [0.0, 0.3, 3.0])
def test_far_fewer_than_all_subsets_are_scored(seed, interaction):
    rng, count = np.random.default_rng(seed), 10
    linear, both = rng.normal(size=count), interaction * rng.normal(size=(count, count))

    def value(index, _d):
        chosen = np.array([index[i] != i for i in range(count)], float)
        return float(chosen @ linear + chosen @ both @ chosen)

    exploration = explore(count + 1, value)
    climb(exploration, [(i, count) for i in range(count)])
    assert exploration.evaluations < 2**count / 4


def test_no_candidates_leave_the_unchanged_model():
    assert climb(explore(4, lambda _index, _d: 0.5), ()) == ChannelMap(4)
