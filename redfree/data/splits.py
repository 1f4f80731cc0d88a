"""Dividing the ids of a dataset into search and test."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def split_ids(ids: Iterable[str], n_search: int, seed: int) -> tuple[list[str], list[str]]:
    """Divides ids at random into a search and a test part.

    The ids are sorted before they are shuffled, so that the order in which a file system lists them does not matter.
    Both parts keep the shuffled order: the first k ids of a part are a random sample of it.

    Args:
        ids: distinct ids.
        n_search: number of search ids, from 0 to the number of ids.
        seed: seed of the shuffle, 0 or more.

    Returns:
        The search ids and the test ids: disjoint, and together all ids.

    Raises:
        ValueError: `n_search` is out of range.
    """
    ordered = sorted(ids)
    if not 0 <= n_search <= len(ordered):
        raise ValueError(f"n_search is {n_search}, not from 0 to {len(ordered)}")
    shuffled = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    return shuffled[:n_search], shuffled[n_search:]
