import pytest

from redfree.data import division
from redfree.data.division import Division, DivisionOptions, divide
from redfree.data.source import Entry
from redfree.data.splits import AUTHORS, Pools, write_split_list
from redfree.errors import UserError


def owned(train, test):
    return [
        Entry(f"{split}{n}", split=split) for split, size in (("train", train), ("test", test)) for n in range(size)
    ]


def undivided(count):
    return [Entry(f"image {n}") for n in range(count)]


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_the_owners_division_is_kept_and_search_comes_out_of_its_training_images():
    found = divide("isic2016", owned(300, 50), DivisionOptions())
    assert found.rule == "the owner's"
    assert len(found.draw("search", None, 0)) == 100
    assert len(found.draw("train", None, 0)) == 200
    assert all(id_.startswith("train") for split in ("search", "train") for id_ in found.draw(split, None, 3))
    assert sorted(found.draw("test", None, 0)) == sorted(f"test{n}" for n in range(50))


def test_without_an_owners_division_ids_are_divided_seventy_to_thirty():
    found = divide("kvasir-seg", undivided(1000), DivisionOptions())
    sizes = [len(found.draw(split, None, 0)) for split in ("search", "train", "test")]
    assert sizes == [100, 600, 300]
    assert "0.7" in found.rule


def test_the_search_pool_is_chosen():
    found = divide("perseg", owned(40, 176), DivisionOptions(search_pool=40))
    assert len(found.draw("search", 40, 0)) == 40
    assert "search_pool" in message_of(found.draw, "train", 1, 0)


def test_a_committed_list_is_used_and_its_ids_are_required(tmp_path, monkeypatch):
    monkeypatch.setattr(division, "SPLIT_LISTS", tmp_path)
    entries = undivided(10)
    pools = Pools(tuple(e.id for e in entries[:6]), tuple(e.id for e in entries[6:]))
    written = write_split_list(tmp_path / "kvasir-seg.json", "kvasir-seg", "by hand", 0, pools)
    found = divide("kvasir-seg", entries, DivisionOptions())
    assert found.rule == f"kvasir-seg.json: {written.sha256}"
    assert sorted(found.draw("test", None, 0)) == list(pools.test)
    assert "image 9" in message_of(divide, "kvasir-seg", entries[:9], DivisionOptions())


def test_groups_of_a_committed_list_stay_together_in_search_and_train(tmp_path, monkeypatch):
    monkeypatch.setattr(division, "SPLIT_LISTS", tmp_path)
    entries = [Entry(f"image {n}", group=f"group {n // 4}") for n in range(40)]
    write_split_list(
        tmp_path / "busi.json",
        "busi",
        "",
        0,
        Pools(tuple(e.id for e in entries[:36]), ("image 36", *tuple(e.id for e in entries[37:]))),
    )
    found = divide("busi", entries, DivisionOptions(search_pool=10))
    search, train = (set(found.draw(split, None, 1)) for split in ("search", "train"))
    groups = [{entry.group for entry in entries if entry.id in part} for part in (search, train)]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize("name", ["busi", "kvasir-seg", "camo", "cod10k"])
def test_the_authors_sizes_and_what_overlaps(name):
    sizes = AUTHORS[name]
    entries = undivided(sizes.train + sizes.test + 5)
    if name in ("busi", "kvasir-seg"):
        entries = entries[:-5]
    found = divide(name, entries, DivisionOptions(protocol="authors"))
    drawn = {split: found.draw(split, None, 0) for split in ("search", "train", "test")}
    assert {split: len(ids) for split, ids in drawn.items()} == {
        "search": sizes.search,
        "train": sizes.train,
        "test": sizes.test,
    }
    overlap = {split: len(set(drawn["search"]) & set(drawn[split])) for split in ("train", "test")}
    assert dict(found.overlap) == overlap
    assert (overlap["test"] > 0) == (sizes.search_from == "all")


def test_a_part_of_the_authors_test_split_is_a_random_part():
    entries = undivided(AUTHORS["busi"].train + AUTHORS["busi"].test)
    found = divide("busi", entries, DivisionOptions(protocol="authors"))
    assert found.draw("test", 20, 0) == found.draw("test", None, 1)[:20]
    assert found.draw("test", 20, 0) != sorted(found.draw("test", 20, 0))
    assert found.draw("search", 50, 0) == found.draw("search", None, 1)[:50]
    assert message_of(found.draw, "search", 101, 0) == "busi: search has 100 images, 101 needed; ask for fewer"


def test_an_unknown_dataset_of_the_authors_and_an_unknown_split():
    assert "unknown dataset of the authors" in message_of(
        divide, "ade20k", owned(3, 3), DivisionOptions(protocol="authors")
    )
    assert "unknown split" in message_of(Division("x", Pools(("a",), ("b",)), 0, "").draw, "validation", 1, 0)
