import numpy as np
import pytest
from PIL import Image
from trees import kitti as tree

from redfree.data.about import about_of
from redfree.data.adapters.kitti import Kitti
from redfree.data.indexed import IndexedDataset
from redfree.errors import UserError

LARGE = ("2011_09_26_drive_0002_sync", 69)
TINY = ("2011_09_26_drive_0009_sync", 16)
LARGE_ID, TINY_ID = "2011_09_26_drive_0002-0000000069", "2011_09_26_drive_0009-0000000016"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tree.build(tmp_path_factory.mktemp("kitti"))


def opened(root, **options):
    source = Kitti(root, Kitti.Options(**options))
    return source, {entry.id: entry for entry in source.entries()}


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def metres(frame):
    return tree.stored(*frame) / 256


def in_rectangle(shape, top, bottom, left, right):
    inside = np.zeros(shape, bool)
    inside[top:bottom, left:right] = True
    return inside


def test_ids_and_splits(root):
    _, entries = opened(root)
    assert {id_: entry.split for id_, entry in entries.items()} == {
        "2011_09_30_drive_0020-0000000934": "train",
        "2011_09_30_drive_0018-0000000007": "train",
        LARGE_ID: "test",
        TINY_ID: "test",
        "2011_09_26_drive_0009-0000000032": "test",
    }


def test_a_reader_that_takes_all_frames_has_one_without_truth_and_one_that_no_list_names(root):
    source, entries = opened(root)
    naive = {f"{path.parents[2].name[:-5]}-{path.stem}" for path in root.glob("input/*/*/image_02/data/*.png")}
    assert naive - set(entries) == {"2011_09_26_drive_0009-0000000000", "2011_09_26_drive_0009-0000000005"}
    assert source.counts() == {"train": 2, "test": 3}


@pytest.mark.parametrize("frame", [LARGE, TINY])
def test_image_and_depth(root, frame):
    source, entries = opened(root, crop="none")
    entry = entries[f"{frame[0][:-5]}-{frame[1]:010d}"]
    assert np.array_equal(source.image(entry), tree.image(*frame))
    target = source.target(entry)
    assert target.depth.dtype == np.float32
    assert np.array_equal(target.depth, metres(frame).astype(np.float32))
    assert np.array_equal(target.valid, (metres(frame) > 0) & (metres(frame) < 80))
    assert 0 < target.valid.sum() < (target.depth > 0).sum()


def test_a_reader_in_millimetres_is_off_by_a_factor(root):
    source, entries = opened(root)
    depth = source.target(entries[LARGE_ID]).depth
    naive = np.asarray(Image.open(entries[LARGE_ID].files[1])) / 1000
    assert depth.max() == pytest.approx(100, abs=0.5)
    assert naive.max() < 30


# By hand, from the published fractions.
@pytest.mark.parametrize(
    ("crop", "rectangle"),
    [("garg", (153, 371, 44, 1197)), ("eigen", (124, 342, 44, 1197)), ("none", (0, 375, 0, 1242))],
)
def test_crops(root, crop, rectangle):
    source, entries = opened(root, crop=crop, max_depth=1000)
    depth = metres(LARGE)
    assert np.array_equal(source.target(entries[LARGE_ID]).valid, in_rectangle(depth.shape, *rectangle) & (depth > 0))


def test_the_default_is_garg_and_80_metres(root):
    (source, entries), (other, _) = opened(root), opened(root, crop="garg", max_depth=80)
    valid = source.target(entries[LARGE_ID]).valid
    assert np.array_equal(valid, other.target(entries[LARGE_ID]).valid)
    assert source.target(entries[LARGE_ID]).depth[valid].max() < 80


def test_the_greatest_depth_itself_does_not_count(root):
    depth = metres(LARGE)
    greatest = float(depth[200, 600])
    assert greatest > 0
    source, entries = opened(root, crop="none", max_depth=greatest)
    assert not source.target(entries[LARGE_ID]).valid[200, 600]
    assert np.array_equal(source.target(entries[LARGE_ID]).valid, (depth > 0) & (depth < greatest))


def test_benchmark_crop(root):
    source, entries = opened(root, kb_crop=True)
    image, target = source.image(entries[LARGE_ID]), source.target(entries[LARGE_ID])
    # 23 rows from the top, 13 columns from either side.
    assert image.shape == (352, 1216, 3)
    assert np.array_equal(image, tree.image(*LARGE)[23:, 13:1229])
    assert np.array_equal(target.depth, metres(LARGE)[23:, 13:1229].astype(np.float32))


def test_a_reader_that_crops_the_cropped_image_scores_other_pixels(root):
    (source, entries), (whole, _) = opened(root, kb_crop=True, max_depth=1000), opened(root, max_depth=1000)
    valid = source.target(entries[LARGE_ID]).valid
    naive = in_rectangle((352, 1216), int(0.40810811 * 352), int(0.99189189 * 352), 43, 1172)
    assert np.array_equal(valid, whole.target(entries[LARGE_ID]).valid[23:, 13:1229])
    assert valid.any(1).nonzero()[0][0] != naive.any(1).nonzero()[0][0]


def test_benchmark_crop_of_a_small_image(root):
    source, entries = opened(root, kb_crop=True)
    for read, path in zip((source.image, source.target), entries[TINY_ID].files, strict=True):
        assert message(read, entries[TINY_ID]) == f"{path}: is 124x37, less than 1216x352; set kb_crop to false"


@pytest.mark.parametrize(
    ("date", "images", "truths"),
    [(False, "input", "gt_depth"), (True, "", "train"), (True, ".", "data_depth_annotated/val"), (False, "raw", "")],
)
def test_other_places(tmp_path, root, date, images, truths):
    tree.build(tmp_path, date, images, truths)
    (source, entries), (_, expected) = opened(tmp_path), opened(root)
    assert list(entries) == list(expected)
    assert np.array_equal(source.image(entries[TINY_ID]), tree.image(*TINY))
    assert np.array_equal(source.target(entries[TINY_ID]).depth, metres(TINY).astype(np.float32))


def test_a_reader_that_takes_any_folder_of_depth_takes_single_scans(tmp_path):
    tree.build(tmp_path, truths="gt_depth/val")
    naive = sorted(tmp_path.glob(f"*/*/{TINY[0]}/proj_depth"))[0]
    source, entries = opened(tmp_path)
    assert [path.name for path in naive.iterdir()] == ["velodyne_raw"]
    assert np.array_equal(source.target(entries[TINY_ID]).depth, metres(TINY).astype(np.float32))


def test_one_list_is_enough(tmp_path):
    tree.build(tmp_path)
    (tmp_path / "eigen_train_files_with_gt.txt").unlink()
    assert Kitti(tmp_path).counts() == {"test": 3}


def test_entries_decode_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(opened(root)[1]) == 5


def test_rows(root):
    rows = IndexedDataset("kitti", about_of("kitti"), Kitti(root)).load("test", 3, 0)
    assert {row["id"] for row in rows} == {LARGE_ID, TINY_ID, "2011_09_26_drive_0009-0000000032"}


def test_no_list(tmp_path):
    found = message(Kitti(tmp_path).entries)
    assert found.startswith(f"{tmp_path / 'eigen_test_files_with_gt.txt'}: is missing, so this is not KITTI")


@pytest.mark.parametrize("line", ["2011_09_26/2011_09_26_drive_0117_sync/image_02/data/1.png", "1.png"])
def test_a_drive_is_missing(tmp_path, line):
    tree.build(tmp_path)
    path = tmp_path / "eigen_test_files_with_gt.txt"
    path.write_text(f"{line} {tree.truth_path(*TINY)} 721.5377\n")
    assert message(Kitti(tmp_path).entries) == (
        f"{path}: names {line}, whose drive is not there; unpack it or remove the list"
    )


def test_a_frame_is_missing_or_has_8_bits(tmp_path):
    tree.build(tmp_path)
    source, entries = opened(tmp_path)
    image, truth = entries[TINY_ID].files
    Image.fromarray(np.full((37, 124), 7, np.uint8)).save(truth)
    assert f"{truth}: holds 8-bit values" in message(source.target, entries[TINY_ID])
    truth.unlink()
    image.unlink()
    assert f"{truth}: no such file" in message(source.target, entries[TINY_ID])
    assert f"{image}: no such file" in message(source.image, entries[TINY_ID])


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_the_greatest_depth_is_a_positive_number(value):
    with pytest.raises(ValueError, match="max_depth"):
        Kitti.Options(max_depth=value)
