import numpy as np
import pytest
from PIL import Image
from trees import camo as tree
from trees import cod_repack
from trees.paint import as_grey, photo, save

from redfree.data.adapters.camo import Camo
from redfree.data.indexed import IndexedDataset, require_size
from redfree.data.schema import read_samples
from redfree.errors import UserError

IDS = {split.lower(): [tree.stem(number) for number in numbers] for split, numbers in tree.PARTS.items()}
OWNER = "CAMO-V.1.0-CVIU2019"


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids_by_split(source):
    found = {"train": [], "test": []}
    for entry in source.entries():
        found[entry.split].append(entry.id)
    return found


@pytest.fixture
def root(tmp_path):
    return tree.build(tmp_path)


@pytest.mark.parametrize("within", [OWNER, "", "CAMO-COCO-V.1.0-CVIU2019/Camouflage", "Camouflage"])
def test_ids_splits_and_counts_wherever_the_folder_lies(tmp_path, within):
    source = Camo(tree.build(tmp_path, within))
    assert ids_by_split(source) == IDS
    assert source.counts() == {"train": 5, "test": 3}
    assert set(source.counts()) == set(source.about.splits)


def test_images_and_masks_are_those_drawn(root):
    source = Camo(root)
    for entry in source.entries():
        assert entry.files[1] == root / OWNER / "GT" / f"{entry.id}.png"
        assert np.abs(source.image(entry).astype(int) - photo(cod_repack.seed_of(entry.id))).mean() < 6
        target = source.target(entry)
        assert target.mask.dtype == np.bool_
        assert np.array_equal(target.mask, cod_repack.truth(entry.id))
        assert target.ignore is None
        assert target.points is None


def test_trap_antialiased_edges_enlarge_the_object(root):
    """`!= 0`, as the paper's authors read the masks, takes the edge for the object."""
    source = Camo(root)
    entry = source.entries()[0]
    naive = np.asarray(Image.open(entry.files[1])) != 0
    mask = source.target(entry).mask
    assert naive.sum() > 1.1 * mask.sum()
    lower = Camo(root, Camo.Options(mask_threshold=90))
    assert np.array_equal(lower.target(entry).mask, naive)


def test_trap_masks_of_both_splits_lie_in_one_folder(root):
    """Pairing the sorted files of the two folders, as PerSAM's code does, gives images the masks of others."""
    images = sorted((root / OWNER / "Images/Test").glob("[!.]*.jpg"))
    masks = sorted((root / OWNER / "GT").glob("[!.]*.png"))
    naive = [mask.stem for _, mask in zip(images, masks, strict=False)]
    assert naive != [image.stem for image in images]
    assert all(entry.files[0].stem == entry.files[1].stem for entry in Camo(root).entries())


def test_listing_decodes_nothing(root, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    assert len(Camo(root).entries()) == 8


def test_the_repack_has_training_images_of_two_datasets(tmp_path):
    source = Camo(cod_repack.build(tmp_path))
    assert ids_by_split(source) == {"train": cod_repack.CAMO_TRAIN, "test": cod_repack.CAMO_TEST}
    for entry in source.entries():
        assert np.array_equal(source.target(entry).mask, cod_repack.truth(entry.id))


def test_trap_the_training_set_of_the_repack_is_not_camo_alone(tmp_path):
    everything = list((cod_repack.build(tmp_path) / "TrainDataset/Imgs").glob("[!.]*.jpg"))
    assert len(everything) == 5
    assert Camo(tmp_path).counts()["train"] == 3


@pytest.mark.parametrize(
    ("folder", "images", "masks"),
    [
        ("TestDataset/CAMO", "Imgs", "GT"),
        ("TestDataset/CAMO", "Images", "Masks"),
        ("CAMO", "Imgs", "GT"),
        ("CAMO_TestingDataset", "Image", "GT"),
        ("", "Imgs", "Masks"),
    ],
)
def test_a_test_set_alone(tmp_path, folder, images, masks):
    for stem in IDS["test"]:
        cod_repack.save_pair(tmp_path / folder / images, tmp_path / folder / masks, stem)
    assert ids_by_split(Camo(tmp_path)) == {"train": [], "test": IDS["test"]}


def test_the_training_set_is_not_taken_for_a_test_set(tmp_path):
    root = cod_repack.build(tmp_path) / "TrainDataset"
    first = root / "Imgs/COD10K-CAM-1-Aquatic-3-Crab-72.jpg"
    assert message_of(Camo(root).entries) == (
        f"{first}: is not an image of CAMO, whose names hold 'camourflage_'; move it elsewhere"
    )


def test_rows_are_samples_with_a_prompt_on_the_object(root):
    source = Camo(root)
    for sample in read_samples(IndexedDataset("camo", source.about, source).load("test", 3, 0)):
        (x, y), *_ = sample.prompt.points
        assert sample.mask[int(y), int(x)]


@pytest.mark.parametrize("missing", ["GT", "Images/Train", "Images/Test"])
def test_a_missing_folder_is_named(root, missing):
    path = root / OWNER / missing
    path.rename(root / "elsewhere")
    assert message_of(Camo(root).entries).startswith(f"{path}: is missing, so this is not CAMO")


def test_an_empty_root_says_what_is_expected(tmp_path):
    assert message_of(Camo(tmp_path).entries) == (
        f"{tmp_path}: has neither Images/Train and Images/Test nor TestDataset/CAMO/Imgs; "
        "see `redfree fetch camo` for the expected folders"
    )


def test_a_test_set_without_masks_is_refused(tmp_path):
    (cod_repack.build(tmp_path) / "TestDataset/CAMO/GT").rename(tmp_path / "elsewhere")
    assert message_of(Camo(tmp_path).entries) == (
        f"{tmp_path / 'TestDataset/CAMO'}: has Imgs but neither GT nor Masks; unpack the archive anew"
    )


def test_defective_masks_are_named(root):
    source = Camo(root)
    absent, empty, small = source.entries()[:3]
    absent.files[1].unlink()
    save(empty.files[1], np.zeros((40, 56), np.uint8))
    save(small.files[1], as_grey(np.ones((39, 56), bool)))
    assert message_of(source.target, absent).startswith(f"{absent.files[1]}: no such file; ")
    assert message_of(source.target, empty).startswith(f"{empty.files[1]}: the mask is empty; ")
    assert message_of(require_size, small, source.image(small), source.target(small)).startswith(
        f"{small.files[1]}: is 56x39 but its image is 56x40; "
    )


def test_two_images_of_one_name_are_refused(root):
    copy = save(root / OWNER / "Images/Test" / f"{tree.stem(12)}.png", photo(0))
    assert message_of(Camo(root).entries).startswith(f"{copy}: {tree.stem(12)}.jpg has the same name; ")
