"""What every adapter promises, on a tiny tree in the layout of its dataset's owner."""

import json
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from trees.every import OPTIONS, TREES, accept_hashes, build, open_tree

from redfree.data import division
from redfree.data.duplicates import near_duplicates, perceptual_hash
from redfree.data.registry import GENERIC, SOURCES, DatasetUse, open_dataset
from redfree.data.schema import TASKS
from redfree.errors import UserError

# Datasets of which the owner gives test samples alone.
WITHOUT_TRAINING = {"chameleon", "imagenet-1k"}
PACKAGED = {"digits"}


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """Builds the tree of a dataset, once."""
    built = {}

    def root_of(name):
        if name not in built:
            built[name] = build(name, tmp_path_factory.mktemp(TREES[name]))
        return built[name]

    return root_of


@pytest.fixture(autouse=True)
def hashes_of_the_trees(monkeypatch, trees):
    accept_hashes(monkeypatch, trees)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_committed_lists(monkeypatch, tmp_path):
    """A committed list names all images of the real dataset."""
    monkeypatch.setattr(division, "SPLIT_LISTS", tmp_path)


@pytest.fixture
def opened(trees):
    return lambda name, **options: open_tree(name, trees(name), **options)


def splits_of(name):
    return ("test",) if name in WITHOUT_TRAINING else ("search", "train", "test")


def samples(dataset, split, seed=0):
    rows = dataset.load(split, None, seed)
    return [TASKS[dataset.about.task][1](row) for row in rows]


@pytest.mark.parametrize("name", SOURCES)
class TestEveryAdapter:
    def test_nothing_is_decoded_before_a_row_is_read(self, name, opened, monkeypatch):
        def refuse(*arguments, **keywords):
            raise AssertionError("an image was opened")

        monkeypatch.setattr(Image, "open", refuse)
        dataset = opened(name)
        for split in splits_of(name):
            assert len(dataset.load(split, None, 0).select_columns("id")["id"]) > 0

    def test_rows_hold_the_columns_of_the_task(self, name, opened):
        dataset = opened(name)
        for split in splits_of(name):
            row = dataset.load(split, 1, 0)[0]
            assert set(row) == set(TASKS[dataset.about.task][0])

    def test_search_train_and_test_share_neither_ids_nor_images(self, name, opened):
        dataset = opened(name)
        for seed in range(3):
            found = {split: {s.id: s for s in samples(dataset, split, seed)} for split in splits_of(name)}
            for one, other in combinations(found.values(), 2):
                assert not one.keys() & other.keys()
            side = {id_: split for split, of_split in found.items() for id_ in of_split}
            if name in PACKAGED:
                continue  # images of 8 by 8 pixels look alike
            hashes = {id_: perceptual_hash(s.image) for of_split in found.values() for id_, s in of_split.items()}
            assert all(side[a] == side[b] for a, b in near_duplicates(hashes))

    def test_the_test_split_is_the_same_for_every_seed(self, name, opened):
        dataset = opened(name)
        assert dataset.ids("test", None, 0) == dataset.ids("test", None, 1)
        assert dataset.ids("test", 1, 0) == dataset.ids("test", None, 0)[:1]

    def test_samples_have_the_same_fingerprint_when_read_again(self, name, opened):
        first, again = (samples(opened(name), "test") for _ in range(2))
        assert [s.fingerprint() for s in first] == [s.fingerprint() for s in again]
        assert len({s.fingerprint() for s in first}) == len(first)

    def test_images_are_rgb_and_targets_as_large(self, name, opened):
        dataset = opened(name)
        for sample in samples(dataset, "test"):
            assert sample.image.dtype == np.uint8
            assert sample.image.shape[2] == 3
            for part in ("mask", "depth", "valid"):
                if hasattr(sample, part):
                    assert getattr(sample, part).shape == sample.image.shape[:2]

    def test_masks_are_not_empty_and_hold_their_points(self, name, opened):
        dataset = opened(name)
        if dataset.about.task != "segmentation":
            pytest.skip("no masks")
        for split in splits_of(name):
            for sample in samples(dataset, split):
                assert sample.mask.any()
                assert sample.ignore is None or not (sample.mask & sample.ignore).any()
                for x, y in sample.prompt.points:
                    assert sample.mask[round(y), round(x)]

    def test_the_description_is_plain_data_with_all_that_a_reader_asks(self, name, opened):
        about = opened(name).describe()
        json.dumps(about)
        for fact in ("name", "revision", "source", "licence", "terms", "citation", "encoding", "division", "options"):
            assert about[fact] is not None

    def test_the_tree_is_sound_but_for_the_number_of_images(self, name, opened):
        defects = opened(name).verify()
        assert [line for line in defects if "are published" not in line] == []
        published = opened(name).about.splits
        assert len(defects) == (0 if name in PACKAGED else len(published))

    def test_a_folder_that_is_something_else_is_one_line(self, name, tmp_path):
        if name in PACKAGED:
            pytest.skip("it is part of a package")
        (tmp_path / "holiday.txt").write_text("sun")
        with pytest.raises(UserError) as caught:
            open_dataset(DatasetUse(name, OPTIONS.get(name, {}), str(tmp_path))).load("test", None, 0)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    def test_an_option_that_does_not_exist_is_one_line(self, name, tmp_path):
        with pytest.raises(UserError, match=f"^dataset {name}: options: unknown field 'mask_treshold'"):
            open_dataset(DatasetUse(name, {**OPTIONS.get(name, {}), "mask_treshold": 128}, str(tmp_path)))


def test_every_name_has_facts_and_a_tree():
    assert set(TREES) == set(SOURCES)
    assert set(SOURCES) > GENERIC
