import numpy as np
import pytest
from PIL import Image
from trees import isic2016 as tree
from trees.paint import as_grey, disc, photo

from redfree.data.adapters.isic2016 import Isic2016
from redfree.errors import UserError

TRAIN, TEST = [f"ISIC_{n:07d}" for n in range(6)], [f"ISIC_{n:07d}" for n in range(1003, 1007)]


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path)


@pytest.fixture
def source(root):
    return Isic2016(root)


def entry_of(source, id_):
    return next(entry for entry in source.entries() if entry.id == id_)


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_splits_and_counts(source):
    entries = source.entries()
    assert [entry.id for entry in entries] == TRAIN + TEST
    assert [entry.split for entry in entries] == ["train"] * 6 + ["test"] * 4
    assert source.counts() == {"train": 6, "test": 4}


@pytest.mark.parametrize(("id_", "seed"), [("ISIC_0000002", 2), ("ISIC_0001005", 105)])
def test_images_and_masks_are_those_drawn(source, id_, seed):
    entry = entry_of(source, id_)
    assert np.abs(source.image(entry).astype(int) - photo(seed)).mean() < 5, "JPEG"
    assert np.array_equal(source.target(entry).mask, disc(seed))


def test_trap_part_3_has_folders_of_nearly_the_same_names(root, source):
    naive = list(root.glob("ISBI2016_ISIC_Part*_Training_Data/ISIC_*.jpg"))
    assert len(naive) == len(TRAIN) + 1
    assert all("Part1" in str(path) for entry in source.entries() for path in entry.files)


def test_trap_stray_files_are_no_images(root, source):
    naive = {path.name for path in root.glob("*Part1*_Data/*.jpg")} - {f"{id_}.jpg" for id_ in TRAIN + TEST}
    assert naive == {"._ISIC_0001003.jpg"}
    assert {entry.files[0].name for entry in source.entries()} == {f"{id_}.jpg" for id_ in TRAIN + TEST}


def test_a_mask_saved_with_soft_edges_is_cut_at_128(source):
    entry = entry_of(source, TRAIN[0])
    soft = np.clip(as_grey(disc(0)), 90, 200)
    soft[0, 0], soft[0, 1] = 127, 128
    Image.fromarray(soft).save(entry.files[1])
    expected = disc(0)
    expected[0, 1] = True
    assert np.array_equal(source.target(entry).mask, expected)


def test_listing_decodes_nothing(source, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(source.entries()) == 10


@pytest.mark.parametrize("part", ["Training_Data", "Training_GroundTruth", "Test_Data", "Test_GroundTruth"])
def test_a_missing_archive_is_named(root, part):
    folder = root / f"{tree.PREFIX}{part}"
    folder.rename(root / "elsewhere")
    assert message(Isic2016(root).entries).startswith(f"{folder}: is missing, so this is not ISIC 2016 Task 1")


def test_defective_masks_are_named(source):
    missing, empty = (entry_of(source, id_) for id_ in TRAIN[:2])
    missing.files[1].unlink()
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(empty.files[1])
    assert message(source.target, missing).startswith(f"{missing.files[1]}: no such file")
    assert message(source.target, empty).startswith(f"{empty.files[1]}: the mask is empty")
