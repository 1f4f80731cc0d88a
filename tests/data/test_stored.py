import numpy as np
import pytest

from redfree.data.schema import Prompt, Sample, encode_rows
from redfree.data.stored import LazyImages, PackedMask, store_samples


def make(seed, ignored=False):
    rng = np.random.default_rng(seed)
    height, width = 13 + seed, 21
    mask = rng.random((height, width)) < 0.4
    ignore = (rng.random((height, width)) < 0.3) & ~mask if ignored else None
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(f"sample-{seed}", image, mask, Prompt(((3.0, 4.0),), (1,)), ignore)


@pytest.fixture
def samples():
    return [
        make(0),
        make(1, ignored=True),
        Sample("boxed", make(2).image, make(2).mask, Prompt((), (), (1.0, 2.0, 8.0, 9.0))),
    ]


def test_a_stored_sample_is_the_sample(samples):
    for before, after in zip(samples, store_samples(encode_rows(samples), "read"), strict=True):
        assert (after.id, after.prompt) == (before.id, before.prompt)
        assert np.array_equal(after.image, before.image)
        assert np.array_equal(after.mask, before.mask)
        assert (after.ignore is None) == (before.ignore is None)
        assert before.ignore is None or np.array_equal(after.ignore, before.ignore)
        assert (after.image_sha256(), after.fingerprint()) == (before.image_sha256(), before.fingerprint())


def test_the_image_is_not_kept_and_read_alone(samples):
    rows, read = encode_rows(samples), []
    columns = ["id", "image", "mask", "ignore", "prompt"]
    seen = rows.with_transform(lambda batch: read.append(sorted(batch)) or rows.features.decode_batch(batch))
    stored = store_samples(seen, "read")
    assert read == [sorted(columns)] * 3
    assert np.array_equal(stored[1].image, samples[1].image)
    assert np.array_equal(stored[1].image, samples[1].image)
    assert read[3:] == [["image"]] * 2


def test_images_are_read_one_by_one_or_a_slice_at_a_time(samples):
    images = LazyImages(store_samples(encode_rows(samples), "read"))
    assert len(images) == 3
    assert np.array_equal(images[2], samples[2].image)
    for part, chosen in ((images[1:], samples[1:]), (images[:1], samples[:1])):
        assert [np.array_equal(a, b.image) for a, b in zip(part, chosen, strict=True)] == [True] * len(chosen)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (7, 9)])
def test_a_packed_mask_unpacks_to_itself_at_an_eighth_of_its_size(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    packed = PackedMask.of(mask)
    assert np.array_equal(packed.unpacked(), mask)
    assert packed.unpacked().dtype == bool
    assert packed.bits.nbytes == -(-mask.size // 8)
