import numpy as np
import pytest
from PIL import Image
from trees import image_folder as tree
from trees.paint import photo, save

from redfree.data.about import about_of
from redfree.data.adapters.image_folder import ImageFolder
from redfree.data.indexed import IndexedDataset
from redfree.data.schema import decode_labelled_row
from redfree.errors import UserError

STEMS = ["1", "2", "10"]


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def facts(source):
    return [(entry.id, entry.split, source.target(entry)) for entry in source.entries()]


@pytest.mark.parametrize("test", ["val", "test", "validation"])
def test_ids_splits_and_classes(tmp_path, test):
    source = ImageFolder(tree.build(tmp_path, test))
    assert facts(source) == [
        (f"{folder}/{name}/{stem}", split, label)
        for folder, split in (("train", "train"), (test, "test"))
        for label, name in enumerate(tree.CLASSES)
        for stem in STEMS
    ]
    assert source.counts() == {}


def test_classes_in_the_root_are_not_divided(tmp_path):
    source = ImageFolder(tree.build(tmp_path, None))
    assert facts(source) == [
        (f"{name}/{stem}", None, label) for label, name in enumerate(tree.CLASSES) for stem in STEMS
    ]


def test_images_are_those_drawn(tmp_path):
    source = ImageFolder(tree.build(tmp_path))
    for entry in source.entries():
        split, _, stem = entry.id.split("/")
        seed = tree.seed_of(split, source.target(entry), STEMS.index(stem))
        assert np.abs(source.image(entry).astype(int) - photo(seed, 20, 28)).mean() < 12


def test_trap_classes_numbered_as_they_are_met(tmp_path):
    """Without sorting, the number of a class depends on the file system; with capitals folded, on the locale."""
    tree.build(tmp_path)
    naive = {name: label for label, name in enumerate(sorted(tree.CLASSES, key=str.casefold))}
    found = {entry.id.split("/")[1]: entry.key for entry in ImageFolder(tmp_path).entries()}
    assert found == {"Zebra": 0, "ant": 1, "bee 2": 2} != naive


def test_rows_are_labelled_samples(tmp_path):
    data = IndexedDataset("image-folder/mine", about_of("image-folder"), ImageFolder(tree.build(tmp_path)))
    for sample in map(decode_labelled_row, data.load("test", None, 0)):
        assert sample.image.shape == (20, 28, 3)
        assert tree.CLASSES[sample.label] == sample.id.split("/")[1]


def test_listing_decodes_nothing(tmp_path, monkeypatch):
    tree.build(tmp_path)
    monkeypatch.setattr(Image, "open", None)
    assert len(ImageFolder(tmp_path).entries()) == 18


def test_a_class_may_be_called_as_a_split(tmp_path):
    for name in ("train", "plane", "test"):
        save(tmp_path / name / "1.png", photo(1))
    assert facts(ImageFolder(tmp_path)) == [("plane/1", None, 0), ("test/1", None, 1), ("train/1", None, 2)]


@pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
def test_a_class_of_one_split_alone_is_named(tmp_path, split, other):
    save(tree.build(tmp_path) / split / "cat" / "1.jpg", photo(1))
    assert message_of(ImageFolder(tmp_path).entries) == (
        f"{tmp_path / other / 'cat'}: the class is missing; add it, or remove {tmp_path / split / 'cat'}"
    )


def test_a_class_without_images_is_named(tmp_path):
    (tree.build(tmp_path) / "train" / "cat").mkdir()
    (tmp_path / "val" / "cat").mkdir()
    assert message_of(ImageFolder(tmp_path).entries) == (
        f"{tmp_path / 'train/cat'}: the class holds no images; add some, or remove the folder"
    )


@pytest.mark.parametrize(("removed", "there", "missing"), [("val", "train", "test"), ("train", "val", "train")])
def test_one_split_alone_is_refused(tmp_path, removed, there, missing):
    (tree.build(tmp_path / "data") / removed).rename(tmp_path / "elsewhere")
    message = message_of(ImageFolder(tmp_path / "data").entries)
    assert message.startswith(f"{tmp_path / 'data'}: has classes in {there} but none in {missing}; put the images at ")


def test_two_folders_to_test_on_are_refused(tmp_path):
    tree.classes_in(tree.build(tmp_path) / "test", "test")
    assert message_of(ImageFolder(tmp_path).entries) == (
        f"{tmp_path}: has test and val; move away the one not to test on"
    )


def test_two_images_of_one_name_are_refused(tmp_path):
    copy = save(tree.build(tmp_path) / "train/ant/1.png", photo(1))
    assert message_of(ImageFolder(tmp_path).entries).startswith(f"{copy}: 1.jpg has the same name; ")


def test_a_missing_or_empty_root_is_named(tmp_path):
    assert (
        message_of(ImageFolder(tmp_path / "none").entries) == f"{tmp_path / 'none'}: no such folder; correct the path"
    )
    save(tmp_path / "1.jpg", photo(1))
    assert message_of(ImageFolder(tmp_path).entries).startswith(f"{tmp_path}: holds no folders of classes; put ")


def test_a_defective_image_is_named(tmp_path):
    path = tree.build(tmp_path) / "train/Zebra/1.jpg"
    path.write_bytes(path.read_bytes()[:200])
    source = ImageFolder(tmp_path)
    assert message_of(source.image, source.entries()[0]).startswith(f"{path}: not a readable image (")
