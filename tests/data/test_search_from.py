import json

import pytest
from trees import chameleon, cod10k, isic2016

from redfree.data.registry import DatasetUse, open_dataset
from redfree.data.schema import read_samples
from redfree.data.search_from import SearchedElsewhere
from redfree.errors import UserError


@pytest.fixture
def data_root(tmp_path):
    chameleon.build(tmp_path / "chameleon")
    cod10k.build(tmp_path / "cod10k")
    return tmp_path


@pytest.fixture
def dataset(data_root):
    return open_dataset(DatasetUse("chameleon", {"search_from": "cod10k"}), data_root=data_root)


def test_the_test_images_are_those_of_the_one_and_the_others_of_the_other(dataset, data_root):
    tested, searched = (open_dataset(name, data_root=data_root) for name in ("chameleon", "cod10k"))
    assert list(dataset.load("test", None, 3)["id"]) == tested.ids("test", None, 3)
    for split in ("search", "train"):
        assert list(dataset.load(split, None, 3)["id"]) == searched.ids(split, None, 3)


def test_rows_of_both_are_samples(dataset):
    samples = [next(read_samples(dataset.load(split, 1, 0))) for split in ("search", "test")]
    assert ["CAM" in sample.id for sample in samples] == [True, False]
    assert all(sample.mask.any() for sample in samples)


def test_without_it_there_are_no_search_images(data_root):
    with pytest.raises(UserError, match="chameleon: search has 0 images, 1 needed"):
        open_dataset("chameleon", data_root=data_root).load("search", 1, 0)


def test_the_searched_dataset_is_part_of_the_description(dataset):
    about = dataset.describe()
    json.dumps(about)
    assert about["name"] == "chameleon"
    assert about["options"]["search_from"] == "cod10k"
    assert about["options"]["search_options"] == {"mask_threshold": 128, "protocol": "official"}
    assert about["options"]["mask_threshold"] == 128


def test_the_defects_of_both_are_listed(dataset):
    masks = [next(iter(part.entries.values())).files[1] for part in (dataset.tested, dataset.searched)]
    for mask in masks:
        mask.unlink()
    lines = [line for line in dataset.verify() if "are published" not in line]
    assert [line.partition(":")[0] for line in lines] == [str(mask) for mask in masks]
    assert all("no such file" in line for line in lines)


def test_a_test_split_of_its_own_does_not_change_what_is_searched(tmp_path):
    """Any two datasets can be combined, to see how a swap carries over."""
    isic2016.build(tmp_path / "isic2016")
    cod10k.build(tmp_path / "cod10k")
    one, other = (open_dataset(name, data_root=tmp_path) for name in ("isic2016", "cod10k"))
    both = SearchedElsewhere(one, other)
    assert list(both.load("search", None, 1)["id"]) == other.ids("search", None, 1)
    assert not set(both.load("test", None, 0)["id"]) & set(other.ids("test", None, 0))
