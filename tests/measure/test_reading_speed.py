import numpy as np
import pytest
from PIL import Image

from redfree.data.schema import read_samples
from redfree.measure import reading_speed
from redfree.measure.reading_speed import READERS, flat_triples, measure_memory, measure_reading


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(reading_speed, "SIDE", 64)
    monkeypatch.setattr(reading_speed, "IMAGES", 3)


def test_triples_are_a_test_split_that_redfree_reads():
    with flat_triples(5) as folder:
        samples = list(read_samples(reading_speed._rows(folder)))
        assert len(list((folder / "test").glob("*.jpg"))) == len(samples) == 5
        for sample in samples:
            stem = folder / sample.id
            assert sample.image.shape == (64, 64, 3)
            assert np.array_equal(sample.mask, np.asarray(Image.open(stem.with_suffix(".png"))) >= 128)
            ((x, y),) = sample.prompt.points
            assert stem.with_suffix(".txt").read_text() == f"{x:.0f},{y:.0f}\n"
            assert sample.mask[int(y), int(x)]
        by_id = {sample.id: sample.image for sample in samples}
        assert np.array_equal(by_id["test/00000"], by_id["test/00003"]), "every third is the same"
        assert not np.array_equal(by_id["test/00000"], by_id["test/00001"])
    assert not folder.exists()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_parts_of_each_reader_are_all_images_once(parts):
    with flat_triples(5) as folder:
        for read in READERS.values():
            assert sum(read(folder, part, parts) for part in range(parts)) == 5


def test_speeds_are_medians_beside_those_of_pillow(monkeypatch):
    # The first round warms up; a reader of redfree takes two, eight and four times as long as Pillow.
    seconds = iter([9.0, 9.0, 1.0, 2.0, 1.0, 8.0, 0.5, 2.0])
    monkeypatch.setattr(reading_speed, "_seconds", lambda *_: next(seconds))
    pillow, redfree = measure_reading(1, rounds=3, images=2)
    assert (pillow.reader, pillow.images_per_second, pillow.ratio) == ("Pillow alone", 1.0, 1.0)
    assert (redfree.reader, redfree.images_per_second, redfree.ratio) == ("redfree", 0.5, 0.25)
    assert pillow.processes == redfree.processes == 1


def test_memory_is_noted_after_so_many_images():
    found = measure_memory(6, (2, 5, 9))
    assert [mark.images for mark in found] == [2, 5]
    assert all(2**24 < mark.rss_bytes < 2**36 for mark in found)
