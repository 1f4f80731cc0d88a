import pytest
from hypothesis import given
from hypothesis import strategies as st

from redfree.data.splits import split_ids

IDS = st.lists(st.text(max_size=5), unique=True, max_size=30)


@given(IDS, st.data(), st.integers(0, 2**32))
def test_parts_are_disjoint_complete_and_of_the_size_asked(ids, data, seed):
    n_search = data.draw(st.integers(0, len(ids)))
    search, test = split_ids(ids, n_search, seed)
    assert len(search) == n_search
    assert not set(search) & set(test)
    assert sorted(search + test) == sorted(ids)


@given(IDS, st.data(), st.integers(0, 2**32))
def test_the_same_whatever_the_order_of_the_ids(ids, data, seed):
    shuffled = data.draw(st.permutations(ids))
    n_search = data.draw(st.integers(0, len(ids)))
    assert split_ids(ids, n_search, seed) == split_ids(shuffled, n_search, seed)


def test_the_seed_changes_the_split():
    ids = [str(index) for index in range(20)]
    assert len({tuple(split_ids(ids, 5, seed)[0]) for seed in range(10)}) > 5


def test_a_larger_search_part_contains_a_smaller_one():
    ids = [str(index) for index in range(20)]
    assert split_ids(ids, 9, 3)[0][:4] == split_ids(ids, 4, 3)[0]


@pytest.mark.parametrize("n_search", [-1, 4])
def test_n_search_out_of_range(n_search):
    with pytest.raises(ValueError, match="not from 0 to 3"):
        split_ids(["a", "b", "c"], n_search, 0)
