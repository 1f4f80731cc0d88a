import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from trees import nyuv2 as tree

from redfree.data.about import about_of
from redfree.data.adapters.nyuv2 import Nyuv2
from redfree.data.indexed import IndexedDataset
from redfree.data.schema import decode_depth_row
from redfree.errors import UserError
from redfree.validation import validate


@pytest.fixture(scope="module")
def mat(tmp_path_factory):
    return tree.build(tmp_path_factory.mktemp("nyuv2") / "mat")


@pytest.fixture(scope="module")
def bts(tmp_path_factory):
    return tree.build_bts(tmp_path_factory.mktemp("nyuv2") / "bts")


def opened(root, **options):
    source = Nyuv2(root, Nyuv2.Options(**options))
    return source, {entry.id: entry for entry in source.entries()}


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_crop():
    inside = np.zeros((480, 640), bool)
    inside[45:471, 41:601] = True
    return inside


class TestMatlabFile:
    def test_ids_and_splits(self, mat):
        _, entries = opened(mat)
        assert {id_: entry.split for id_, entry in entries.items()} == {
            "00001": "test",
            "00002": "test",
            "00003": "train",
            "00004": "train",
            "00005": "train",
        }
        assert all(entry.files == () for entry in entries.values())

    def test_counts(self, mat):
        assert Nyuv2(mat).counts() == {"train": 3, "test": 2}

    @pytest.mark.parametrize("number", [1, 4])
    def test_image(self, mat, number):
        source, entries = opened(mat)
        image = source.image(entries[f"{number:05d}"])
        assert image.dtype == np.uint8
        assert np.array_equal(image, tree.image(number))

    def test_a_reader_that_forgets_the_transpose_turns_the_image(self, mat):
        source, entries = opened(mat)
        with h5py.File(mat / "nyu_depth_v2_labeled.mat") as file:
            naive, naive_depth = file["images"][0].transpose(1, 2, 0), file["rawDepths"][0]
        assert naive.shape == (640, 480, 3)
        assert naive_depth.shape == (640, 480)
        assert source.image(entries["00001"]).shape == (480, 640, 3)
        depth = source.target(entries["00001"]).depth
        # Farther to the right than downwards, as drawn.
        assert depth[0, 200] - depth[0, 0] > depth[200, 0] - depth[0, 0]

    def test_a_reader_that_counts_from_0_takes_the_neighbour(self, mat):
        numbers = np.ravel(loadmat(mat / "splits.mat")["testNdxs"]).astype(int)
        with h5py.File(mat / "nyu_depth_v2_labeled.mat") as file:
            naive = file["images"][numbers[0]].T
        source, entries = opened(mat)
        first = next(source.image(entry) for entry in entries.values() if entry.split == "test")
        assert np.array_equal(naive, tree.image(2))
        assert np.array_equal(first, tree.image(1))

    def test_raw_depth_has_holes_that_do_not_count(self, mat):
        source, entries = opened(mat)
        target = source.target(entries["00003"])
        assert target.depth.dtype == np.float32
        assert np.array_equal(target.depth, tree.raw(3))
        assert (target.depth[tree.HOLE] == 0).all()
        assert not target.valid[tree.HOLE].any()

    def test_filled_depth_is_another_array(self, mat):
        source, entries = opened(mat, truth="filled")
        target = source.target(entries["00003"])
        assert np.array_equal(target.depth, tree.filled(3))
        assert target.valid[tree.HOLE].all()

    def test_valid_is_the_crop_without_holes_and_10_metres(self, mat):
        source, entries = opened(mat)
        expected = in_crop()
        expected[tree.HOLE], expected[tree.FAR] = False, False
        assert np.array_equal(source.target(entries["00002"]).valid, expected)

    def test_without_the_crop_the_border_counts(self, mat):
        source, entries = opened(mat, crop=False)
        valid = source.target(entries["00002"]).valid
        assert valid[0, 0]
        assert not valid[tree.FAR].any()
        assert valid.sum() == 480 * 640 - 20 * 30 - 10 * 20

    def test_entries_read_no_image(self, mat, monkeypatch):
        monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("read"))
        assert len(opened(mat)[1]) == 5

    def test_a_source_that_was_read_from_survives_pickling_and_other_processes(self, mat):
        source, entries = opened(mat)
        expected = source.image(entries["00004"])
        copy = pickle.loads(pickle.dumps(source))
        assert np.array_equal(copy.image(entries["00004"]), expected)
        assert len(pickle.dumps(source)) < 10_000
        with ProcessPoolExecutor(2, mp_context=get_context("fork" if sys.platform == "linux" else "spawn")) as pool:
            images = list(pool.map(source.image, [entries["00004"]] * 4))
        assert all(np.array_equal(image, expected) for image in images)

    def test_rows(self, mat):
        dataset = IndexedDataset("nyuv2", about_of("nyuv2"), Nyuv2(mat))
        sample = next(map(decode_depth_row, dataset.load("test", 2, 0)))
        number = int(sample.id)
        assert np.array_equal(sample.image, tree.image(number))
        assert np.array_equal(sample.depth, tree.raw(number))
        assert sample.valid.sum() == in_crop().sum() - 20 * 30 - 10 * 20


class TestDefectiveMatlabFile:
    @pytest.mark.parametrize("name", ["nyu_depth_v2_labeled.mat", "splits.mat"])
    def test_a_file_is_missing(self, mat, tmp_path, name):
        other = {"nyu_depth_v2_labeled.mat", "splits.mat"} - {name}
        for kept in other:
            (tmp_path / kept).symlink_to(mat / kept)
        assert message(Nyuv2(tmp_path).entries).startswith(f"{tmp_path / name}: is missing, so this is not NYU Depth")

    def test_splits_name_an_image_that_is_not_there(self, mat, tmp_path):
        (tmp_path / "nyu_depth_v2_labeled.mat").symlink_to(mat / "nyu_depth_v2_labeled.mat")
        savemat(tmp_path / "splits.mat", {"trainNdxs": [[1.0], [6.0]], "testNdxs": [[2.0]]})
        found = message(Nyuv2(tmp_path).entries)
        assert f"{tmp_path / 'splits.mat'}: names image 6, but" in found
        assert found.endswith("has 1 to 5; restore the owner's files")

    def test_splits_lack_a_variable(self, mat, tmp_path):
        (tmp_path / "nyu_depth_v2_labeled.mat").symlink_to(mat / "nyu_depth_v2_labeled.mat")
        savemat(tmp_path / "splits.mat", {"trainNdxs": [[1.0]]})
        found = message(Nyuv2(tmp_path).entries)
        assert found == f"{tmp_path / 'splits.mat'}: has no variable testNdxs; restore the owner's file"

    def test_splits_are_no_matlab_file(self, mat, tmp_path):
        (tmp_path / "nyu_depth_v2_labeled.mat").symlink_to(mat / "nyu_depth_v2_labeled.mat")
        (tmp_path / "splits.mat").write_text("<html>404</html>" * 20)
        assert "splits.mat: not a readable MATLAB file (" in message(Nyuv2(tmp_path).entries)

    def test_broken(self, mat, tmp_path):
        (tmp_path / "splits.mat").symlink_to(mat / "splits.mat")
        content = (mat / "nyu_depth_v2_labeled.mat").read_bytes()
        (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(content[: len(content) // 2])
        found = message(Nyuv2(tmp_path).entries)
        assert "nyu_depth_v2_labeled.mat: images is not readable (" in found
        assert found.endswith("download the file anew")

    def test_an_array_is_missing(self, mat, tmp_path):
        (tmp_path / "splits.mat").symlink_to(mat / "splits.mat")
        with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
            file["images"] = np.zeros((5, 3, 640, 480), np.uint8)
            file["depths"] = np.ones((5, 320, 240), np.float32)
        source, entries = opened(tmp_path)
        assert "rawDepths is not readable" in message(source.target, entries["00001"])
        source, entries = opened(tmp_path, truth="filled")
        found = message(source.target, entries["00001"])
        assert found == "nyuv2: 00001: is 320x240, not 640x480; restore the owner's file"

    def test_axes_in_another_order(self, mat, tmp_path):
        (tmp_path / "splits.mat").symlink_to(mat / "splits.mat")
        with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
            file.create_dataset("images", (5, 480, 640, 3), np.uint8)
        assert "images is (5, 480, 640, 3), not (N, 3, 640, 480)" in message(Nyuv2(tmp_path).entries)


class TestExtraction:
    def test_ids_and_splits(self, bts):
        source, entries = opened(bts, source="bts")
        assert {id_: entry.split for id_, entry in entries.items()} == {
            "bathroom-00002": "train",
            "office-00003": "train",
            "office-00004": "train",
            "kitchen-00000": "test",
            "kitchen-00001": "test",
        }
        assert source.counts() == {"train": 3, "test": 2}

    def test_numbers_are_one_less_than_matlabs(self, bts):
        source, entries = opened(bts, source="bts")
        image = source.image(entries["kitchen-00001"])[7:474, 7:632].astype(int)
        assert np.abs(image - tree.image(2)[7:474, 7:632]).mean() < 3
        assert np.abs(image - tree.image(1)[7:474, 7:632]).mean() > 30

    def test_a_reader_in_metres_or_of_8_bits_is_off_by_a_factor(self, bts):
        source, entries = opened(bts, source="bts")
        entry = entries["office-00003"]
        target = source.target(entry)
        naive = np.asarray(Image.open(entry.files[1]))
        assert naive[50, 50] == 1000 * tree.raw(4)[50, 50] // 1
        assert np.abs(target.depth - tree.raw(4)).max() <= 0.001
        assert np.abs(naive / 65535 - tree.raw(4)).max() > 1

    def test_valid(self, bts):
        source, entries = opened(bts, source="bts")
        expected = in_crop()
        expected[tree.HOLE], expected[tree.FAR] = False, False
        assert np.array_equal(source.target(entries["office-00003"]).valid, expected)

    def test_list(self, tmp_path):
        tree.build_bts(tmp_path, lists=True)
        source, entries = opened(tmp_path, source="bts")
        assert [entry.id for entry in entries.values() if entry.split == "test"] == ["kitchen-00001"]
        assert source.counts() == {"train": 3, "test": 1}
        assert source.target(entries["kitchen-00001"]).depth.shape == (480, 640)

    def test_folders_of_bts(self, tmp_path):
        tree.build_bts(tmp_path / "official_splits")
        (tmp_path / "official_splits" / "train").rename(tmp_path / "sync")
        assert Nyuv2(tmp_path, Nyuv2.Options(source="bts")).counts() == {"train": 3, "test": 2}

    def test_entries_decode_nothing(self, bts, monkeypatch):
        monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
        assert len(opened(bts, source="bts")[1]) == 5

    def test_nothing_is_there(self, tmp_path):
        found = message(Nyuv2(tmp_path, Nyuv2.Options(source="bts")).entries)
        assert found.startswith(f"{tmp_path / 'test'}: is missing")

    def test_a_line_without_depth(self, tmp_path):
        tree.build_bts(tmp_path)
        (tmp_path / "nyudepthv2_test_files_with_gt.txt").write_text("\n/kitchen/rgb_00000.jpg\n")
        found = message(Nyuv2(tmp_path, Nyuv2.Options(source="bts")).entries)
        assert found.endswith("gt.txt: line 2 is not `image depth focal`; restore the list as published")

    def test_defective_depth(self, tmp_path):
        tree.build_bts(tmp_path)
        source, entries = opened(tmp_path, source="bts")
        path = entries["kitchen-00000"].files[1]
        Image.fromarray(np.full((480, 640), 7, np.uint8)).save(path)
        found = message(source.target, entries["kitchen-00000"])
        assert found == f"{path}: holds 8-bit values, depth has 16; restore the owner's file"
        Image.fromarray(np.full((30, 40), 7, np.uint16)).save(path)
        assert f"{path}: is 40x30, not 640x480" in message(source.target, entries["kitchen-00000"])
        path.unlink()
        assert f"{path}: no such file" in message(source.target, entries["kitchen-00000"])


def test_the_extraction_has_no_filled_depth():
    found = message(validate, Nyuv2.Options, {"source": "bts", "truth": "filled"}, "dataset nyuv2: options")
    assert found.startswith("dataset nyuv2: options: source bts has no filled depth; set truth to raw")
