from collections import Counter

import numpy as np
import pytest
from PIL import Image
from trees import busi
from trees.paint import as_grey, disc, save

from redfree.data.adapters.busi import Busi
from redfree.errors import UserError


@pytest.fixture
def source(tmp_path):
    return Busi(busi.build(tmp_path))


def entry_of(source, id_):
    return next(entry for entry in source.entries() if entry.id == id_)


def stored(source, id_, which=1):
    return np.asarray(Image.open(entry_of(source, id_).files[which]))


def failure(source, action):
    with pytest.raises(UserError) as caught:
        action(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sample_is_an_image_in_the_order_of_numbers(source):
    ids = [entry.id for entry in source.entries()]
    assert ids == busi.stems()
    assert ids != sorted(ids)
    assert {entry.split for entry in source.entries()} == {None}
    assert source.counts() == {"benign": 7, "malignant": 2}


@pytest.mark.parametrize("top", [busi.TOP, "."])
def test_values_are_what_was_drawn(tmp_path, top):
    source = Busi(busi.build(tmp_path, top))
    for entry in source.entries():
        assert np.array_equal(source.image(entry), busi.image(entry.id))
        assert np.array_equal(source.target(entry).mask, np.logical_or.reduce(busi.lesions(entry.id)))


def test_the_known_duplicates_are_a_group(source):
    groups = {entry.id: entry.group for entry in source.entries()}
    assert groups.pop("benign (65)") == groups.pop("benign (99)") is not None
    assert set(groups.values()) == {None}


@pytest.mark.parametrize("id_", busi.LESIONS)
def test_lesions_are_united_where_a_naive_reader_takes_the_first_mask(source, id_):
    naive = stored(source, id_)
    naive = (naive if naive.ndim == 2 else naive[..., 0]) >= 128
    mask = source.target(entry_of(source, id_)).mask
    assert len(entry_of(source, id_).files) == 1 + busi.LESIONS[id_]
    assert naive.sum() < mask.sum()
    assert (mask & naive).sum() == naive.sum()


def test_alpha_is_dropped_where_a_naive_reader_takes_any_channel(source):
    naive = (stored(source, "benign (10)") != 0).any(2)
    assert naive.all()
    assert source.target(entry_of(source, "benign (10)")).mask.sum() == disc(busi.seed_of("benign (10)")).sum()


def test_single_bits_count_where_a_naive_reader_compares_with_128(source):
    naive = stored(source, "benign (2)") >= 128
    assert not naive.any()
    assert source.target(entry_of(source, "benign (2)")).mask.any()


def test_masks_are_no_images_and_normal_is_dropped_where_a_naive_reader_globs(source, tmp_path):
    naive = [path.stem for path in tmp_path.rglob("*.png")]
    assert sum("_mask" in stem for stem in naive) > 9
    assert "normal (1)" in naive
    assert Counter(entry.id.split()[0] for entry in source.entries()) == {"benign": 7, "malignant": 2}


def test_nothing_is_decoded_to_list(source, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(source.entries()) == sum(source.counts().values())


class TestErrors:
    def test_not_the_dataset(self, tmp_path):
        where = tmp_path / busi.TOP / "benign"
        assert failure(Busi(tmp_path), Busi.entries).startswith(f"{where}: is missing, so this is not BUSI")

    def test_one_class_is_missing(self, source, tmp_path):
        (tmp_path / busi.TOP / "malignant").rename(tmp_path / "elsewhere")
        assert failure(source, Busi.entries).startswith(f"{tmp_path / busi.TOP / 'malignant'}: is missing")

    def test_missing_mask(self, source):
        entry = entry_of(source, "benign (4)")
        entry.files[1].unlink()
        message = failure(source, lambda s: s.target(entry_of(s, "benign (4)")))
        assert message == f"{entry.files[1]}: no such file; correct the path or restore the file"

    def test_empty_mask(self, source):
        entry = entry_of(source, "benign (1)")
        save(entry.files[1], np.zeros((40, 56), np.uint8))
        assert failure(source, lambda s: s.target(entry)).startswith(f"{entry.files[1]}: the mask is empty; ")

    def test_masks_of_two_sizes(self, source):
        entry = entry_of(source, "benign (195)")
        save(entry.files[3], as_grey(disc(5, 20, 30)))
        assert failure(source, lambda s: s.target(entry)).startswith(
            f"{entry.files[3]}: the mask is 30x20 but benign (195)_mask.png is 56x40; "
        )
