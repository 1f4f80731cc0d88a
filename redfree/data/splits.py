"""Dividing the ids of a dataset into search, train and test."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from pydantic import model_validator

from redfree.errors import UserError, unknown
from redfree.files import write_text
from redfree.validation import Strict, validate

# Committed split lists, one a dataset.
SPLIT_LISTS = Path(__file__).with_name("split_lists")
_SPLITS = ("search", "train", "test")
_NAMED_IDS = 3


class SplitEntry(Protocol):
    """What the division needs to know of an image."""

    @property
    def id(self) -> str:
        """Unique within its dataset."""
        ...

    @property
    def split(self) -> str | None:
        """The owner's split, "train" or "test"; None where the owner gives none."""
        ...

    @property
    def group(self) -> str | None:
        """Name shared by images that must not be separated; None for an image of its own."""
        ...


@dataclass(frozen=True)
class Pools:
    """The ids from which splits are drawn, in the order of the source.

    Attributes:
        train: ids of which search and train are drawn.
        test: ids of which test is drawn.
        groups: group of each id that must not be separated from others; an id that is not in it is its own group.

    Raises:
        ValueError: an id is there twice.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_distinct(self.train, self.test)


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


def official_pools(entries: Sequence[SplitEntry]) -> Pools:
    """The owner's own train and test images, even where the owner put two of one group on both sides.

    Raises:
        ValueError: an entry has no split, or an id is there twice.
    """
    strange = [entry for entry in entries if entry.split not in ("train", "test")]
    if strange:
        raise ValueError(f"the split of {strange[0].id!r} is {strange[0].split!r}, not train or test")
    return _pools(entries, {entry.id for entry in entries if entry.split == "train"})


def seeded_pools(entries: Sequence[SplitEntry], train_fraction: float, seed: int = 0) -> Pools:
    """Train and test images of a dataset without an owner's split; a group is never on both sides.

    Groups are ordered by the SHA-256 of "SEED:GROUP" and go to train while it holds fewer than
    floor(train_fraction * n) of the n images, the others to test. Where every group is one image the sizes are exact;
    elsewhere the last group of train may exceed them. An image that is added or removed does not change the order of
    the others, so that besides it only groups at the boundary change sides.

    Args:
        entries: the images; their own splits are not looked at.
        train_fraction: 0 to 1, taken as the decimal number that it is written as.
        seed: any integer.

    Raises:
        UserError: the fraction is out of range.
        ValueError: an id is there twice.
    """
    if not 0 <= train_fraction <= 1:
        raise UserError(f"train_fraction is {train_fraction}; pass a number from 0 to 1")
    # The float nearest to 0.7 is below it: floor(0.7 * 90) is 62 in floats.
    target = math.floor(Fraction(str(train_fraction)) * len(entries))
    train, _ = _divide(_members((entry.id, entry.group) for entry in entries), str(seed), target)
    return _pools(entries, set(train))


def default_search_pool(n_train: int) -> int:
    """Number of train images that are set aside for search: 100, or half of them where there are few."""
    return min(100, n_train // 2)


def draw(pools: Pools, split: str, count: int | None, seed: int, search_pool: int, *, dataset: str) -> list[str]:
    """Draws a split; search, train and test are disjoint for every seed and count.

    A permutation of the train pool, seeded and by whole groups, is cut: search is its first `search_pool` ids and train
    the rest. A group is not cut: search then holds up to a group more. Test is permuted alike for every seed. The first
    k ids of a split are a random sample of it, and a larger count only appends.

    Args:
        pools: where the ids come from.
        split: search, train or test.
        count: number of ids; None for all.
        seed: any integer.
        search_pool: number of ids of the train pool that are set aside for search.
        dataset: name of the dataset, for messages.

    Raises:
        UserError: there is no such split, it holds fewer ids than asked for or none, or a number is out of range.
    """
    if split not in _SPLITS:
        raise unknown("split", split, _SPLITS)
    if not 0 <= search_pool <= len(pools.train):
        raise UserError(
            f"{dataset}: search_pool is {search_pool}, of {len(pools.train)} train images; "
            f"set it to 0 to {len(pools.train)}"
        )
    if count is not None and count < 0:
        raise UserError(f"{dataset}: the number of {split} images is {count}; pass at least 0")
    ids = _split_in_full(pools, split, seed, search_pool)
    needed = 1 if count is None else count
    if needed > len(ids):
        mend = _mend(pools, split, needed, search_pool)
        raise UserError(f"{dataset}: {split} has {len(ids)} images, {needed} needed; {mend}")
    return ids[:count]


class SplitList(Strict):
    """A division that is kept as a file, so that it stays the same whatever code made it.

    Attributes:
        dataset: name of the dataset.
        rule: how the division was made, in words.
        seed: seed of the rule.
        train: ids of the train pool, in the order of the source.
        test: ids of the test pool, in the order of the source.
        sha256: hex SHA-256 of the ids, as of `ids_sha256`.
    """

    dataset: str
    rule: str
    seed: int
    train: list[str]
    test: list[str]
    sha256: str

    @model_validator(mode="after")
    def _holds_what_was_written(self) -> SplitList:
        found = ids_sha256(self.train, self.test)
        if found != self.sha256:
            raise ValueError(f"sha256 is {self.sha256}, but that of the ids is {found}; restore the file as written")
        _check_distinct(self.train, self.test)
        return self


def ids_sha256(train: Sequence[str], test: Sequence[str]) -> str:
    """Hex SHA-256 of both lists of ids, in order, as compact JSON."""
    text = json.dumps({"test": list(test), "train": list(train)}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_split_list(path: Path) -> SplitList:
    """Reads a split list and checks it.

    Raises:
        UserError: the file is missing, is not JSON, has a wrong field, an id twice or other ids than were written.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such split list; correct the path or restore the file")
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); restore the file as written") from None
    return validate(SplitList, data, str(path))


def write_split_list(path: Path, dataset: str, rule: str, seed: int, pools: Pools) -> SplitList:
    """Writes the ids of both pools as JSON, one id a line, keys sorted; returns what was written."""
    train, test = list(pools.train), list(pools.test)
    written = SplitList(dataset=dataset, rule=rule, seed=seed, train=train, test=test, sha256=ids_sha256(train, test))
    write_text(path, json.dumps(written.model_dump(), indent=1, sort_keys=True) + "\n")
    return written


def check_against(split_list: SplitList, ids: Iterable[str]) -> None:
    """Checks that a split list divides exactly these ids.

    Raises:
        UserError: ids are missing or are not in the list; the first few are named.
    """
    # Dictionaries are sets that keep the order.
    there, listed = dict.fromkeys(ids), dict.fromkeys([*split_list.train, *split_list.test])
    missing = [id_ for id_ in listed if id_ not in there]
    extra = [id_ for id_ in there if id_ not in listed]
    parts = [f"{len(missing)} listed images are missing ({_first_few(missing)})"] if missing else []
    parts += [f"{len(extra)} images are not listed ({_first_few(extra)})"] if extra else []
    if parts:
        raise UserError(f"{split_list.dataset}: {', '.join(parts)}; restore the owner's files or use another list")


@dataclass(frozen=True)
class AuthorsSizes:
    """Sizes of a dataset of the swap paper's authors.

    Attributes:
        search: number of search images.
        test: number of test images.
        train: number of train images.
        search_from: whether search was taken from train, or from all, train and test alike; unknown where the authors'
            files do not show it.
        official: whether train and test are the owner's; elsewhere they are floor(0.7 n) and the rest of n images.
    """

    search: int
    test: int
    train: int
    search_from: Literal["train", "all", "unknown"]
    official: bool = False


AUTHORS: Mapping[str, AuthorsSizes] = MappingProxyType(
    {
        "coco2017": AuthorsSizes(100, 778, 1814, "unknown"),
        "voc2012": AuthorsSizes(102, 416, 970, "unknown"),
        "perseg": AuthorsSizes(90, 176, 40, "all", official=True),
        "isic2016": AuthorsSizes(100, 379, 900, "train", official=True),
        "busi": AuthorsSizes(100, 195, 452, "all"),
        "kvasir-seg": AuthorsSizes(100, 300, 700, "all"),
        "camo": AuthorsSizes(100, 375, 874, "all"),
        "cod10k": AuthorsSizes(100, 555, 1292, "unknown"),
    }
)


@dataclass(frozen=True)
class AuthorsSplits:
    """A division of the sizes of the authors', which is not disjoint.

    Attributes:
        search: ids in random order; the authors used the first 50.
        train: ids in the order of the source.
        test: ids in the order of the source.
        overlap: number of search ids that are also in "train" and in "test".
        search_from: as of `AuthorsSizes`.
    """

    search: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    overlap: Mapping[str, int]
    search_from: Literal["train", "all", "unknown"]


def authors_pools(name: str, entries: Sequence[SplitEntry], seed: int) -> AuthorsSplits:
    """Recreates the sizes of the authors' splits and their overlap, not their choice of images, which is not public.

    Groups are ignored, as by the authors. Where it is unknown which images search was taken from, it is taken from
    train.

    Args:
        name: name of the dataset.
        entries: the images that the authors may have picked from.
        seed: any integer.

    Raises:
        UserError: the authors used no such dataset, or the images are fewer than theirs or not those of the owner.
        ValueError: an entry lacks the split that the owner gives.
    """
    if name not in AUTHORS:
        raise unknown("dataset of the authors", name, AUTHORS)
    sizes = AUTHORS[name]
    pools = official_pools(entries) if sizes.official else _authors_division(entries, sizes, seed)
    if (len(pools.train), len(pools.test)) != (sizes.train, sizes.test):
        raise UserError(
            f"{name}: {len(entries)} images give {len(pools.train)} train and {len(pools.test)} test images, "
            f"the authors had {sizes.train} and {sizes.test}; restore the owner's files"
        )
    source = (*pools.train, *pools.test) if sizes.search_from == "all" else pools.train
    search = tuple(_shuffled(source, f"search:{seed}")[: sizes.search])
    overlap = {"train": len({*search} & {*pools.train}), "test": len({*search} & {*pools.test})}
    return AuthorsSplits(search, pools.train, pools.test, overlap, sizes.search_from)


def _authors_division(entries: Sequence[SplitEntry], sizes: AuthorsSizes, seed: int) -> Pools:
    """A random subset of the size of the authors', divided at random; smaller where there are fewer images."""
    chosen = _shuffled((entry.id for entry in entries), f"authors:{seed}")[: sizes.train + sizes.test]
    chosen_set = set(chosen)
    return _pools([entry for entry in entries if entry.id in chosen_set], set(chosen[: sizes.train]))


def _pools(entries: Sequence[SplitEntry], train: set[str]) -> Pools:
    """The ids that are in `train`, and the others, in the order of the entries."""
    return Pools(
        tuple(entry.id for entry in entries if entry.id in train),
        tuple(entry.id for entry in entries if entry.id not in train),
        {entry.id: entry.group for entry in entries if entry.group is not None},
    )


def _members(grouped: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """The ids of each group; an id without a group is one of its own."""
    members: dict[str, list[str]] = {}
    for id_, group in grouped:
        members.setdefault(id_ if group is None else group, []).append(id_)
    return members


def _divide(members: Mapping[str, Sequence[str]], salt: str, size: int) -> tuple[list[str], list[str]]:
    """The ids of the first shuffled groups, which hold at least `size` ids and no group too many, and the others."""
    first: list[str] = []
    rest: list[str] = []
    for group in _shuffled(members, salt):
        (first if len(first) < size else rest).extend(members[group])
    return first, rest


def _split_in_full(pools: Pools, split: str, seed: int, search_pool: int) -> list[str]:
    if split == "test":
        return _shuffled(pools.test, "test")
    members = _members((id_, pools.groups.get(id_)) for id_ in pools.train)
    search, train = _divide(members, f"draw:{seed}", search_pool)
    return search if split == "search" else train


def _shuffled(names: Iterable[str], salt: str) -> list[str]:
    """Names ordered by the SHA-256 of "SALT:NAME": an order that depends on no other name, machine or version."""
    # File names that are not UTF-8 hold surrogates.
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}:{name}".encode("utf-8", "surrogatepass")).digest())


def _mend(pools: Pools, split: str, needed: int, search_pool: int) -> str:
    available = len(pools.test if split == "test" else pools.train)
    if not available:
        return "ask for another split"
    if split == "test" or needed > available:
        return f"ask for at most {available}"
    # A group that is not cut can make search larger than search_pool, and train smaller.
    bound = f"least {needed}" if split == "search" else f"most {min(available - needed, search_pool - 1)}"
    return f"set search_pool to at {bound}, of {available} train images"


def _check_distinct(train: Sequence[str], test: Sequence[str]) -> None:
    repeated = [id_ for id_, count in Counter([*train, *test]).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is there twice among the train and test ids; keep it once")


def _first_few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED_IDS]) + (", ..." if len(ids) > _NAMED_IDS else "")
