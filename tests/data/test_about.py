import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from redfree.data.about import About, about_of, abouts, data_folder
from redfree.data.registry import DATASETS
from redfree.errors import UserError
from redfree.models.checkpoints import checkpoints

ENTRIES = list(abouts().values())
# Images with a target of each part, and whether the figures are confirmed.
COUNTS = {
    "coco2017": ({"train": 118287, "val": 5000}, False),
    "voc2012": ({"train": 1464, "val": 1449}, False),
    "isic2016": ({"train": 900, "test": 379}, True),
    "busi": ({"benign": 437, "malignant": 210}, True),
    "kvasir-seg": ({"all": 1000}, True),
    "camo": ({"train": 1000, "test": 250}, True),
    "cod10k": ({"train": 3040, "test": 2026}, False),
    "chameleon": ({"test": 76}, False),
    "ade20k": ({"train": 20210, "val": 2000}, True),
    "cityscapes": ({"train": 2975, "val": 500}, True),
    "nyuv2": ({"train": 795, "test": 654}, True),
    "kitti": ({"train": 23158, "test": 652}, True),
    "cifar10": ({"train": 50000, "test": 10000}, True),
}
FETCHABLE = {"coco2017": 3, "voc2012": 1, "isic2016": 4, "kvasir-seg": 1, "ade20k": 1, "cifar10": 1, "cifar100": 1}
ARCHIVE = {"url": "https://example.org/a.zip", "filename": "a.zip", "source": "this test"}


def facts(**changes):
    entry = about_of("busi").model_dump()
    return {**entry, **changes}


class TestRegistry:
    def test_every_dataset_that_can_be_opened_has_its_facts(self):
        assert set(abouts()) == set(DATASETS)

    def test_no_dataset_has_the_name_of_a_checkpoint(self):
        assert not set(abouts()) & set(checkpoints())

    @pytest.mark.parametrize("name", COUNTS)
    def test_published_counts(self, name):
        assert (about_of(name).splits, about_of(name).confirmed) == COUNTS[name]

    def test_digits_are_those_of_scikit_learn(self):
        assert about_of("digits").splits == {"all": len(load_digits().target)}

    def test_tasks(self):
        assert {about.name for about in ENTRIES if about.task == "depth"} == {"nyuv2", "kitti"}
        classified = {about.name for about in ENTRIES if about.task == "classification"}
        assert classified == {"cifar10", "cifar100", "digits", "imagenet-1k", "image-folder"}

    def test_only_what_needs_no_registration_is_downloaded(self):
        assert {about.name: len(about.archives) for about in ENTRIES if about.archives} == FETCHABLE

    @pytest.mark.parametrize("archive", [a for about in ENTRIES for a in about.archives], ids=lambda a: a.filename)
    def test_an_archive_is_named_as_its_url_ends(self, archive):
        assert archive.url.rsplit("/", 1)[-1] == archive.filename
        # Hosts that answer on http alone: what comes first is locked.
        plain = urlsplit(archive.url).hostname in {"images.cocodataset.org", "data.csail.mit.edu"}
        assert urlsplit(archive.url).scheme == ("http" if plain else "https")

    def test_published_md5s(self):
        md5s = {archive.filename: archive.md5 for about in ENTRIES for archive in about.archives if archive.md5}
        assert md5s == {
            "VOCtrainval_11-May-2012.tar": "6cd6e144f989b92b3379bac3b3de84fd",
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        }

    def test_what_is_unpickled_has_a_published_hash(self):
        for name in ("cifar10", "cifar100"):
            assert all(archive.published().hashed for archive in about_of(name).archives)

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("kvasir-seg", "Kvasir-SEG/kavsir_bboxes.json"),  # the owner's spelling
            ("kvasir-seg", "Kvasir-SEG/masks/cju0qkwl35piu0993l0dewei2.jpg"),  # masks are JPEG
            (
                "camo",
                "CAMO-V.1.0-CVIU2019/GT/camourflage_00001.png",
            ),  # the owner's spelling; one folder for both splits
            ("busi", "Dataset_BUSI_with_GT/benign/benign (1)_mask.png"),  # a space and parentheses
            ("isic2016", "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png"),  # not Part3
            ("cityscapes", "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"),  # not labelTrainIds
        ],
    )
    def test_trees_keep_the_oddities_of_their_owners(self, name, path):
        assert path in about_of(name).tree.splitlines()

    def test_isic_archives_unpack_to_the_folders_of_the_tree(self):
        about = about_of("isic2016")
        assert {Path(a.filename).stem for a in about.archives} == {
            line.split("/")[0] for line in about.tree.splitlines()
        }

    @pytest.mark.parametrize("about", [a for a in ENTRIES if a.place == "root"], ids=lambda a: a.name)
    def test_a_citation_names_authors_title_and_year(self, about):
        assert re.search(r"^\S.+: .+\. .*\b(19|20)\d\d\b", about.citation)

    def test_an_unknown_name_gives_the_nearest(self):
        with pytest.raises(UserError, match="unknown dataset 'isic2017'; did you mean 'isic2016'"):
            about_of("isic2017")

    def test_nobody_can_change_it(self):
        with pytest.raises(TypeError):
            abouts()["busi"] = about_of("camo")
        with pytest.raises(ValidationError):
            about_of("busi").page = "https://example.org"

    def test_imports_neither_torch_nor_datasets(self):
        code = "import sys, redfree.data.fetch as _; sys.exit(bool({'torch', 'datasets'} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestAbout:
    @pytest.mark.parametrize(
        "changes",
        [
            {"task": "detection"},
            {"page": None},
            {"tree": ""},
            {"terms": "two\nlines"},
            {"licence": ""},
            {"layouts": []},
            {"splits": {"train": 0}},
            {"archives": [{**ARCHIVE, "filename": "../a.zip"}]},
            {"archives": [{**ARCHIVE, "url": "file:///a.zip"}]},
            {"archives": [{**ARCHIVE, "md5": "12"}]},
            {"size": 3},
        ],
        ids=str,
    )
    def test_a_bad_fact_is_refused(self, changes):
        assert About(**facts(archives=[ARCHIVE]))
        with pytest.raises(ValidationError):
            About(**facts(**changes))


def test_data_folder_is_the_option_then_the_environment_then_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("REDFREE_DATA", "/d")
    monkeypatch.setenv("REDFREE_CACHE", "/c")
    assert data_folder(tmp_path) == tmp_path
    assert data_folder() == Path("/d")
    monkeypatch.setenv("REDFREE_DATA", "")
    assert data_folder() == Path("/c/datasets")
