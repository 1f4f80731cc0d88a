import numpy as np
import pytest
from PIL import Image
from trees import cod10k as tree
from trees import cod_repack
from trees.paint import as_grey, photo, save

from redfree.data.adapters.cod10k import Cod10k
from redfree.data.indexed import IndexedDataset, require_size
from redfree.data.schema import read_samples
from redfree.errors import UserError


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids_by_split(source):
    found = {"train": [], "test": []}
    for entry in source.entries():
        found[entry.split].append(entry.id)
    return found


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path)


@pytest.mark.parametrize("within", ["COD10K-v3", ""])
def test_ids_splits_and_counts(tmp_path, within):
    source = Cod10k(tree.build(tmp_path, within))
    assert ids_by_split(source) == {"train": tree.CAM["Train"], "test": tree.CAM["Test"]}
    assert source.counts() == {"train": 5, "test": 4}
    assert set(source.counts()) == set(source.about.splits)


@pytest.mark.parametrize("paint", [cod_repack.softened, tree.red])
def test_images_and_masks_are_those_drawn(tmp_path, paint):
    source = Cod10k(tree.build(tmp_path, paint=paint))
    for entry in source.entries():
        assert np.abs(source.image(entry).astype(int) - photo(cod_repack.seed_of(entry.id))).mean() < 6
        assert np.array_equal(source.target(entry).mask, cod_repack.truth(entry.id))


def test_trap_cam_is_also_in_noncam(root):
    naive = [path.stem for path in (root / "COD10K-v3/Test/Image").glob("[!.]*.jpg") if "CAM" in path.stem]
    assert len(naive) == 6
    assert set(naive) - set(tree.CAM["Test"]) == set(tree.NON_CAM["Test"])
    assert all("NonCAM" not in entry.id for entry in Cod10k(root).entries())


def test_trap_pure_red_is_a_dark_grey(tmp_path):
    """Luminance of (255, 0, 0) is 76: a threshold of 128 finds nothing, and one of 1 takes the edge too."""
    source = Cod10k(tree.build(tmp_path, paint=tree.red))
    entry = source.entries()[0]
    grey = np.asarray(Image.open(entry.files[1]).convert("L"))
    mask = source.target(entry).mask
    assert grey.max() == 76
    assert not (grey >= 128).any()
    assert (grey >= 1).sum() > mask.sum() == cod_repack.truth(entry.id).sum()
    lower = Cod10k(tmp_path, Cod10k.Options(mask_threshold=90))
    assert np.array_equal(lower.target(entry).mask, grey >= 1)


def test_trap_numbers_of_a_class_are_in_both_splits(root):
    fish = {entry.id.rsplit("-", 1)[1]: entry.split for entry in Cod10k(root).entries() if "BatFish" in entry.id}
    assert fish == {"1": "train", "3": "train", "7": "train", "2": "test", "4": "test"}


def test_listing_decodes_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    assert len(Cod10k(root).entries()) == 9


def test_the_repack(tmp_path):
    source = Cod10k(cod_repack.build(tmp_path))
    assert ids_by_split(source) == {"train": cod_repack.COD10K_TRAIN, "test": cod_repack.COD10K_TEST}


def test_rows_are_samples_with_a_prompt_on_the_object(root):
    source = Cod10k(root)
    for sample in read_samples(IndexedDataset("cod10k", source.about, source).load("test", 4, 0)):
        (x, y), *_ = sample.prompt.points
        assert sample.mask[int(y), int(x)]


class TestLists:
    def test_a_listed_image_that_is_missing_is_named(self, root):
        images = root / "COD10K-v3/Test/Image"
        (images / f"{tree.CAM['Test'][1]}.jpg").unlink()
        path = root / "COD10K-v3/Info/CAM_test.txt"
        expected = f"{path}: names {tree.CAM['Test'][1]}, missing from {images}; unpack the archive anew"
        assert message_of(Cod10k(root).entries) == expected

    def test_several_are_counted(self, root):
        for stem in tree.CAM["Train"][1:]:
            (root / f"COD10K-v3/Train/Image/{stem}.jpg").unlink()
        assert f"names {tree.CAM['Train'][1]} and 3 more, missing from" in message_of(Cod10k(root).entries)

    @pytest.mark.parametrize("line", ["{}\n", "{}.png\n", "\n{}.jpg 1\n", "Image/{}.jpg\n"])
    def test_names_may_be_written_in_several_ways(self, root, line):
        path = root / "COD10K-v3/Info/CAM_test.txt"
        path.write_text("".join(line.format(stem) for stem in tree.CAM["Test"]))
        assert len(Cod10k(root).entries()) == 9
        path.write_text(line.format("COD10K-CAM-9-Other-1-None-1"))
        assert "names COD10K-CAM-9-Other-1-None-1, missing" in message_of(Cod10k(root).entries)

    def test_there_may_be_none(self, root):
        (root / "COD10K-v3/Info").rename(root / "elsewhere")
        assert len(Cod10k(root).entries()) == 9


@pytest.mark.parametrize("missing", ["Train/Image", "Test/Image", "Train/GT_Object", "Test/GT_Object"])
def test_a_missing_folder_is_named(root, missing):
    path = root / "COD10K-v3" / missing
    path.rename(root / "elsewhere")
    assert message_of(Cod10k(root).entries).startswith(f"{path}: is missing, so this is not COD10K")


def test_an_empty_root_says_what_is_expected(tmp_path):
    assert message_of(Cod10k(tmp_path).entries) == (
        f"{tmp_path}: has neither Train/Image and Test/Image nor TestDataset/COD10K/Imgs; "
        "see `redfree fetch cod10k` for the expected folders"
    )


def test_defective_masks_are_named(root):
    source = Cod10k(root)
    absent, empty, small = source.entries()[:3]
    absent.files[1].unlink()
    save(empty.files[1], np.zeros((40, 56), np.uint8))
    save(small.files[1], as_grey(np.ones((40, 55), bool)))
    assert message_of(source.target, absent).startswith(f"{absent.files[1]}: no such file; ")
    assert message_of(source.target, empty).startswith(f"{empty.files[1]}: the mask is empty; ")
    assert message_of(require_size, small, source.image(small), source.target(small)).startswith(
        f"{small.files[1]}: is 55x40 but its image is 56x40; "
    )
