from collections import Counter

import numpy as np
import pytest
from PIL import Image
from trees import perseg
from trees.paint import disc, save

from redfree.data.adapters.perseg import PerSeg
from redfree.data.reading import MaskRule, binary
from redfree.errors import UserError

IDS = [f"{name}/{number:02d}" for name, count in perseg.OBJECTS.items() for number in range(count)]


@pytest.fixture
def source(tmp_path):
    return PerSeg(perseg.build(tmp_path))


def drawn(id_):
    name, number = id_.split("/")
    return disc(perseg.seed_of(name, int(number)))


def failure(source, action):
    with pytest.raises(UserError) as caught:
        action(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sample_is_an_image_of_an_object(source):
    entries = source.entries()
    assert [entry.id for entry in entries] == IDS
    assert [entry.key for entry in entries] == [id_.split("/")[0] for id_ in IDS]
    assert {entry.group for entry in entries} == {None}


@pytest.mark.parametrize("top", ["data", "."])
def test_values_are_what_was_drawn(tmp_path, top):
    source = PerSeg(perseg.build(tmp_path, top))
    for entry in source.entries():
        assert source.image(entry).shape == (40, 56, 3)
        assert np.array_equal(source.target(entry).mask, drawn(entry.id))
        assert source.target(entry).ignore is None


def test_references_train_and_the_others_test(source):
    assert source.counts() == {"train": 4, "test": 8} == Counter(entry.split for entry in source.entries())
    assert [entry.id for entry in source.entries() if entry.split == "train"] == [f"{o}/00" for o in perseg.OBJECTS]


def test_a_substring_of_the_path_does_not_make_a_reference(tmp_path):
    source = PerSeg(perseg.build(tmp_path / "images2007"))
    naive = ["00" in str(entry.files[1]) for entry in source.entries()]
    assert all(naive)
    assert source.counts()["test"] == 8


def test_pairs_go_by_name_where_a_naive_reader_pairs_sorted_listings(source):
    folder = source.entries()[3].files[1].parent
    assert folder.name == "cat"
    naive = dict(
        zip(sorted((folder.parents[1] / "Images" / "cat").glob("0*.jpg")), sorted(folder.glob("*.png")), strict=False)
    )
    ours = {entry.files[0]: entry.files[1] for entry in source.entries() if entry.key == "cat"}
    assert [path.name for path in naive.values()][:2] == ["._00.png", "00.png"]
    assert [(image.stem, mask.stem) for image, mask in ours.items()] == [(f"{n:02d}", f"{n:02d}") for n in range(4)]


def test_dark_red_is_the_object_where_a_naive_threshold_of_128_finds_none(source):
    entry = source.entries()[0]
    assert np.asarray(Image.open(entry.files[1]).convert("L")).max() == 38
    with pytest.raises(UserError, match="threshold 128"):
        binary(entry.files[1], MaskRule())
    assert source.target(entry).mask.sum() == drawn(entry.id).sum()


def test_nothing_is_decoded_to_list(source, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(source.entries()) == sum(source.counts().values())


class TestErrors:
    def test_not_the_dataset(self, tmp_path):
        message = failure(PerSeg(tmp_path), PerSeg.entries)
        assert message.startswith(
            f"{tmp_path / 'Images'}: is missing, so this is not PerSeg as its owner distributes it; "
        )

    def test_the_authors_padded_copy_is_not_the_native_layout(self, tmp_path):
        save(tmp_path / "test-1024" / "image_062.png", perseg.dark_red(disc(0)))
        assert "Images: is missing" in failure(PerSeg(tmp_path), PerSeg.entries)

    def test_missing_masks_of_an_object(self, source, tmp_path):
        (tmp_path / "data" / "Annotations" / "cat").rename(tmp_path / "elsewhere")
        assert failure(source, PerSeg.entries).startswith(f"{tmp_path / 'data' / 'Annotations' / 'cat'}: is missing")

    def test_missing_mask(self, source):
        entry = source.entries()[0]
        entry.files[1].unlink()
        assert failure(source, lambda s: s.target(entry)) == (
            f"{entry.files[1]}: no such file; correct the path or restore the file"
        )

    def test_empty_mask(self, source):
        entry = source.entries()[0]
        save(entry.files[1], np.zeros((40, 56, 3), np.uint8))
        assert failure(source, lambda s: s.target(entry)).startswith(f"{entry.files[1]}: the mask is empty; ")
