import numpy as np
import pytest
from PIL import Image
from trees import kvasir_seg
from trees.paint import save

from redfree.data.adapters.kvasir_seg import KvasirSeg
from redfree.errors import UserError


@pytest.fixture
def source(tmp_path):
    return KvasirSeg(kvasir_seg.build(tmp_path))


def failure(source, action):
    with pytest.raises(UserError) as caught:
        action(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sample_is_a_frame(source):
    entries = source.entries()
    assert [entry.id for entry in entries] == list(kvasir_seg.FRAMES)
    assert {(entry.split, entry.group) for entry in entries} == {(None, None)}
    assert source.counts() == {"all": 5}


@pytest.mark.parametrize("top", ["Kvasir-SEG", "kvasir-seg/Kvasir-SEG", "."])
def test_values_are_what_was_drawn(tmp_path, top):
    source = KvasirSeg(kvasir_seg.build(tmp_path, top))
    assert len(source.entries()) == 5
    for entry in source.entries():
        assert source.image(entry).shape == (*kvasir_seg.FRAMES[entry.id], 3)
        assert np.array_equal(source.target(entry).mask, kvasir_seg.polyps(entry.id))


def test_both_polyps_of_a_frame_are_its_object(source):
    entry = next(entry for entry in source.entries() if entry.id == kvasir_seg.TWO_POLYPS)
    assert source.target(entry).mask.sum() == kvasir_seg.polyps(entry.id).sum()


def test_noise_of_jpeg_is_no_polyp_where_a_naive_reader_takes_what_is_not_black(source):
    for entry in source.entries():
        stored = np.asarray(Image.open(entry.files[1]))
        assert len(np.unique(stored)) > 20
        naive, mask = (stored != 0).any(2), source.target(entry).mask
        assert naive.sum() > 1.1 * mask.sum()


def test_the_threshold_is_an_option(tmp_path):
    root = kvasir_seg.build(tmp_path)
    areas = []
    for threshold in (1, 128, 255):
        source = KvasirSeg(root, KvasirSeg.Options(mask_threshold=threshold))
        areas.append(source.target(source.entries()[0]).mask.sum())
    assert areas[0] > areas[1] > areas[2] > 0


@pytest.mark.parametrize("threshold", [0, 256])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="mask_threshold"):
        KvasirSeg.Options(mask_threshold=threshold)


def test_nothing_is_decoded_to_list(source, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(source.entries()) == sum(source.counts().values())


class TestErrors:
    def test_not_the_dataset(self, tmp_path):
        where = tmp_path / "Kvasir-SEG" / "images"
        assert failure(KvasirSeg(tmp_path), KvasirSeg.entries).startswith(
            f"{where}: is missing, so this is not Kvasir-SEG"
        )

    def test_missing_folder_of_masks(self, source, tmp_path):
        (tmp_path / "Kvasir-SEG" / "masks").rename(tmp_path / "elsewhere")
        assert failure(source, KvasirSeg.entries).startswith(f"{tmp_path / 'Kvasir-SEG' / 'masks'}: is missing")

    def test_missing_mask(self, source):
        entry = source.entries()[0]
        entry.files[1].unlink()
        assert failure(source, lambda s: s.target(entry)) == (
            f"{entry.files[1]}: no such file; correct the path or restore the file"
        )

    def test_empty_mask(self, source):
        entry = source.entries()[0]
        save(entry.files[1], np.zeros((61, 83), np.uint8))
        assert failure(source, lambda s: s.target(entry)).startswith(f"{entry.files[1]}: the mask is empty; ")
