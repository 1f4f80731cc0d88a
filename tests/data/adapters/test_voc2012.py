import numpy as np
import pytest
from PIL import Image
from trees import voc2012 as tree

from redfree.data.adapters.voc2012 import Voc2012
from redfree.data.indexed import IndexedDataset, require_size
from redfree.data.mmseg_lists import import_mmseg
from redfree.data.schema import read_samples
from redfree.errors import UserError

NUMBERS = {"train": tree.PARTS["train"], "test": tree.PARTS["val"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path / "data")


def source(root, **options):
    return Voc2012(root, Voc2012.Options(**options))


def classes_at(root, number):
    return root / "VOCdevkit/VOC2012/SegmentationClass" / f"{tree.stem(number)}.png"


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_splits_and_counts_are_those_of_the_lists(root):
    found = [(entry.id, entry.split, entry.group, entry.key) for entry in source(root).entries()]
    assert found == [(tree.stem(n), split, None, None) for split, numbers in NUMBERS.items() for n in numbers]
    assert source(root).counts() == {"train": 5, "val": 4}


def test_images_and_masks_are_those_drawn(root):
    voc = source(root)
    for number, entry in enumerate(voc.entries()):
        classes, _ = tree.truth(number)
        target = voc.target(entry)
        assert np.array_equal(target.mask, classes == tree.PERSON)
        assert np.array_equal(target.ignore, classes == tree.VOID)
        assert voc.image(entry).shape == (40, 56, 3)
        assert np.abs(voc.image(entry).astype(int) - tree.photo(number)).mean() < 6


def test_foreground_is_every_class(root):
    voc = source(root, target="foreground")
    assert np.array_equal(voc.target(voc.entries()[0]).mask, np.isin(tree.truth(0)[0], [tree.CAT, tree.PERSON]))


def test_each_class_is_a_sample_of_its_name(root):
    voc = source(root, target="each")
    entries = voc.entries()
    assert [entry.id for entry in entries[:4]] == [
        f"2007_{n:06d}-{name}" for n in range(2) for name in ("cat", "person")
    ]
    assert len(entries) == 18
    assert entries[0].group == "2007_000000"
    assert np.array_equal(voc.target(entries[0]).mask, tree.truth(0)[0] == tree.CAT)


def test_each_object_is_a_sample_of_its_number(root):
    voc = source(root, target="each", annotation="object")
    entries = voc.entries()
    assert [entry.id for entry in entries[:4]] == [f"2007_000000-{k}" for k in (1, 2, 3)] + ["2007_000001-1"]
    for index in range(3):
        target = voc.target(entries[index])
        assert np.array_equal(target.mask, tree.truth(0)[1] == index + 1)
        assert np.array_equal(target.ignore, tree.truth(0)[1] == tree.VOID)


def test_an_object_is_not_a_class_of_many(root):
    voc, people = source(root, annotation="object"), source(root)
    one, both = (s.target(s.entries()[0]).mask for s in (voc, people))
    sizes = [(tree.truth(0)[1] == k).sum() for k in (1, 2, 3)]
    assert one.sum() == max(sizes)
    assert both.sum() == sizes[0] + sizes[2]


def test_trap_colours_make_the_void_foreground(root):
    """`convert("RGB") != 0`, as the paper's authors read the masks: the border of 5 pixels counts as object."""
    with Image.open(classes_at(root, 0)) as image:
        colours = np.asarray(image.convert("RGB"))
    naive = (colours != 0).any(2)
    classes, _ = tree.truth(0)
    assert colours[classes == tree.VOID].tolist()[0] == [224, 224, 192]
    assert colours[classes == tree.PERSON].tolist()[0] == [192, 128, 128]
    voc = source(root, target="foreground")
    target = voc.target(voc.entries()[0])
    assert (naive & target.ignore).sum() == (classes == tree.VOID).sum() > 0.2 * naive.sum()
    assert not (target.mask & target.ignore).any()
    assert np.array_equal(naive, target.mask | target.ignore)


def test_trap_void_is_no_class_of_most_pixels(root):
    labels = np.full((40, 56), tree.VOID, np.uint8)
    labels[:3, :3] = tree.CAT
    tree.save_indices(classes_at(root, 0), labels)
    assert np.bincount(labels.ravel()).argmax() == tree.VOID
    voc = source(root)
    assert np.array_equal(voc.target(voc.entries()[0]).mask, labels == tree.CAT)


def test_trap_the_folder_of_images_holds_more_than_the_lists(root):
    images = list((root / "VOCdevkit/VOC2012/JPEGImages").glob("[!.]*.jpg"))
    assert len(images) == 10
    assert tree.stem(90) not in [entry.id for entry in source(root).entries()]


def test_labels_are_those_that_mmseg_reads(root):
    load = import_mmseg("mmseg.datasets").LoadAnnotations()
    voc = source(root)
    for entry in voc.entries():
        row = {"seg_map_path": str(entry.files[1]), "seg_fields": [], "label_map": None, "reduce_zero_label": False}
        labels = load(row)["gt_seg_map"]
        target = voc.target(entry)
        assert np.array_equal(target.mask, labels == 15)
        assert np.array_equal(target.ignore, labels == 255)


@pytest.mark.parametrize("within", ["VOCdevkit/VOC2012", "VOC2012", "VOCdevkit", ""])
def test_the_folder_is_found_where_it_may_lie(tmp_path, within):
    assert len(source(tree.build(tmp_path, within)).entries()) == 9


def test_listing_decodes_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    for target in ("largest", "foreground"):
        assert len(source(root, target=target).entries()) == 9


def test_rows_are_samples_with_a_prompt_on_the_object(root):
    voc = source(root)
    data = IndexedDataset("voc2012", voc.about, voc)
    for sample in read_samples(data.load("test", 3, 0)):
        (x, y), *_ = sample.prompt.points
        assert sample.mask[int(y), int(x)]
        assert not (sample.mask & sample.ignore).any()


@pytest.mark.parametrize(
    ("missing", "annotation"),
    [
        ("JPEGImages", "class"),
        ("SegmentationClass", "class"),
        ("SegmentationObject", "object"),
        ("ImageSets/Segmentation/val.txt", "class"),
    ],
)
def test_a_missing_folder_or_list_is_named(root, missing, annotation):
    path = root / "VOCdevkit/VOC2012" / missing
    path.rename(root / "elsewhere")
    message = message_of(source(root, annotation=annotation).entries)
    assert message.startswith(f"{path}: is missing, so this is not PASCAL VOC 2012")


def test_an_empty_root_says_what_is_expected(tmp_path):
    message = message_of(source(tmp_path).entries)
    assert message.startswith(f"{tmp_path / 'VOCdevkit/VOC2012/JPEGImages'}: is missing")


def test_a_missing_mask_is_named(root):
    classes_at(root, 0).unlink()
    voc = source(root)
    assert message_of(voc.target, voc.entries()[0]).startswith(f"{classes_at(root, 0)}: no such file; ")
    assert message_of(source(root, target="each").entries).startswith(f"{classes_at(root, 0)}: no such file; ")


def test_a_class_beyond_twenty_is_refused(root):
    labels, _ = tree.truth(0)
    labels[0, 0] = 21
    tree.save_indices(classes_at(root, 0), labels)
    voc = source(root)
    assert message_of(voc.target, voc.entries()[0]) == (
        f"{classes_at(root, 0)}: holds the label 21, which {voc.about.title} has not; restore the owner's file"
    )


def test_a_mask_saved_as_colours_is_refused(root):
    with Image.open(classes_at(root, 0)) as image:
        colours = image.convert("RGB")
    colours.save(classes_at(root, 0))
    voc = source(root)
    assert message_of(voc.target, voc.entries()[0]).startswith(f"{classes_at(root, 0)}: is stored as RGB")


def test_a_mask_of_another_size_is_refused(root):
    tree.save_indices(classes_at(root, 0), tree.truth(0)[0][:-1])
    voc = source(root)
    entry = voc.entries()[0]
    assert message_of(require_size, entry, voc.image(entry), voc.target(entry)).startswith(
        f"{classes_at(root, 0)}: is 56x39 but its image is 56x40; "
    )
