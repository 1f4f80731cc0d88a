"""How a dataset is divided: its owner's way, a committed or seeded one, or the sizes of the paper's authors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from redfree.data.source import Entry
from redfree.data.splits import (
    SPLIT_LISTS,
    Pools,
    authors_pools,
    check_against,
    default_search_pool,
    draw,
    official_pools,
    read_split_list,
    seeded_pools,
)
from redfree.errors import UserError
from redfree.validation import Strict

# Part of the images that train where the owner does not divide them: the authors' 70/30.
TRAIN_FRACTION = 0.7


class DivisionOptions(Strict):
    """How a dataset is divided.

    Attributes:
        protocol: the owner's division (where there is none, the committed list or else a seeded 70/30), or one of the
            sizes of the paper's authors, which is not disjoint.
        search_pool: training samples that are set aside for search; null for 100, or half of fewer than 200.
    """

    protocol: Literal["official", "authors"] = "official"
    search_pool: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Division:
    """The splits of a dataset.

    Attributes:
        dataset: name of the dataset, for messages.
        pools: where search and train, and test, are drawn from.
        search_pool: train ids that are set aside for search.
        rule: how the pools were made, in words.
        overlap: of an overlapping division, how many search ids are also in "train" and in "test".
        search: search ids in order, where these are not drawn.
    """

    dataset: str
    pools: Pools
    search_pool: int
    rule: str
    overlap: Mapping[str, int] = field(default_factory=dict)
    search: tuple[str, ...] | None = None

    def draw(self, split: str, count: int | None, seed: int) -> list[str]:
        """Ids of a split; arguments and errors as of `redfree.data.splits.draw`."""
        if self.search is None:
            return draw(self.pools, split, count, seed, self.search_pool, dataset=self.dataset)
        if split != "search":
            return draw(self.pools, split, count, seed, 0, dataset=self.dataset)
        if count is not None and count > len(self.search):
            raise UserError(f"{self.dataset}: search has {len(self.search)} images, {count} needed; ask for fewer")
        return list(self.search[:count])


def divide(dataset: str, entries: Sequence[Entry], options: DivisionOptions) -> Division:
    """Divides a dataset.

    Raises:
        UserError: the authors used no such dataset, its images are not those of the committed list, or it has fewer
            training images than `search_pool`.
    """
    if options.protocol == "authors":
        return _as_the_authors(dataset, entries)
    pools, rule = _pools(dataset, entries)
    search_pool = options.search_pool or default_search_pool(len(pools.train))
    return Division(dataset, pools, search_pool, rule)


def _as_the_authors(dataset: str, entries: Sequence[Entry]) -> Division:
    found = authors_pools(dataset, entries, seed=0)
    rule = f"sizes of the paper's authors; search drawn from {found.search_from.replace('unknown', 'train (unknown)')}"
    pools = Pools(found.train, found.test)
    return Division(dataset, pools, 0, rule, found.overlap, found.search)


def _pools(dataset: str, entries: Sequence[Entry]) -> tuple[Pools, str]:
    if any(entry.split is not None for entry in entries):
        return official_pools(entries), "the owner's"
    committed = SPLIT_LISTS / f"{dataset}.json"
    if not committed.is_file():
        return seeded_pools(entries, TRAIN_FRACTION), f"train {TRAIN_FRACTION:g}, by the SHA-256 of ids"
    listed = read_split_list(committed)
    check_against(listed, (entry.id for entry in entries))
    return Pools(tuple(listed.train), tuple(listed.test), _groups(entries)), f"{committed.name}: {listed.sha256}"


def _groups(entries: Iterable[Entry]) -> dict[str, str]:
    return {entry.id: entry.group for entry in entries if entry.group is not None}
