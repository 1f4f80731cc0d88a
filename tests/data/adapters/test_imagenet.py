import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from trees import imagenet as tree
from trees.paint import photo, save

from redfree.data.about import about_of
from redfree.data.adapters.imagenet import ImageNetValidation
from redfree.data.indexed import IndexedDataset
from redfree.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
NUMBERS = range(1, 9)


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path)


def by_id(root):
    source = ImageNetValidation(root)
    return source, {entry.id: entry for entry in source.entries()}


def ids(numbers=NUMBERS):
    return [tree.name(number).removesuffix(".JPEG") for number in numbers]


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_splits_and_counts(root):
    source, entries = by_id(root)
    assert list(entries) == ids()
    assert {entry.split for entry in entries.values()} == {"test"}
    assert source.counts() == {"val": 8, "train": 0}


def test_labels_are_places_in_the_sorted_order_of_wordnet_ids(root):
    source, entries = by_id(root)
    found = [source.target(entries[id_]) for id_ in ids()]
    assert found == [tree.SORTED.index(tree.wnid(number)) for number in NUMBERS]
    assert all(type(label) is int for label in found)


def test_a_reader_that_takes_the_owners_numbers_has_other_classes(root):
    source, entries = by_id(root)
    found = [source.target(entries[id_]) for id_ in ids()]
    assert found != list(tree.TRUTH)
    assert found != [number - 1 for number in tree.TRUTH]


def test_a_reader_that_counts_groups_as_classes_has_other_classes(root):
    source, entries = by_id(root)
    naive = sorted(wnid for _, wnid, _ in tree.SYNSETS)
    assert [source.target(entries[id_]) for id_ in ids()] != [naive.index(tree.wnid(number)) for number in NUMBERS]


def test_a_reader_that_zips_files_and_lines_shifts_when_a_file_is_gone(root):
    _, complete = by_id(root)
    (root / tree.name(3)).unlink()
    _, entries = by_id(root)
    naive = [tree.SORTED.index(tree.wnid(number)) for number in range(1, 8)]
    assert [entry.key for entry in entries.values()] != naive
    assert all(entry.key == complete[id_].key for id_, entry in entries.items())
    assert len(entries) == 7


@pytest.mark.parametrize("number", [1, tree.CMYK, tree.PNG, tree.GREY])
def test_images_of_every_encoding(root, number):
    source, entries = by_id(root)
    image = source.image(entries[ids([number])[0]])
    expected = photo(number).astype(int)
    if number == tree.GREY:
        expected = np.asarray(Image.fromarray(photo(number)).convert("L").convert("RGB")).astype(int)
    assert image.shape == expected.shape
    assert image.dtype == np.uint8
    assert np.abs(image - expected).mean() < 6
    with Image.open(root / tree.name(number)) as file:
        assert (file.mode, file.format) == {
            tree.CMYK: ("CMYK", "JPEG"),
            tree.PNG: ("RGB", "PNG"),
            tree.GREY: ("L", "JPEG"),
        }.get(number, ("RGB", "JPEG"))


@pytest.mark.parametrize("place", ["val", "ILSVRC2012_img_val"])
def test_flat_images_in_a_folder(root, place):
    _, expected = by_id(root)
    (root / place).mkdir()
    for number in NUMBERS:
        (root / tree.name(number)).rename(root / place / tree.name(number))
    _, entries = by_id(root)
    assert {id_: entry.key for id_, entry in entries.items()} == {id_: entry.key for id_, entry in expected.items()}


def test_entries_decode_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(by_id(root)[1]) == 8


def test_rows(root):
    rows = IndexedDataset("imagenet-1k", about_of("imagenet-1k"), ImageNetValidation(root)).load("test", 8, 0)
    assert {row["id"]: row["label"] for row in rows} == {
        id_: tree.SORTED.index(tree.wnid(number)) for id_, number in zip(ids(), NUMBERS, strict=True)
    }


class TestNested:
    def test_entries(self, tmp_path):
        source, entries = by_id(tree.build_nested(tmp_path))
        assert sorted(id_ for id_, entry in entries.items() if entry.split == "test") == ids()
        assert {id_: entry.key for id_, entry in entries.items() if entry.split == "train"} == {
            f"{tree.SORTED[0]}_26": 0,
            f"{tree.SORTED[0]}_30": 0,
            f"{tree.SORTED[4]}_10": 4,
        }
        assert source.counts() == {"val": 8, "train": 3}

    def test_labels_are_those_of_the_flat_layout(self, tmp_path):
        _, flat = by_id(tree.build(tmp_path / "flat"))
        _, nested = by_id(tree.build_nested(tmp_path / "nested"))
        assert all(nested[id_].key == entry.key for id_, entry in flat.items())

    def test_a_reader_that_numbers_the_folders_there_are_has_other_classes(self, tmp_path):
        tree.build_nested(tmp_path)
        shutil.rmtree(tmp_path / "val" / tree.SORTED[1])
        naive = sorted(path.name for path in (tmp_path / "val").iterdir() if path.is_dir()).index(tree.SORTED[3])
        _, entries = by_id(tmp_path)
        found = {entry.key for entry in entries.values() if entry.files[0].parent.name == tree.SORTED[3]}
        assert naive == 2
        assert found == {3}

    def test_without_the_development_kit_a_few_folders_say_nothing(self, tmp_path):
        tree.build_nested(tmp_path, devkit=False)
        assert message(by_id, tmp_path) == (
            f"{tmp_path}: has folders of 6 classes, not 1000, so their order says nothing; unpack {DEVKIT} beside them"
        )

    def test_without_the_development_kit_a_thousand_folders_are_the_order(self, tmp_path):
        wnids = [f"n{7 * number:08d}" for number in range(1000)]
        for wnid in wnids:
            (tmp_path / "val" / wnid).mkdir(parents=True)
        save(tmp_path / "val" / wnids[417] / tree.name(5), photo(1))
        source, entries = by_id(tmp_path)
        assert [source.target(entry) for entry in entries.values()] == [417]

    def test_a_folder_that_is_no_class(self, tmp_path):
        tree.build_nested(tmp_path)
        (tmp_path / "val" / "n02084071").mkdir()
        found = message(by_id, tmp_path)
        assert found.startswith(f"{tmp_path / 'val' / 'n02084071'}: is no class of ImageNet-1k")
        assert found.endswith("; remove the folder")

    def test_training_images_beside_flat_ones(self, root):
        save(root / "train" / tree.SORTED[2] / f"{tree.SORTED[2]}_1.JPEG", photo(1))
        source, entries = by_id(root)
        assert source.counts() == {"val": 8, "train": 1}
        assert entries[f"{tree.SORTED[2]}_1"].key == 2


class TestErrors:
    def test_no_images(self, tmp_path):
        found = message(by_id, tree.build_devkit(tmp_path))
        assert found.startswith(f"{tmp_path / tree.name(1)}: is missing, so this is not ImageNet-1k")

    @pytest.mark.parametrize("name", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
    def test_a_file_of_the_development_kit_is_missing(self, root, name):
        path = root / DEVKIT / "data" / name
        path.unlink()
        assert message(by_id, root).startswith(f"{path}: is missing")

    @pytest.mark.parametrize("value", ["7", "0", "1001", "n01440764", "1.0", "-1"])
    def test_a_label_that_is_no_class(self, root, value):
        path = root / DEVKIT / "data" / "ILSVRC2012_validation_ground_truth.txt"
        path.write_text(f"3\n1\n{value}\n4\n2\n5\n1\n3\n")
        assert message(by_id, root) == (
            f"{path}: holds {value}, which is no class of meta.mat; restore the owner's file"
        )

    def test_more_images_than_labels(self, root):
        save(root / tree.name(9), photo(9))
        assert message(by_id, root) == (
            f"{root / tree.name(9)}: the truth has classes of images 1 to 8 alone; remove the file"
        )

    def test_meta_without_synsets(self, root):
        path = root / DEVKIT / "data" / "meta.mat"
        savemat(path, {"other": 1})
        assert message(by_id, root) == f"{path}: has no variable synsets; restore the owner's file"

    def test_a_broken_image(self, root):
        source, entries = by_id(root)
        path = root / tree.name(1)
        path.write_bytes(path.read_bytes()[:100])
        assert f"{path}: not a readable image (" in message(source.image, entries[ids([1])[0]])
