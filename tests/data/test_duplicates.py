import io
import os
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from redfree.data.duplicates import PerceptualHash, groups, near_duplicates, perceptual_hash
from redfree.data.procedural.scenes import DOMAINS, draw
from redfree.data.reading import read_image

ISIC = Path(os.environ.get("REDFREE_ISIC_FLAT") or Path(__file__).parents[2].parent / "shared/data/isic2016-flat")


@pytest.fixture(scope="module")
def scenes():
    drawn = [(domain, index, draw(domain, "test", index, 0, 128).image) for domain in DOMAINS for index in range(8)]
    return {f"{domain} {index}": image for domain, index, image in drawn}


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def resized(width, height):
    return lambda image: np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def brightened(image):
    return (image * 1.05 + 8).clip(0, 255).astype(np.uint8)


def pattern(seed):
    """A thumbnail of mean 0 and norm 1."""
    return normalised(np.random.default_rng(seed).normal(size=(64, 64)))


def normalised(values):
    centred = values - values.mean()
    return (centred / np.linalg.norm(centred)).astype(np.float32)


def correlated(correlation):
    """Two thumbnails of a given correlation."""
    first, other = pattern(0).astype(float).ravel(), pattern(1).astype(float).ravel()
    other -= (other @ first) * first
    mixed = correlation * first + np.sqrt(1 - correlation**2) * other / np.linalg.norm(other)
    return pattern(0), mixed.reshape(64, 64).astype(np.float32)


class TestPerceptualHash:
    def test_bits_are_those_of_imagehash(self, scenes):
        for image in scenes.values():
            expected = int(str(imagehash.phash(Image.fromarray(image))), 16)
            assert perceptual_hash(image).bits == expected

    def test_product_of_thumbnails_is_their_correlation(self, scenes):
        first, second = list(scenes.values())[:2]
        small = [np.asarray(Image.fromarray(i).convert("L").resize((64, 64), 2)).ravel() for i in (first, second)]
        product = (perceptual_hash(first).thumbnail * perceptual_hash(second).thumbnail).sum()
        assert product == pytest.approx(np.corrcoef(*small)[0, 1], abs=1e-5)

    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (7, 5, 3), (700, 90, 3)])
    def test_any_size(self, shape):
        found = perceptual_hash(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        assert found.thumbnail.shape == (64, 64)
        assert found.thumbnail.dtype == np.float32
        assert 0 <= found.bits < 2**64

    @pytest.mark.parametrize("value", [0, 77, 255])
    def test_flat_image_has_an_empty_thumbnail(self, value):
        assert not perceptual_hash(np.full((50, 60, 3), value, np.uint8)).thumbnail.any()


class TestNearDuplicates:
    @pytest.mark.parametrize(
        "copy",
        [
            jpeg,
            resized(64, 64),
            resized(217, 217),
            resized(200, 120),
            brightened,
            lambda image: jpeg(brightened(image)),
        ],
        ids=["jpeg", "half", "larger", "stretched", "brightened", "brightened jpeg"],
    )
    def test_copies_are_found_and_nothing_else(self, scenes, copy):
        originals = {name: perceptual_hash(image) for name, image in scenes.items()}
        copies = {f"copy of {name}": perceptual_hash(copy(image)) for name, image in scenes.items()}
        assert near_duplicates(originals | copies) == [(name, f"copy of {name}") for name in scenes]

    def test_different_scenes_are_not(self, scenes):
        assert near_duplicates({name: perceptual_hash(image) for name, image in scenes.items()}) == []

    # Correlations that the audit of the authors' samples gives: two lesions that only look alike, and the two pairs.
    @pytest.mark.parametrize(("correlation", "found"), [(0.91, False), (0.975, False), (0.99, True), (0.996, True)])
    def test_equal_bits_are_not_enough(self, correlation, found):
        first, second = correlated(correlation)
        pairs = near_duplicates({"34": PerceptualHash(5, first), "785": PerceptualHash(5, second)})
        assert pairs == ([("34", "785")] if found else [])

    @pytest.mark.parametrize(("distance", "found"), [(0, True), (10, True), (11, False), (64, False)])
    def test_bits_that_differ(self, distance, found):
        hashes = {"a": PerceptualHash(0, pattern(0)), "b": PerceptualHash(2**64 - 2 ** (64 - distance), pattern(0))}
        assert near_duplicates(hashes) == ([("a", "b")] if found else [])

    def test_negative_is_no_duplicate(self):
        assert near_duplicates({"a": PerceptualHash(0, pattern(0)), "b": PerceptualHash(0, -pattern(0))}) == []

    def test_flat_images_are_never_duplicates(self, scenes):
        flat = {str(value): np.full((40, 40, 3), value, np.uint8) for value in (0, 128, 255)}
        hashes = {name: perceptual_hash(image) for name, image in (scenes | flat).items()}
        hashes["second black"] = hashes["0"]
        assert near_duplicates(hashes) == []

    @given(st.lists(st.integers(0, 2**64 - 1).map(lambda bits: bits & 0x8000_0003_0000_FFFF), max_size=12))
    def test_every_pair_is_compared_as_by_brute_force(self, all_bits):
        hashes = {str(index): PerceptualHash(bits, pattern(0)) for index, bits in enumerate(all_bits)}
        expected = [(a, b) for a, b in combinations(hashes, 2) if (hashes[a].bits ^ hashes[b].bits).bit_count() <= 10]
        assert near_duplicates(hashes) == expected

    def test_pairs_far_apart_in_a_large_set(self):
        rng = np.random.default_rng(0)
        bits = [int(value) for value in rng.integers(0, 2**64, 3000, dtype=np.uint64)]
        # Within a block, on both sides of a block's end, and in the first and the last block.
        planted = [(0, 2999), (127, 128), (1, 2), (500, 2047)]
        for first, second in planted:
            bits[second] = bits[first] ^ 0b1011
        thumbnail = pattern(0)
        hashes = {str(index): PerceptualHash(value, thumbnail) for index, value in enumerate(bits)}
        expected = [(str(i), str(j)) for i, j in combinations(range(3000), 2) if (bits[i] ^ bits[j]).bit_count() <= 10]
        assert near_duplicates(hashes) == expected
        assert {(str(i), str(j)) for i, j in planted} <= set(expected)

    def test_many_candidates(self):
        thumbnail = pattern(0)
        hashes = {str(index): PerceptualHash(0, thumbnail) for index in range(150)}
        assert near_duplicates(hashes) == list(combinations(hashes, 2))

    @pytest.mark.parametrize("n", [0, 1])
    def test_too_few_for_a_pair(self, n):
        assert near_duplicates({str(index): PerceptualHash(0, pattern(0)) for index in range(n)}) == []


class TestGroups:
    def test_connected_through_others(self):
        pairs = [("d", "b"), ("e", "d"), ("c", "f")]
        expected = {"a": "a", "b": "b", "c": "c", "d": "b", "e": "b", "f": "c"}
        assert groups("abcdef", pairs) == expected
        assert list(groups("abcdef", pairs)) == list("abcdef")

    def test_no_pairs(self):
        assert groups(["b", "a"], []) == {"b": "b", "a": "a"}
        assert groups([], []) == {}

    def test_pair_twice_and_with_itself(self):
        assert groups("ab", [("a", "b"), ("b", "a"), ("a", "a")]) == {"a": "a", "b": "a"}

    def test_unknown_id(self):
        with pytest.raises(KeyError, match="x"):
            groups("ab", [("a", "x")])

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
    def test_against_repeated_merging(self, numbers):
        ids = [str(index) for index in range(10)]
        pairs = [(str(a), str(b)) for a, b in numbers]
        expected = {id_: id_ for id_ in ids}
        for _ in ids:
            for a, b in pairs:
                expected[a] = expected[b] = min(expected[a], expected[b])
        assert groups(ids, pairs) == expected


@pytest.mark.skipif(not ISIC.is_dir(), reason="the shared ISIC 2016 images are not here")
def test_isic_lesions_are_all_different():
    paths = sorted(ISIC.glob("*.jpg"))
    assert len(paths) == 60
    assert near_duplicates({path.stem: perceptual_hash(read_image(path)) for path in paths}) == []
