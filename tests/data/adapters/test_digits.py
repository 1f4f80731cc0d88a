import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from trees import digits as tree

from redfree.data.about import about_of
from redfree.data.adapters.digits import Digits
from redfree.data.indexed import IndexedDataset

# The third digit by hand: a 2, 0 to 16.
TWO = (
    (0, 0, 0, 4, 15, 12, 0, 0),
    (0, 0, 3, 16, 15, 14, 0, 0),
    (0, 0, 8, 13, 8, 16, 0, 0),
    (0, 0, 1, 6, 15, 11, 0, 0),
    (0, 1, 8, 13, 15, 1, 0, 0),
    (0, 9, 16, 16, 5, 0, 0, 0),
    (0, 3, 13, 16, 16, 11, 5, 0),
    (0, 0, 0, 3, 11, 16, 9, 0),
)


def test_ids_and_counts(tmp_path):
    source = Digits(tree.build(tmp_path))
    entries = source.entries()
    assert [entry.id for entry in entries] == [f"digit-{row:04d}" for row in range(1797)]
    assert {entry.split for entry in entries} == {None}
    assert source.counts() == {"all": 1797} == about_of("digits").splits


def test_root_is_not_looked_at():
    assert len(Digits(Path("/nowhere")).entries()) == 1797


def test_image_and_label():
    source = Digits(Path())
    third = source.entries()[2]
    image = source.image(third)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.repeat(np.rint(np.array(TWO) * 15.9375)[..., None], 3, axis=2))
    assert source.target(third) == 2
    assert type(source.target(third)) is int


def test_levels_span_all_of_8_bits():
    """A reader that keeps 0 to 16 has images that are all but black; one that multiplies by 16 wraps white to black."""
    source = Digits(Path())
    images = np.stack([source.image(entry) for entry in source.entries()])
    assert np.unique(images).tolist() == [round(level * 255 / 16) for level in range(17)]
    assert (load_digits().images * 16).max() == 256


def test_labels_are_those_of_scikit_learn():
    source = Digits(Path())
    assert [source.target(entry) for entry in source.entries()] == load_digits().target.tolist()


def test_an_image_can_be_changed_without_harm():
    source = Digits(Path())
    entry = source.entries()[0]
    source.image(entry)[:] = 9
    assert not (source.image(entry) == 9).any()


def test_small_when_pickled():
    source = Digits(Path())
    source.entries()
    assert len(pickle.dumps(source)) < 1000


def test_splits_are_disjoint_and_hold_everything():
    dataset = IndexedDataset("digits", about_of("digits"), Digits(Path()))
    splits = {split: set(dataset.ids(split, None, 0)) for split in ("search", "train", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 1797


def test_rows():
    rows = IndexedDataset("digits", about_of("digits"), Digits(Path())).load("test", 3, 0)
    for row in rows:
        assert isinstance(row["image"], Image.Image)
        assert row["label"] == load_digits().target[int(row["id"].removeprefix("digit-"))]
