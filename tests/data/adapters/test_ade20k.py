import numpy as np
import pytest
from PIL import Image
from trees import ade20k as tree
from trees.paint import save

from redfree.data.adapters.ade20k import Ade20k
from redfree.data.indexed import IndexedDataset, require_size
from redfree.data.label_maps import LabelMapOptions
from redfree.data.mmseg_lists import class_names, import_mmseg
from redfree.data.schema import read_samples
from redfree.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path / "data")


def source(root, **options):
    return Ade20k(root, LabelMapOptions(**options))


def labels_at(root, number, part="training"):
    return root / "ADEChallengeData2016/annotations" / part / f"{tree.stem(part, number)}.png"


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_splits_and_counts_are_those_of_the_folders(root):
    found = [(entry.id, entry.split, entry.group, entry.key) for entry in source(root).entries()]
    splits = {"training": "train", "validation": "test"}
    assert found == [
        (tree.stem(part, n), splits[part], None, None) for part, (_, numbers) in tree.PARTS.items() for n in numbers
    ]
    assert source(root).counts() == {"train": 6, "val": 3}


def test_images_and_masks_are_those_drawn(root):
    ade = source(root)
    for entry, number in zip(ade.entries(), range(1, 7), strict=False):
        labels, target = tree.truth("training", number), ade.target(entry)
        assert np.array_equal(target.mask, labels == tree.WALL)
        assert np.array_equal(target.ignore, labels == tree.OTHER)
        assert np.abs(ade.image(entry).astype(int) - tree.photo(number)).mean() < 6


def test_foreground_is_all_that_is_not_ignored(root):
    ade = source(root, target="foreground")
    target = ade.target(ade.entries()[0])
    assert np.array_equal(target.mask, ~target.ignore)


def test_each_class_is_a_sample_of_its_name(root):
    ade = source(root, target="each")
    entries = ade.entries()
    assert [entry.id for entry in entries[:3]] == [f"ADE_train_00000001-{name}" for name in ("wall", "floor", "flag")]
    assert len(entries) == 27
    assert {entry.group for entry in entries[:3]} == {"ADE_train_00000001"}
    for entry, label in zip(entries[:3], (tree.WALL, tree.FLOOR, tree.FLAG), strict=True):
        assert np.array_equal(ade.target(entry).mask, tree.truth("training", 1) == label)


def test_trap_zero_is_unknown_and_not_the_background(root):
    """`mask == class`, everything else background: pixels of which nothing is known count as wrong."""
    ade = source(root)
    target = ade.target(ade.entries()[0])
    naive_background = tree.truth("training", 1) != tree.WALL
    ours = ~target.mask & ~target.ignore
    assert (naive_background & ~ours).sum() == (tree.truth("training", 1) == tree.OTHER).sum() > 0


def test_trap_stored_labels_start_at_one(root):
    """The stored label as index of the class names: everything is named as its neighbour, and 150 is out of range."""
    names = class_names("ADE20KDataset")
    naive = [names[label] for label in (tree.WALL, tree.FLOOR)]
    assert naive == ["building", "tree"]
    assert len(names) == tree.FLAG
    ours = [entry.id.partition("-")[2] for entry in source(root, target="each").entries()[:3]]
    assert ours == ["wall", "floor", "flag"]


def test_labels_are_those_that_mmseg_reads(root):
    """reduce_zero_label: 0 becomes 255, which is ignored, and 1..150 become 0..149."""
    load = import_mmseg("mmseg.datasets").LoadAnnotations()
    ade = source(root, target="each")
    names = class_names("ADE20KDataset")
    for entry in ade.entries():
        row = {"seg_map_path": str(entry.files[1]), "seg_fields": [], "label_map": None, "reduce_zero_label": True}
        labels = load(row)["gt_seg_map"]
        target = ade.target(entry)
        assert np.array_equal(target.mask, labels == names.index(entry.id.partition("-")[2]))
        assert np.array_equal(target.ignore, labels == 255)


def test_the_folder_may_be_the_root_itself(tmp_path):
    assert len(source(tree.build(tmp_path, "")).entries()) == 9


def test_listing_decodes_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    for target in ("largest", "foreground"):
        assert len(source(root, target=target).entries()) == 9


def test_rows_are_samples_with_a_prompt_on_the_object(root):
    ade = source(root)
    data = IndexedDataset("ade20k", ade.about, ade)
    for sample in read_samples(data.load("test", 3, 0)):
        (x, y), *_ = sample.prompt.points
        assert sample.mask[int(y), int(x)]
        assert not (sample.mask & sample.ignore).any()


@pytest.mark.parametrize("missing", ["images/training", "annotations/validation"])
def test_a_missing_folder_is_named(root, missing):
    path = root / "ADEChallengeData2016" / missing
    path.rename(root / "elsewhere")
    assert message_of(source(root).entries).startswith(f"{path}: is missing, so this is not ADE20K")


def test_an_empty_root_says_what_is_expected(tmp_path):
    message = message_of(source(tmp_path).entries)
    assert message.startswith(f"{tmp_path / 'ADEChallengeData2016/images/training'}: is missing")


def test_a_missing_label_map_is_named(root):
    labels_at(root, 1).unlink()
    ade = source(root)
    assert message_of(ade.target, ade.entries()[0]).startswith(f"{labels_at(root, 1)}: no such file; ")


@pytest.mark.parametrize("label", [151, 255])
def test_a_label_beyond_150_is_refused(root, label):
    labels = tree.truth("training", 1)
    labels[0, 0] = label
    save(labels_at(root, 1), labels)
    ade = source(root)
    assert message_of(ade.target, ade.entries()[0]) == (
        f"{labels_at(root, 1)}: holds the label {label}, which {ade.about.title} has not; restore the owner's file"
    )


def test_labels_of_the_full_ade20k_are_refused(root):
    """Its `_seg.png` are colours, which code the class and the instance."""
    save(labels_at(root, 1), np.zeros((40, 56, 3), np.uint8))
    ade = source(root)
    assert message_of(ade.target, ade.entries()[0]).startswith(f"{labels_at(root, 1)}: is stored as RGB")


def test_a_label_map_of_another_size_is_refused(root):
    save(labels_at(root, 1), tree.truth("training", 1)[:-1])
    ade = source(root)
    entry = ade.entries()[0]
    assert message_of(require_size, entry, ade.image(entry), ade.target(entry)).startswith(
        f"{labels_at(root, 1)}: is 56x39 but its image is 56x40; "
    )
