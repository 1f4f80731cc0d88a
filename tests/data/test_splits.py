import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redfree.data.duplicates import groups
from redfree.data.splits import (
    AUTHORS,
    SPLIT_LISTS,
    Pools,
    authors_pools,
    check_against,
    default_search_pool,
    draw,
    ids_sha256,
    official_pools,
    read_split_list,
    seeded_pools,
    split_ids,
    write_split_list,
)
from redfree.errors import UserError

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


@dataclass(frozen=True)
class Entry:
    id: str
    split: str | None = None
    group: str | None = None


def singles(n, split=None):
    return [Entry(f"image {index}", split) for index in range(n)]


def message_of(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SEEDS = st.integers(0, 2**32)
GROUPED = st.lists(st.integers(0, 8), max_size=40).map(
    lambda groups: [Entry(f"image {index}", None, f"group {group}") for index, group in enumerate(groups)]
)


class TestOfficialPools:
    def test_owners_split_in_the_order_of_the_source(self):
        pools = official_pools(
            [Entry("b", "test"), Entry("d", "train", "g"), Entry("a", "train", "g"), Entry("c", "test")]
        )
        assert pools == Pools(("d", "a"), ("b", "c"), {"d": "g", "a": "g"})

    @pytest.mark.parametrize("split", [None, "val"])
    def test_every_image_has_one(self, split):
        with pytest.raises(ValueError, match=r"'b' is .*not train or test"):
            official_pools([Entry("a", "train"), Entry("b", split)])

    def test_ids_are_distinct(self):
        with pytest.raises(ValueError, match="'a' is there twice"):
            official_pools([Entry("a", "train"), Entry("b", "test"), Entry("a", "test")])

    @pytest.mark.parametrize(("train", "test"), [(("a", "a"), ()), (("a",), ("a",))])
    def test_pools_are_disjoint(self, train, test):
        with pytest.raises(ValueError, match="'a' is there twice"):
            Pools(train, test)


class TestSeededPools:
    @given(st.integers(0, 400), SEEDS)
    def test_sizes_of_single_images_are_exact(self, n, seed):
        pools = seeded_pools(singles(n), 0.7, seed)
        assert (len(pools.train), len(pools.test)) == (7 * n // 10, n - 7 * n // 10)

    def test_floor_is_exact_where_floats_fall_short(self):
        assert int(0.7 * 90) == 62
        assert len(seeded_pools(singles(90), 0.7).train) == 63

    @given(GROUPED, st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), SEEDS)
    def test_groups_stay_whole(self, entries, fraction, seed):
        pools = seeded_pools(entries, fraction, seed)
        group = {entry.id: entry.group for entry in entries}
        assert not {group[id_] for id_ in pools.train} & {group[id_] for id_ in pools.test}
        assert sorted(pools.train + pools.test) == sorted(group)
        target = math.floor(round(fraction * 10) * len(entries) / 10)
        largest = max(Counter(group.values()).values(), default=0)
        assert target <= len(pools.train) < max(target + largest, 1)

    @given(GROUPED, SEEDS)
    def test_both_sides_keep_the_order_of_the_source(self, entries, seed):
        position = {entry.id: index for index, entry in enumerate(entries)}
        for side in (pools := seeded_pools(entries, 0.7, seed)).train, pools.test:
            assert list(side) == sorted(side, key=position.__getitem__)

    @given(st.integers(1, 60), SEEDS, st.data())
    def test_one_image_more_moves_at_most_one_other(self, n, seed, data):
        entries = singles(n)
        with_one_more = list(entries)
        with_one_more.insert(data.draw(st.integers(0, n)), Entry("new"))
        before, after = seeded_pools(entries, 0.7, seed), seeded_pools(with_one_more, 0.7, seed)
        assert len({*before.train} ^ ({*after.train} - {"new"})) <= 1

    @given(GROUPED, SEEDS, st.data())
    def test_the_order_of_the_source_does_not_matter(self, entries, seed, data):
        shuffled = data.draw(st.permutations(entries))
        assert {*seeded_pools(entries, 0.7, seed).train} == {*seeded_pools(shuffled, 0.7, seed).train}

    def test_order_is_that_of_sha256(self):
        ids = [f"image {index}" for index in range(10)]
        expected = sorted(ids, key=lambda id_: hashlib.sha256(f"3:{id_}".encode()).hexdigest())[:7]
        assert {*seeded_pools(singles(10), 0.7, 3).train} == {*expected}

    def test_the_seed_changes_the_pools(self):
        assert len({seeded_pools(singles(20), 0.5, seed).train for seed in range(10)}) > 5

    @pytest.mark.parametrize("fraction", [-0.1, 1.01, 70])
    def test_fraction_out_of_range(self, fraction):
        assert message_of(seeded_pools, singles(3), fraction) == (
            f"train_fraction is {fraction}; pass a number from 0 to 1"
        )

    def test_names_that_are_not_utf_8(self):
        assert len(seeded_pools([Entry("caf\udce9"), Entry("a")], 0.5).train) == 1


@st.composite
def drawable(draw_value):
    """Pools with groups, a seed and a search_pool that is in range."""
    entries, seed = draw_value(GROUPED), draw_value(SEEDS)
    pools = seeded_pools(entries, 0.7, 0)
    return pools, seed, draw_value(st.integers(0, len(pools.train)))


def full(pools, split, seed, search_pool):
    """All ids of a split, none where there are none."""
    try:
        return draw(pools, split, None, seed, search_pool, dataset="x")
    except UserError:
        return []


class TestDraw:
    @given(drawable())
    def test_splits_are_disjoint_and_together_everything(self, drawn):
        pools, seed, search_pool = drawn
        search, train, test = (full(pools, split, seed, search_pool) for split in ("search", "train", "test"))
        assert sorted(search + train) == sorted(pools.train)
        assert sorted(test) == sorted(pools.test)
        assert len({*search, *train, *test}) == len(pools.train) + len(pools.test)

    @given(drawable())
    def test_no_group_straddles_search_and_train(self, drawn):
        pools, seed, search_pool = drawn
        search, train = (full(pools, split, seed, search_pool) for split in ("search", "train"))
        assert not {pools.groups[id_] for id_ in search} & {pools.groups[id_] for id_ in train}
        largest = max(Counter(pools.groups[id_] for id_ in pools.train).values(), default=0)
        assert search_pool <= len(search) < max(search_pool + largest, 1)

    @given(drawable(), st.data())
    def test_a_smaller_count_takes_the_first(self, drawn, data):
        pools, seed, search_pool = drawn
        for split in ("search", "train", "test"):
            ids = full(pools, split, seed, search_pool)
            count = data.draw(st.integers(0, len(ids)))
            assert draw(pools, split, count, seed, search_pool, dataset="x") == ids[:count]

    @given(st.integers(0, 30), st.data(), SEEDS)
    def test_sizes_of_single_images_are_exact(self, n, data, seed):
        pools = official_pools(singles(n, "train"))
        search_pool = data.draw(st.integers(0, n))
        assert len(full(pools, "search", seed, search_pool)) == search_pool
        assert len(full(pools, "train", seed, search_pool)) == n - search_pool

    def test_the_seed_changes_search_and_train_but_not_test(self):
        pools = seeded_pools(singles(60), 0.5)
        drawn = {
            split: {tuple(full(pools, split, seed, 10)) for seed in range(8)} for split in ("search", "train", "test")
        }
        assert {split: len(orders) for split, orders in drawn.items()} == {"search": 8, "train": 8, "test": 1}

    def test_test_is_permuted(self):
        pools = seeded_pools(singles(60), 0.5)
        ids = draw(pools, "test", None, 0, 10, dataset="x")
        assert ids != list(pools.test)

    # One order for both would make the images that are first in train always the search images.
    def test_search_is_not_the_beginning_of_the_order_that_made_the_pools(self):
        by_pool_order = sorted(singles(100), key=lambda entry: hashlib.sha256(f"0:{entry.id}".encode()).digest())
        search = draw(seeded_pools(singles(100), 0.7, 0), "search", 10, 0, 10, dataset="x")
        assert {*search} != {entry.id for entry in by_pool_order[:10]}

    def test_the_owners_order_does_not_show(self):
        first = [
            draw(official_pools(singles(100, "train")), "search", 1, seed, 50, dataset="x")[0] for seed in range(200)
        ]
        assert len(set(first)) > 70

    @pytest.mark.parametrize(
        ("split", "count", "message"),
        [
            ("search", 6, "x: search has 5 images, 6 needed; set search_pool to at least 6, of 12 train images"),
            ("search", 13, "x: search has 5 images, 13 needed; ask for at most 12"),
            ("train", 8, "x: train has 7 images, 8 needed; set search_pool to at most 4, of 12 train images"),
            ("train", 13, "x: train has 7 images, 13 needed; ask for at most 12"),
            ("test", 4, "x: test has 3 images, 4 needed; ask for at most 3"),
            ("tset", 1, "unknown split 'tset'; did you mean 'test'?"),
            ("test", -1, "x: the number of test images is -1; pass at least 0"),
        ],
    )
    def test_too_few(self, split, count, message):
        pools = Pools(tuple("abcdefghijkl"), tuple("mno"))
        assert message_of(draw, pools, split, count, 0, 5, dataset="x") == message

    @pytest.mark.parametrize(
        ("search_pool", "split", "mend"),
        [
            (0, "search", "set search_pool to at least 1, of 2 train images"),
            (2, "train", "set search_pool to at most 1, of 2 train images"),
            (0, "test", "ask for another split"),
        ],
    )
    def test_none_at_all(self, search_pool, split, mend):
        message = message_of(draw, Pools(("a", "b"), ()), split, None, 0, search_pool, dataset="x")
        assert message == f"x: {split} has 0 images, 1 needed; {mend}"

    def test_mend_of_a_group_that_takes_all_train_images(self):
        pools = Pools(tuple("abcd"), (), dict.fromkeys("abcd", "g"))
        assert "set search_pool to at most 0, of 4" in message_of(draw, pools, "train", 2, 0, 1, dataset="x")
        assert len(draw(pools, "train", 2, 0, 0, dataset="x")) == 2

    @pytest.mark.parametrize("search_pool", [-1, 3])
    def test_search_pool_out_of_range(self, search_pool):
        message = message_of(draw, Pools(("a", "b"), ("c",)), "search", 1, 0, search_pool, dataset="x")
        assert message == f"x: search_pool is {search_pool}, of 2 train images; set it to 0 to 2"

    @pytest.mark.parametrize(("n_train", "expected"), [(0, 0), (1, 0), (40, 20), (199, 99), (200, 100), (3040, 100)])
    def test_default_search_pool(self, n_train, expected):
        assert default_search_pool(n_train) == expected


class TestSplitList:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "x.json"
        write_split_list(path, "x", "by hand", 3, Pools(("b", "a é"), ("c", "d")))
        return path

    def edit(self, path, **fields):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def test_reads_what_was_written(self, path):
        read = read_split_list(path)
        assert (read.dataset, read.rule, read.seed) == ("x", "by hand", 3)
        assert (read.train, read.test) == (["b", "a é"], ["c", "d"])
        assert read.sha256 == hashlib.sha256(b'{"test":["c","d"],"train":["b","a \\u00e9"]}').hexdigest()

    def test_layout_is_stable(self, path):
        lines = path.read_text().splitlines()
        assert lines[1] == ' "dataset": "x",'
        assert [line for line in lines if line.startswith("  ")] == ['  "c",', '  "d"', '  "b",', '  "a \\u00e9"']
        assert path.read_text().endswith("}\n")

    @pytest.mark.parametrize(
        "fields", [{"train": ["a é", "b"]}, {"train": ["b"]}, {"train": ["b"], "test": ["a é", "c", "d"]}]
    )
    def test_other_ids_than_were_written(self, path, fields):
        self.edit(path, **fields)
        message = message_of(read_split_list, path)
        assert message.startswith(f"{path}: sha256 is ")
        assert message.endswith("; restore the file as written")

    def test_id_twice(self, path):
        self.edit(path, train=["c"], test=["c"], sha256=ids_sha256(["c"], ["c"]))
        assert (
            message_of(read_split_list, path)
            == f"{path}: 'c' is there twice among the train and test ids; keep it once"
        )

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"tset": []}, "unknown field 'tset'; did you mean 'test'?"),
            ({"seed": "many"}, "field seed: "),
            ({"train": [1]}, "field train.0: "),
        ],
    )
    def test_wrong_field(self, path, fields, message):
        self.edit(path, **fields)
        assert message_of(read_split_list, path).startswith(f"{path}: {message}")

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
    def test_not_json(self, path, content):
        path.write_bytes(content)
        assert message_of(read_split_list, path).startswith(f"{path}: is not JSON (")

    def test_missing(self, tmp_path):
        assert message_of(read_split_list, tmp_path / "no.json").startswith(
            f"{tmp_path / 'no.json'}: no such split list; "
        )

    def test_check_against(self, path):
        split_list = read_split_list(path)
        check_against(split_list, ["d", "c", "b", "a é"])
        mend = "; restore the owner's files or use another list"
        assert message_of(check_against, split_list, ["d", "b"]) == f"x: 2 listed images are missing (a é, c){mend}"
        assert message_of(check_against, split_list, ["a é", "b", "c", "d", "4", "3", "2", "1"]) == (
            f"x: 4 images are not listed (4, 3, 2, ...){mend}"
        )
        assert message_of(check_against, split_list, ["a é", "b", "c", "e"]) == (
            f"x: 1 listed images are missing (d), 1 images are not listed (e){mend}"
        )


class TestBusi:
    @pytest.fixture
    def entries(self):
        ids = [f"benign ({n})" for n in range(1, 438)] + [f"malignant ({n})" for n in range(1, 211)]
        known = groups(ids, [("benign (65)", "benign (99)")])
        return [Entry(id_, None, known[id_]) for id_ in ids]

    def test_committed_list_is_what_the_rule_gives(self, entries, tmp_path):
        committed = read_split_list(SPLIT_LISTS / "busi.json")
        write_split_list(tmp_path / "busi.json", "busi", committed.rule, 0, seeded_pools(entries, 0.7, seed=0))
        assert (tmp_path / "busi.json").read_bytes() == (SPLIT_LISTS / "busi.json").read_bytes()

    def test_committed_list_divides_all_images_and_no_group(self, entries):
        committed = read_split_list(SPLIT_LISTS / "busi.json")
        check_against(committed, [entry.id for entry in entries])
        assert len(committed.train) == 452
        assert len(committed.test) == 195
        assert len({"benign (65)", "benign (99)"} & {*committed.train}) in (0, 2)

    def test_rule_says_what_is_not_known(self):
        rule = read_split_list(SPLIT_LISTS / "busi.json").rule
        assert all(words in rule for words in ("benign (65)", "benign (99)", "PMC10293973", "235"))


# Images of the owner's train and test part, or of a dataset that its owner does not divide.
OWNERS = {
    "coco2017": singles(3000),
    "voc2012": singles(2913),
    "perseg": [Entry(f"{n}", "train" if n < 40 else "test") for n in range(216)],
    "isic2016": [Entry(f"{n}", "train" if n < 900 else "test") for n in range(1279)],
    "busi": singles(647),
    "kvasir-seg": singles(1000),
    "camo": [Entry(f"{n}", "train" if n < 1000 else "test") for n in range(1250)],
    "cod10k": [Entry(f"{n}", "train" if n < 3040 else "test") for n in range(5066)],
}


class TestAuthors:
    # The table of the authors' README: search, test, train.
    TABLE: ClassVar = {
        "coco2017": (100, 778, 1814),
        "voc2012": (102, 416, 970),
        "perseg": (90, 176, 40),
        "isic2016": (100, 379, 900),
        "busi": (100, 195, 452),
        "kvasir-seg": (100, 300, 700),
        "camo": (100, 375, 874),
        "cod10k": (100, 555, 1292),
    }

    def test_table(self):
        assert {name: (sizes.search, sizes.test, sizes.train) for name, sizes in AUTHORS.items()} == self.TABLE

    @pytest.mark.parametrize("name", [name for name, sizes in AUTHORS.items() if not sizes.official])
    def test_train_is_seven_tenths(self, name):
        _, test, train = self.TABLE[name]
        assert train == 7 * (train + test) // 10

    @pytest.mark.parametrize("name", TABLE)
    def test_sizes(self, name):
        splits = authors_pools(name, OWNERS[name], 0)
        ids = [entry.id for entry in OWNERS[name]]
        assert (len(splits.search), len(splits.test), len(splits.train)) == self.TABLE[name]
        assert len({*splits.train, *splits.test}) == len(splits.train) + len(splits.test)
        assert {*splits.search} <= {*splits.train, *splits.test} <= {*ids}
        assert len({*splits.search}) == len(splits.search)
        assert list(splits.train) == [id_ for id_ in ids if id_ in {*splits.train}]

    @pytest.mark.parametrize("name", TABLE)
    def test_overlap_is_counted(self, name):
        splits = authors_pools(name, OWNERS[name], 1)
        in_test = sum(id_ in splits.test for id_ in splits.search)
        assert splits.overlap == {"train": len(splits.search) - in_test, "test": in_test}

    @pytest.mark.parametrize("name", ["busi", "kvasir-seg", "perseg", "camo"])
    def test_search_overlaps_test(self, name):
        splits = authors_pools(name, OWNERS[name], 0)
        assert splits.search_from == "all"
        assert 0 < splits.overlap["test"] < len(splits.search)

    def test_perseg_has_more_search_than_train_images(self):
        assert all(authors_pools("perseg", OWNERS["perseg"], seed).overlap["test"] >= 50 for seed in range(20))

    @pytest.mark.parametrize(
        ("name", "search_from"),
        [("isic2016", "train"), ("coco2017", "unknown"), ("voc2012", "unknown"), ("cod10k", "unknown")],
    )
    def test_search_is_from_train(self, name, search_from):
        splits = authors_pools(name, OWNERS[name], 0)
        assert splits.search_from == search_from
        assert splits.overlap["test"] == 0

    @pytest.mark.parametrize("name", ["perseg", "isic2016"])
    def test_owners_division_is_kept(self, name):
        splits = authors_pools(name, OWNERS[name], 5)
        pools = official_pools(OWNERS[name])
        assert (splits.train, splits.test) == (pools.train, pools.test)

    def test_search_is_in_random_order(self):
        first_fifty = authors_pools("kvasir-seg", OWNERS["kvasir-seg"], 0).search[:50]
        positions = [int(id_.split()[1]) for id_ in first_fifty]
        assert positions != sorted(positions)
        assert max(positions) > 800

    def test_the_seed_changes_everything(self):
        drawn = [authors_pools("camo", OWNERS["camo"], seed) for seed in range(5)]
        assert len({splits.search for splits in drawn}) == len({splits.train for splits in drawn}) == 5
        assert drawn[0] == authors_pools("camo", OWNERS["camo"], 0)

    @pytest.mark.parametrize("name", ["busi", "isic2016"])
    def test_images_are_missing(self, name):
        message = message_of(authors_pools, name, OWNERS[name][:-7], 0)
        n, train, test = len(OWNERS[name]) - 7, self.TABLE[name][2], self.TABLE[name][1]
        assert message == (
            f"{name}: {n} images give {train} train and {test - 7} test images, the authors had {train} and {test}; "
            "restore the owner's files"
        )

    def test_unknown(self):
        assert message_of(authors_pools, "chameleon", [], 0).startswith("unknown dataset of the authors 'chameleon'; ")
