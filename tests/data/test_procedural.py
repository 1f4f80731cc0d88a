import hashlib
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from redfree.data.procedural import ProceduralDataset
from redfree.data.procedural.dataset import SIZE, sample
from redfree.data.procedural.fields import blur, direction
from redfree.data.procedural.scenes import DOMAINS, MIN_AREA, draw
from redfree.data.schema import read_samples
from redfree.errors import UserError

LOADED = ("search", "train", "validation", "test")
SPLITS = (*LOADED, "pretrain")
# SHA-256 of three scenes of each stream. They must never change: shipped weights and records depend on every pixel.
GOLDEN = {
    ("natural", "search"): "332dc48c3128b99a6c9cde0d428012219ae385cba560f7844346de88921b8e0a",
    ("natural", "pretrain"): "9adb5210f70796c66e0f22ec565cc6e0a4b25db51ec7509fff2f454ef18e0d84",
    ("natural", "validation"): "f78bebde16b8d0e3c9664a28413c188e8ea01e203d037a8f1e9789eb09c5a8b3",
    ("natural", "test"): "77497ecc4064e1c3a6c729bdc39eb9e94c65d4c6ed4857eab39e8e149fb8159d",
    ("medical", "search"): "27c43490c5b276943a6999deb7eaeaa6eda9f1eaab2a1b8f3aef3a6cce8de8a2",
    ("medical", "pretrain"): "9825307c8b538613dd3abaf0c8010c6af00dc2788febba741bb7bd2efe6a9d2a",
    ("medical", "validation"): "bc2fa68d5e29dd61ce15d40018f8a12d8d7b27e536243861008ba3ae92048210",
    ("medical", "test"): "e91b1c9251dae5320c91422274f510b61c235609554e2d0faedabf40de168cac",
    ("camouflaged", "search"): "49304a39fe66d25547a24e1c6957d2926b13e0ad7c0e779a005a1f2a4b5e6112",
    ("camouflaged", "pretrain"): "7a365ee31aacc93a69a1a2426e2a7cb8c9113a699c5417d2db393cf417521504",
    ("camouflaged", "validation"): "415c2eda4b34f6582974b9ea2e53d5312fcb4bd0e9e88999f244cfd404039a7c",
    ("camouflaged", "test"): "8413b8e6741be7c7bba8754c8c014ffc888e4aed39dd96d82314794ab0424214",
    ("natural", "train"): "e8ce03a4458023045b312968a2803d1c78359258a978238816a326629dd55ed6",
    ("medical", "train"): "217a0f0e16ce16ae9b8831fbda8056dac403449cc5087550f40cc93bb0fc2ffa",
    ("camouflaged", "train"): "1a5b1e44385524a872a7e914ea9a8cb4963961e8c078fa38357bc803e34ff5ff",
}


def stream_sha256(domain, split):
    digest = hashlib.sha256()
    for index, seed in ((0, 0), (1, 0), (0, 1)):
        scene = draw(domain, split, index, seed)
        digest.update(scene.image.tobytes())
        digest.update(np.packbits(scene.masks).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("domain", "split"), product(DOMAINS, SPLITS))
def test_scenes_are_bit_identical_on_every_machine(domain, split):
    assert stream_sha256(domain, split) == GOLDEN[domain, split]


@pytest.mark.parametrize("domain", DOMAINS)
def test_streams_share_no_image(domain):
    streams = product(LOADED, (0, 1), range(30))
    images = [draw(domain, split, index, seed, size=64).image.tobytes() for split, seed, index in streams]
    assert len(set(images)) == len(images) == 240


@pytest.mark.parametrize("domain", DOMAINS)
def test_samples_are_well_formed(domain):
    for index in range(50):
        scene = draw(domain, "search", index, 2)
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape[1:] == (SIZE, SIZE)
        assert scene.masks.dtype == bool
        assert scene.masks.sum((1, 2)).min() >= MIN_AREA * SIZE * SIZE
        assert scene.masks.sum(0).max() == 1, "visible parts do not overlap"
        target = sample(domain, "search", index, 2)
        ((x, y),) = target.prompt.points
        assert target.prompt.labels == (1,)
        assert target.mask[int(y), int(x)]
        assert target.mask.sum() == scene.masks.sum((1, 2)).max()


@pytest.mark.parametrize("domain", DOMAINS)
def test_rows_are_the_drawn_samples(domain):
    for index, row in enumerate(read_samples(ProceduralDataset(domain).load("train", 3, 7))):
        drawn = sample(domain, "train", index, 7)
        assert row.id == drawn.id
        assert row.fingerprint() == drawn.fingerprint()


def test_a_longer_split_begins_with_the_shorter_one():
    dataset = ProceduralDataset("natural")
    short, long = (list(read_samples(dataset.load("search", count, 0))) for count in (2, 4))
    assert [s.fingerprint() for s in long[:2]] == [s.fingerprint() for s in short]


def test_only_the_test_split_ignores_the_seed():
    dataset = ProceduralDataset("medical")
    for split in LOADED:
        first, second = ([s.fingerprint() for s in read_samples(dataset.load(split, 2, seed))] for seed in (0, 9))
        assert (first == second) == (split == "test")


def colour_contrast(scene):
    """Greatest difference over the channels between the mean colours of the first object and of its surroundings."""
    mask = scene.masks[0]
    around = ndimage.binary_dilation(mask, iterations=10) & ~scene.masks.any(0)
    return np.abs(scene.image[mask].mean(0) - scene.image[around].mean(0)).max()


def test_domains_differ_in_kind():
    scenes = {domain: [draw(domain, "search", index) for index in range(25)] for domain in DOMAINS}
    grey = {domain: all((s.image == s.image[..., :1]).all() for s in drawn) for domain, drawn in scenes.items()}
    assert grey == {"natural": False, "medical": True, "camouflaged": False}
    objects = {domain: [len(s.masks) for s in drawn] for domain, drawn in scenes.items()}
    assert np.mean(objects["natural"]) > 2
    assert max(objects["natural"]) <= 4
    assert set(objects["medical"]) == set(objects["camouflaged"]) == {1}
    contrast = {domain: np.mean([colour_contrast(s) for s in drawn]) for domain, drawn in scenes.items()}
    assert contrast["camouflaged"] < 0.7 * contrast["natural"]
    assert contrast["medical"] < 0.7 * contrast["natural"]


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown procedural domain 'medcal'; did you mean 'medical'\?"):
        ProceduralDataset("medcal")
    with pytest.raises(UserError, match=r"unknown split 'tset'; did you mean 'test'\?"):
        ProceduralDataset("natural").load("tset", 1, 0)


def test_directions_are_unit_vectors_of_every_quadrant():
    rng = np.random.default_rng(0)
    vectors = np.array([direction(rng) for _ in range(200)])
    assert np.allclose((vectors**2).sum(1), 1)
    assert len({tuple(signs) for signs in np.sign(vectors).tolist()}) == 4


def test_blur_is_a_repeated_box_filter_with_edge_padding():
    field = np.random.default_rng(0).random((12, 9))
    expected = ndimage.uniform_filter(ndimage.uniform_filter(field, 5, mode="nearest"), 5, mode="nearest")
    assert np.allclose(blur(field, 2), expected)
    assert np.array_equal(blur(field, 0), field)
