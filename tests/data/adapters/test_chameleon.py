import numpy as np
import pytest
from PIL import Image
from trees import chameleon as tree
from trees import cod_repack
from trees.paint import as_grey, photo, save

from redfree.data.adapters.chameleon import Chameleon
from redfree.data.indexed import IndexedDataset, require_size
from redfree.errors import UserError


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path)


@pytest.mark.parametrize(
    ("within", "images", "masks"),
    [
        ("TestDataset/CHAMELEON", "Imgs", "GT"),
        ("CHAMELEON", "Image", "Masks"),
        ("", "Images", "GT"),
        ("", "Imgs", "Masks"),
    ],
)
def test_ids_splits_and_counts(tmp_path, within, images, masks):
    source = Chameleon(tree.build(tmp_path, within, images, masks))
    assert [(entry.id, entry.split) for entry in source.entries()] == [(stem, "test") for stem in tree.STEMS]
    assert source.counts() == {"test": 6}
    assert set(source.counts()) == set(source.about.splits)


def test_images_and_masks_are_those_drawn(root):
    source = Chameleon(root)
    for entry in source.entries():
        assert np.abs(source.image(entry).astype(int) - photo(cod_repack.seed_of(entry.id))).mean() < 6
        assert np.array_equal(source.target(entry).mask, cod_repack.truth(entry.id))


def test_trap_antialiased_edges_enlarge_the_object(root):
    source = Chameleon(root)
    entry = source.entries()[0]
    naive = np.asarray(Image.open(entry.files[1])) != 0
    assert naive.sum() > 1.1 * source.target(entry).mask.sum()
    lower = Chameleon(root, Chameleon.Options(mask_threshold=1))
    assert np.array_equal(lower.target(entry).mask, naive)


def test_trap_text_order_is_not_that_of_the_numbers(root):
    naive = sorted(path.stem for path in (root / "TestDataset/CHAMELEON/Imgs").glob("animal-*.jpg"))
    assert naive[:2] == ["animal-1", "animal-10"]
    assert [entry.id for entry in Chameleon(root).entries()][:2] == ["animal-1", "animal-2"]


def test_there_are_no_training_images_beside_the_training_set_of_others(tmp_path):
    source = Chameleon(cod_repack.build(tmp_path))
    assert [(entry.id, entry.split) for entry in source.entries()] == [(stem, "test") for stem in cod_repack.CHAMELEON]
    data = IndexedDataset("chameleon", source.about, source)
    assert sorted(data.ids("test", None, 0)) == sorted(cod_repack.CHAMELEON)
    assert message_of(data.ids, "train", 1, 0).startswith("chameleon: train has 0 images, 1 needed; ")


def test_listing_decodes_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    assert len(Chameleon(root).entries()) == 6


def test_an_empty_root_says_what_is_expected(tmp_path):
    assert message_of(Chameleon(tmp_path).entries) == (
        f"{tmp_path}: has neither TestDataset/CHAMELEON/Imgs nor Imgs; "
        "see `redfree fetch chameleon` for the expected folders"
    )


def test_the_test_set_of_another_dataset_is_refused(tmp_path):
    root = cod_repack.build(tmp_path) / "TestDataset/CAMO"
    assert message_of(Chameleon(root).entries) == (
        f"{root / 'Imgs/camourflage_00001.jpg'}: is not an image of CHAMELEON, whose names hold 'animal-'; "
        "move it elsewhere"
    )


def test_masks_that_are_missing_as_a_folder(root):
    folder = root / "TestDataset/CHAMELEON"
    (folder / "GT").rename(root / "elsewhere")
    assert message_of(Chameleon(root).entries).startswith(f"{folder}: has Imgs but neither GT nor Masks; ")


def test_defective_masks_are_named(root):
    source = Chameleon(root)
    absent, empty, small = source.entries()[:3]
    absent.files[1].unlink()
    save(empty.files[1], np.zeros((40, 56), np.uint8))
    save(small.files[1], as_grey(np.ones((40, 55), bool)))
    assert message_of(source.target, absent).startswith(f"{absent.files[1]}: no such file; ")
    assert message_of(source.target, empty).startswith(f"{empty.files[1]}: the mask is empty; ")
    assert message_of(require_size, small, source.image(small), source.target(small)).startswith(
        f"{small.files[1]}: is 55x40 but its image is 56x40; "
    )
