import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image
from trees import busi, coco2017, isic2016
from trees.paint import as_grey, disc, photo, save

from redfree.data import division
from redfree.data.about import about_of
from redfree.data.division import DivisionOptions
from redfree.data.indexed import REVISION, IndexedDataset, require_size, target_columns
from redfree.data.prompts import PromptRule
from redfree.data.registry import DatasetUse, open_dataset
from redfree.data.schema import decode_row
from redfree.data.source import DepthTarget, Entry, SegmentationTarget
from redfree.data.splits import AuthorsSizes, Pools, write_split_list
from redfree.errors import UserError

TRAIN, TEST = (isic2016.PREFIX + part for part in ("Training", "Test"))


@pytest.fixture
def root(tmp_path):
    return isic2016.build(tmp_path / "isic2016")


@pytest.fixture
def dataset(root):
    return open_dataset(DatasetUse("isic2016", root=str(root)))


def isic(root, **options):
    return open_dataset(DatasetUse("isic2016", options, str(root)))


def found(dataset):
    """Defects but for the number of images, which is not that of the real dataset."""
    return [line for line in dataset.verify() if "are published" not in line]


class Drawn:
    """A source of entries and what is read of them, without files."""

    def __init__(self, samples, counts=None):
        self.samples, self.published = samples, counts or {}

    def entries(self):
        return [entry for entry, _, _ in self.samples]

    def counts(self):
        return self.published

    def image(self, entry):
        return next(image for one, image, _ in self.samples if one is entry)

    def target(self, entry):
        return next(target for one, _, target in self.samples if one is entry)


def in_memory(samples, division=DivisionOptions(), **fields):  # noqa: B008 - frozen
    return IndexedDataset("mine", about_of("folder"), Drawn(samples), division, **fields)


def drawn(id_, seed, split, size=(40, 56), **fields):
    return Entry(id_, split=split, **fields), photo(seed, *size), SegmentationTarget(disc(seed, *size))


class TestRows:
    def test_a_column_alone_reads_no_more_than_it_needs(self, dataset, monkeypatch):
        read = []
        for part in ("image", "target"):
            real = getattr(type(dataset.source), part)
            monkeypatch.setattr(
                type(dataset.source),
                part,
                lambda self, entry, real=real, part=part: read.append(part) or real(self, entry),
            )
        rows = dataset.load("test", None, 0)
        for column, parts in (("id", []), ("image", ["image"]), ("mask", ["target"]), ("prompt", ["target"])):
            read.clear()
            assert rows.select_columns(column)[0][column]
            assert read == parts

    def test_a_row_is_the_sample_of_its_source(self, dataset):
        row = dataset.load("test", None, 0)[2]
        sample, entry = decode_row(row), dataset.entries[row["id"]]
        assert np.array_equal(sample.image, dataset.source.image(entry))
        assert np.array_equal(sample.mask, dataset.source.target(entry).mask)
        assert sample.ignore is None

    def test_ignored_pixels_and_points_of_the_source_reach_the_row(self):
        mask, ignore = disc(1), np.zeros((40, 56), bool)
        ignore[:4] = True
        y, x = np.argwhere(mask)[-1]
        target = SegmentationTarget(mask, ignore & ~mask, ((float(x), float(y)),))
        samples = [(Entry("a", split="test"), photo(1), target), drawn("b", 2, "train")]
        sample = decode_row(in_memory(samples, prompt=PromptRule("file")).load("test", 1, 0)[0])
        assert np.array_equal(sample.ignore, ignore & ~mask)
        assert sample.prompt.points == ((float(x), float(y)),)

    def test_two_samples_of_one_id_are_refused(self):
        with pytest.raises(UserError, match=r"^mine: two samples have the same id; remove one of the copies$"):
            _ = in_memory([drawn("a", 1, None), drawn("a", 2, None)]).entries

    def test_no_samples_are_refused(self):
        with pytest.raises(UserError, match=r"^mine: holds no samples; see `redfree fetch folder`"):
            in_memory([]).load("test", None, 0)


class TestVerify:
    def test_counts_that_are_not_the_published_ones(self, dataset):
        assert dataset.verify() == [
            "isic2016: train: 6 images, 900 are published; unpack the archive anew",
            "isic2016: test: 4 images, 379 are published; unpack the archive anew",
        ]

    def test_a_figure_that_is_not_confirmed_says_so(self):
        about = about_of("perseg")
        lines = IndexedDataset("perseg", about, Drawn([drawn("a", 1, "train"), drawn("b", 2, "test")])).verify()
        assert lines[0] == (
            "perseg: train: 0 images, 40 are published (a figure that is not confirmed); unpack the archive anew"
        )

    def test_each_kind_of_defect_is_one_line_that_names_its_file(self, root, dataset):
        data, truth = root / f"{TRAIN}_Data", root / f"{TRAIN}_GroundTruth"
        names = [f"{truth / f'ISIC_{number:07d}'}_Segmentation.png" for number in range(6)]
        (data / "ISIC_0000000.jpg").write_bytes((data / "ISIC_0000000.jpg").read_bytes()[:-90])
        (truth / "ISIC_0000001_Segmentation.png").unlink()
        Image.fromarray(as_grey(disc(2)[:, 1:])).save(names[2])
        Image.fromarray(np.zeros((40, 56), np.uint8)).save(names[3])
        Image.fromarray(disc(4).astype(np.uint8) * 100).save(names[4])
        lines = found(dataset)
        assert all("\n" not in line and "; " in line for line in lines)
        expected = [
            f"{data / 'ISIC_0000000.jpg'}: not a readable image",
            f"{names[1]}: no such file",
            f"{names[2]}: is 55x40 but its image is 56x40; restore the owner's file",
            f"{names[3]}: the mask is empty",
            f"{names[4]}: no grey value reaches the mask threshold 128",
        ]
        assert len(lines) == len(expected)
        assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))

    def test_a_prompt_that_cannot_be_placed_is_a_defect(self, root):
        dataset = open_dataset(DatasetUse("isic2016", root=str(root)), PromptRule("file"))
        lines = found(dataset)
        assert len(lines) == 10
        assert all("has no point for the rule file" in line for line in lines)

    def test_an_image_of_several_samples_is_read_once(self, tmp_path, monkeypatch):
        dataset = open_dataset(DatasetUse("coco2017", root=str(coco2017.build(tmp_path))))
        read, real = [], type(dataset.source).image
        monkeypatch.setattr(
            type(dataset.source), "image", lambda self, entry: read.append(entry.files[0]) or real(self, entry)
        )
        assert found(dataset) == []
        assert len(read) == len(set(read)) < len(dataset.entries)


class TestNearDuplicates:
    def copy(self, root, source, target):
        with Image.open(source) as image:
            image.resize((112, 80), Image.Resampling.BICUBIC).save(target, quality=80)
        stem = target.stem
        mask = Image.fromarray(as_grey(disc(3))).resize((112, 80), Image.Resampling.NEAREST)
        mask.save(root / f"{target.parent.name.removesuffix('_Data')}_GroundTruth" / f"{stem}_Segmentation.png")

    def test_across_splits_they_are_named(self, root, dataset):
        self.copy(root, root / f"{TRAIN}_Data" / "ISIC_0000001.jpg", root / f"{TEST}_Data" / "ISIC_0001004.jpg")
        assert found(dataset) == [
            "isic2016: ISIC_0000001 and ISIC_0001004 show the same, one of them in the test split; "
            "name the group, or report it"
        ]

    @pytest.mark.parametrize(("part", "number"), [(TRAIN, 1), (TEST, 1003)])
    def test_within_a_split_they_may_be(self, root, dataset, part, number):
        self.copy(root, root / f"{part}_Data" / f"ISIC_{number:07d}.jpg", root / f"{part}_Data" / "ISIC_0009999.jpg")
        assert found(dataset) == []

    @pytest.mark.parametrize(("side", "pairs"), [(15, 0), (16, 1)])
    def test_below_16_pixels_images_are_not_compared(self, side, pairs):
        samples = [drawn("a", 1, "train", (side, 40)), drawn("b", 1, "test", (side, 40))]
        assert len(in_memory(samples).verify()) == pairs

    def test_an_image_of_neither_pool_is_no_leak(self, monkeypatch):
        """The authors' sizes leave images out."""
        dataset = in_memory([drawn("a", 1, None), drawn("b", 1, None), drawn("c", 2, None)])
        pools = Pools(("c",), ("a",))
        monkeypatch.setattr("redfree.data.indexed.divide", lambda *_: division.Division("mine", pools, 1, "by hand"))
        assert dataset.verify() == []


class TestCommittedList:
    @pytest.fixture
    def broken(self, tmp_path, monkeypatch):
        """BUSI with a list of which an image is missing, and with an empty mask."""
        root = busi.build(tmp_path / "busi")
        monkeypatch.setattr(division, "SPLIT_LISTS", tmp_path)
        stems = busi.stems()
        write_split_list(tmp_path / "busi.json", "busi", "by hand", 0, Pools(tuple(stems[:5]), tuple(stems[5:])))
        folder = root / busi.TOP / "benign"
        (folder / "benign (1).png").unlink()
        save(folder / "benign (2)_mask.png", np.zeros((40, 56), np.uint8))
        return open_dataset(DatasetUse("busi", root=str(root)))

    def test_an_incomplete_one_does_not_hide_the_other_defects(self, broken):
        lines = found(broken)
        assert len(lines) == 2
        assert "benign (2)_mask.png: the mask is empty" in lines[0]
        assert lines[1].startswith("busi: 1 listed images are missing (benign (1));")

    def test_nothing_is_drawn_from_it(self, broken):
        with pytest.raises(UserError, match="1 listed images are missing"):
            broken.load("test", None, 0)


class TestPickling:
    def test_a_dataset_that_was_read_is_small_and_works(self, dataset):
        before = dataset.load("test", None, 0)
        size = len(pickle.dumps(isic("nowhere")))
        entries = dataset.entries
        sent = pickle.dumps(dataset)
        assert len(entries) == 10
        assert len(sent) < size + 200, "the list of files is not sent"
        again = pickle.loads(sent)
        assert "entries" not in vars(again)
        assert [row["id"] for row in again.load("test", None, 0)] == [row["id"] for row in before]

    def test_rows_are_read_in_another_process(self, dataset):
        rows = dataset.load("train", None, 0)
        read = rows.map(lambda row: {"object": int(np.asarray(row["mask"]).sum())}, num_proc=2)
        masks = {id_: dataset.source.target(dataset.entries[id_]).mask for id_ in dataset.ids("train", None, 0)}
        assert list(read.with_format(None)["object"]) == [255 * int(mask.sum()) for mask in masks.values()]


class TestDescription:
    def test_names_what_decides_the_samples(self, root):
        about = open_dataset(
            DatasetUse("isic2016", {"search_pool": 2}, str(root)), PromptRule("random", seed=3)
        ).describe()
        json.dumps(about)
        facts = about_of("isic2016")
        assert (about["name"], about["revision"], about["source"]) == ("isic2016", REVISION, facts.page)
        assert about["prompt_rule"] == "random seed=3"
        assert about["options"] == {"protocol": "official", "search_pool": 2}
        assert about["division"] == "the owner's"
        assert about["overlap"] == {}
        assert (about["licence"], about["splits"]) == ("CC0-1.0", {"train": 900, "test": 379})

    def test_counts_the_overlap_of_the_authors_sizes(self, monkeypatch):
        monkeypatch.setattr("redfree.data.splits.AUTHORS", {"folder": AuthorsSizes(3, 2, 4, "all")})
        dataset = in_memory([drawn(f"s{n}", n, None) for n in range(6)], DivisionOptions(protocol="authors"))
        about = dataset.describe()
        assert about["overlap"]["train"] + about["overlap"]["test"] == 3
        assert about["options"]["protocol"] == "authors"
        assert re.search("sizes of the paper's authors; search drawn from all", about["division"])

    def test_depth_and_classes_have_no_prompt(self, tmp_path):
        assert open_dataset(DatasetUse("digits", root=str(tmp_path))).describe()["prompt_rule"] is None


def test_columns_of_each_task():
    depth = np.full((2, 3), 1.5, np.float32)
    columns = target_columns(DepthTarget(depth, depth > 2))
    assert np.array_equal(np.asarray(columns["depth"]), depth)
    assert not np.asarray(columns["valid"]).any()
    assert target_columns(7) == {"label": 7}
    assert target_columns(SegmentationTarget(depth > 1))["ignore"] is None


def test_a_target_of_another_size_names_the_sample_where_there_is_no_file():
    depth = DepthTarget(np.ones((3, 4), np.float32), np.ones((3, 4), bool))
    with pytest.raises(UserError, match=r"^0007: is 4x3 but its image is 5x3; restore the owner's file$"):
        require_size(Entry("0007"), np.zeros((3, 5, 3), np.uint8), depth)
    require_size(Entry("0007"), np.zeros((3, 5, 3), np.uint8), 4)
