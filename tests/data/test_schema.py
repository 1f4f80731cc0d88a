from dataclasses import replace

import numpy as np
import pytest

from redfree.data.schema import SEGMENTATION, Prompt, Sample, encode_rows, read_samples, split_sha256


def make(seed, height=13, width=21):
    rng = np.random.default_rng(seed)
    return Sample(
        f"sample-{seed}",
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.random((height, width)) < 0.4,
        Prompt(((3.0, 4.0), (0.5, 12.0)), (1, 0)),
    )


@pytest.fixture
def samples():
    return [make(0), make(1, 8, 8), make(2, 5, 64)]


def test_encoding_and_decoding_lose_nothing(samples):
    rows = encode_rows(samples)
    assert rows.features == SEGMENTATION
    for before, after in zip(samples, read_samples(rows), strict=True):
        assert (after.id, after.prompt) == (before.id, before.prompt)
        assert after.image.dtype == np.uint8
        assert after.mask.dtype == bool
        assert np.array_equal(after.image, before.image)
        assert np.array_equal(after.mask, before.mask)
        assert after.fingerprint() == before.fingerprint()


def test_the_fingerprint_changes_with_one_pixel_of_image_or_mask():
    sample = make(0)
    for name in ("image", "mask"):
        changed = getattr(sample, name).copy()
        changed[12, 20] ^= 1
        assert replace(sample, **{name: changed}).fingerprint() != sample.fingerprint()


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(((3.0, 5.0), (0.5, 12.0)), (1, 0)),
        Prompt(((3.0, 4.0), (0.5, 12.0)), (1, 1)),
        Prompt(((3.0, 4.0),), (1,)),
    ],
)
def test_the_fingerprint_changes_with_the_prompt(prompt):
    sample = make(0)
    assert replace(sample, prompt=prompt).fingerprint() != sample.fingerprint()


def test_the_fingerprint_tells_shapes_of_equal_bytes_apart():
    sample = make(0, 8, 16)
    turned = replace(sample, image=sample.image.reshape(16, 8, 3), mask=sample.mask.reshape(16, 8))
    assert turned.fingerprint() != sample.fingerprint()


def test_the_fingerprint_ignores_the_id_and_the_memory_layout():
    sample = make(0)
    other = replace(sample, id="other", image=np.asfortranarray(sample.image), mask=np.asfortranarray(sample.mask))
    assert other.fingerprint() == sample.fingerprint()


def test_the_split_hash_depends_on_order_ids_and_samples(samples):
    reference = split_sha256(samples)
    assert split_sha256(list(samples)) == reference
    assert split_sha256(samples[::-1]) != reference
    assert split_sha256(samples[:2]) != reference
    assert split_sha256([replace(samples[0], id="other"), *samples[1:]]) != reference
