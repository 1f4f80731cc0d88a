import numpy as np
import pytest
from PIL import Image
from trees import cityscapes as tree
from trees.paint import save

from redfree.data.adapters.cityscapes import Cityscapes
from redfree.data.indexed import IndexedDataset, require_size
from redfree.data.label_maps import LabelMapOptions
from redfree.data.mmseg_lists import class_names
from redfree.data.schema import read_samples
from redfree.errors import UserError

TRAINED = (tree.ROAD, tree.SKY, tree.CAR)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path / "data")


def source(root, **options):
    return Cityscapes(root, LabelMapOptions(**options))


def labels_at(root, city="aachen", number=0, kind="labelIds"):
    return root / "gtFine" / tree.CITIES[city][0] / city / f"{tree.stem(city, number)}_gtFine_{kind}.png"


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_splits_and_counts_are_those_of_the_folders(root):
    found = [(entry.id, entry.split, entry.group, entry.key) for entry in source(root).entries()]
    splits = {"train": "train", "val": "test"}
    assert found == [
        (tree.stem(city, n), splits[part], None, None) for city, (part, numbers) in tree.CITIES.items() for n in numbers
    ]
    assert source(root).counts() == {"train": 6, "val": 3}


def test_images_and_masks_are_those_drawn(root):
    cities = source(root)
    for number, entry in enumerate(cities.entries()[:4]):
        labels, target = tree.truth("aachen", number), cities.target(entry)
        largest = max(TRAINED, key=lambda label: (labels == label).sum())
        assert np.array_equal(target.mask, labels == largest)
        assert np.array_equal(target.ignore, ~np.isin(labels, TRAINED))
        assert np.array_equal(cities.image(entry), tree.photo(number, 32, 64))


def test_each_class_is_a_sample_of_its_name(root):
    cities = source(root, target="each")
    entries = cities.entries()
    assert [entry.id for entry in entries[:3]] == [f"aachen_000000_000019-{name}" for name in ("road", "sky", "car")]
    assert len(entries) == 27
    for entry, label in zip(entries[:3], TRAINED, strict=True):
        assert np.array_equal(cities.target(entry).mask, tree.truth("aachen", 0) == label)


@pytest.mark.parametrize("target", ["largest", "foreground", "each"])
def test_train_ids_alone_make_the_same_samples(root, tmp_path, target):
    kinds = {"ids": ("labelIds",), "both": ("labelIds", "labelTrainIds"), "train ids": ("labelTrainIds",)}
    sources = [source(tree.build(tmp_path / name, kind), target=target) for name, kind in kinds.items()]
    for entries in zip(*(s.entries() for s in sources), strict=True):
        assert len({(entry.id, entry.split, entry.group) for entry in entries}) == 1
        first, *others = (s.target(entry) for s, entry in zip(sources, entries, strict=True))
        for other in others:
            assert np.array_equal(other.mask, first.mask)
            assert np.array_equal(other.ignore, first.ignore)


def test_trap_the_archive_holds_no_train_ids(root):
    """mmseg's class looks for files that only the owner's scripts make."""
    naive = [
        entry.files[1].with_name(entry.files[1].name.replace("labelIds", "labelTrainIds"))
        for entry in source(root).entries()
    ]
    assert not any(path.exists() for path in naive)
    assert all(entry.files[1].is_file() for entry in source(root).entries())


def test_trap_label_ids_are_no_train_ids(root):
    """Label ids as indices of the 19 classes: the road is named a sign, and cars are out of range."""
    names = class_names("CityscapesDataset")
    assert names[tree.ROAD] == "traffic sign"
    assert len(names) <= tree.CAR
    ours = {entry.id.partition("-")[2]: entry.key for entry in source(root, target="each").entries()[:3]}
    assert ours == {"road": tree.ROAD, "sky": tree.SKY, "car": tree.CAR}


def test_trap_what_is_not_trained_on_is_ignored_and_not_background(root):
    cities = source(root)
    target, labels = cities.target(cities.entries()[0]), tree.truth("aachen", 0)
    unknown = np.isin(labels, [tree.EGO, tree.CARAVAN])
    assert unknown.any()
    assert target.ignore[unknown].all()
    assert not target.mask[unknown].any()


def test_trap_labels_of_the_test_part_are_dummies(root):
    assert list((root / "gtFine/test/berlin").glob("*_gtFine_labelIds.png"))
    assert not [entry.id for entry in source(root).entries() if entry.id.startswith(tree.DUMMY_CITY)]


def test_the_table_of_ids_is_in_the_order_of_the_classes(root):
    """Ids of the owner's table, `cityscapesscripts/helpers/labels.py`, by name."""
    known = {"road": 7, "building": 11, "pole": 17, "traffic sign": 20, "person": 24, "train": 31, "bicycle": 33}
    save(labels_at(root), np.arange(34, dtype=np.uint8).repeat(64).reshape(34, 64))
    found = {e.id.partition("-")[2]: e.key for e in source(root, target="each").entries() if "aachen_000000_" in e.id}
    assert list(found) == list(class_names("CityscapesDataset"))
    assert {name: found[name] for name in known} == known


def test_listing_decodes_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    for target in ("largest", "foreground"):
        assert len(source(root, target=target).entries()) == 9


def test_rows_are_samples_with_a_prompt_on_the_object(root):
    cities = source(root)
    data = IndexedDataset("cityscapes", cities.about, cities)
    for sample in read_samples(data.load("test", 3, 0)):
        (x, y), *_ = sample.prompt.points
        assert sample.mask[int(y), int(x)]
        assert not (sample.mask & sample.ignore).any()


@pytest.mark.parametrize("missing", ["leftImg8bit/val", "gtFine/train"])
def test_a_missing_folder_is_named(root, missing):
    (root / missing).rename(root / "elsewhere")
    message = message_of(source(root).entries)
    assert message.startswith(f"{root / missing}: is missing, so this is not Cityscapes")


def test_a_missing_label_map_is_named(root):
    labels_at(root).unlink()
    cities = source(root)
    assert message_of(cities.target, cities.entries()[0]).startswith(f"{labels_at(root)}: no such file; ")


def test_without_any_label_maps_those_of_the_archive_are_asked_for(tmp_path):
    cities = source(tree.build(tmp_path, ()))
    assert message_of(cities.target, cities.entries()[0]).startswith(f"{labels_at(tmp_path)}: no such file; ")


@pytest.mark.parametrize(("kind", "label"), [("labelIds", 34), ("labelIds", 255), ("labelTrainIds", 19)])
def test_a_foreign_label_is_refused(tmp_path, kind, label):
    tree.build(tmp_path, (kind,))
    save(labels_at(tmp_path, kind=kind), np.full((32, 64), label, np.uint8))
    cities = source(tmp_path)
    assert message_of(cities.target, cities.entries()[0]) == (
        f"{labels_at(tmp_path, kind=kind)}: holds the label {label}, which {cities.about.title} has not; "
        "restore the owner's file"
    )


def test_a_label_map_of_another_size_is_refused(root):
    save(labels_at(root), tree.truth("aachen", 0)[:-1])
    cities = source(root)
    entry = cities.entries()[0]
    assert message_of(require_size, entry, cities.image(entry), cities.target(entry)).startswith(
        f"{labels_at(root)}: is 64x31 but its image is 64x32; "
    )
