from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinyworld import Stock, make_sample

from redfree.channels import ChannelMap
from redfree.data.schema import Prompt
from redfree.models.base import Features, Frame
from redfree.models.decoding import sam_layers
from redfree.models.loading import load_model
from redfree.models.nano import NanoArchitecture, build_nano
from redfree.models.sam import SamModel
from redfree.models.swap_decoding import SharedWeights, SwapDecoder, changes_of

ONE_POINT = Prompt(((20.0, 40.0),), (1,))
THREE_POINTS = Prompt(((20.0, 40.0), (50.0, 10.0), (3.0, 60.0)), (1, 0, 1))


def shaken(channels, noise, seed=0, image_size=64, mlp=32):
    """A SAM with a tiny encoder of which nothing is at its initial value, and whose norms scale by 0.5 to 2."""
    torch.manual_seed(seed)
    sam = build_nano(NanoArchitecture(image_size, 16, channels, 8, 1, 1, mlp)).eval().requires_grad_(False)
    for name, parameter in sam.named_parameters():
        if "norm" in name or "output_upscaling.1" in name:
            parameter.mul_(2 ** (2 * torch.rand_like(parameter) - 1))
        parameter.add_(torch.randn_like(parameter), alpha=noise)
    return sam


def rescale(sam, features, largest):
    """Brings the largest logit to a size."""
    factor = largest / float(official(sam, features, ONE_POINT, [list(range(len(features)))]).abs().max())
    last = sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1]
    last.weight.mul_(factor)
    last.bias.mul_(factor)


@cache
def trained():
    return load_model("sam_nano").sam


@cache
def random_sam(channels, noise=0.02, largest=1.0):
    sam = shaken(channels, noise)
    rescale(sam, random_features(sam), largest)
    return sam


def random_features(sam, seed=0):
    side = sam.prompt_encoder.image_embedding_size[0]
    return torch.randn(sam.prompt_encoder.embed_dim, side, side, generator=torch.Generator().manual_seed(seed))


def encoded(sam):
    return SamModel("x", sam, "").encode([make_sample(3, 128, 128).image]).maps[0]


def swapped(features, index):
    """The features with each channel replaced by hand."""
    return torch.stack([features[j] if j >= 0 else torch.zeros_like(features[0]) for j in index])


def official(sam, features, prompt, maps):
    """Low-resolution logits of the official decoder, one map after the other."""
    points = torch.tensor(prompt.points)[None] * sam.image_encoder.img_size / 64
    sparse, dense = sam.prompt_encoder((points, torch.tensor(prompt.labels)[None]), None, None)
    position = sam.prompt_encoder.get_dense_pe()
    return torch.cat(
        [
            sam.mask_decoder(swapped(features, index)[None], position, sparse.to(features.dtype), dense, False)[0][0]
            for index in maps
        ]
    )


def one_image(features):
    """Features of one square image from its map (C, H, W)."""
    return Features(features[None], (Frame((64, 64), (64, 64)),))


def shared(sam, features, prompt, maps):
    """The same by `SamModel.swap_decoder`, for a square image of 64 pixels."""
    model = SamModel("x", sam, "")
    tokens = model.prompt_tokens(prompt, model._frame(np.zeros((64, 64, 3), np.uint8)))
    return model.swap_decoder(one_image(features), tokens)(torch.tensor(maps))


def mixed_maps(channels, seed=1):
    """Of every kind: identity, single pairs, many pairs, a permutation, zeroed channels, and all of them at once."""
    rng, identity = np.random.default_rng(seed), list(range(channels))
    pairs = [[*identity[:i], j, *identity[i + 1 :]] for i, j in [(0, 1), (channels - 1, 0), (3, 9)]]
    half = [int(rng.integers(channels)) if rng.random() < 0.5 else c for c in identity]
    zeroed = [-1 if c in (0, 5) else c for c in identity]
    chaos = [int(j) for j in rng.integers(-1, channels, channels)]
    return [identity, *pairs, half, rng.permutation(channels).tolist(), zeroed, [-1] * channels, [2] * channels, chaos]


def assert_equal(found, expected, tolerance=1e-5):
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    assert found.shape == expected.shape
    assert error <= tolerance * max(1.0, largest), f"{error:.2e} of logits up to {largest:.2f}"


@pytest.mark.parametrize("prompt", [ONE_POINT, THREE_POINTS], ids=["1 point", "3 points"])
@pytest.mark.parametrize(
    ("build", "features", "largest"),
    [
        (lambda: random_sam(16), random_features, 1),
        (lambda: random_sam(16, 0.2, 10.0), random_features, 10),
        (lambda: random_sam(64), random_features, 1),
        (lambda: random_sam(64, 0.1, 10.0), random_features, 10),
        (lambda: random_sam(256), random_features, 1),
        (lambda: random_sam(256, 0.05, 10.0), random_features, 10),
        (trained, encoded, 3),
        (trained, random_features, 3),
    ],
    ids=["16", "16 large", "64", "64 large", "256", "256 large", "sam_nano", "sam_nano on noise"],
)
def test_swaps_equal_the_official_decoder(build, features, largest, prompt):
    sam = build()
    image, maps = features(sam), mixed_maps(sam.prompt_encoder.embed_dim)
    expected = official(sam, image, prompt, maps)
    assert expected.abs().max() > 0.3 * largest
    assert all((a - b).abs().max() > 1e-3 for n, a in enumerate(expected) for b in expected[:n]), "maps must differ"
    assert_equal(shared(sam, image, prompt, maps), expected)


def test_the_low_resolution_logits_are_those_of_the_official_predictor():
    model, sample = load_model("sam_nano"), make_sample(5, 128, 96, labels=(1, 0))
    stock, features = Stock(model.sam, sample), model.encode([sample.image])
    tokens = model.prompt_tokens(sample.prompt, features.frames[0])
    maps = mixed_maps(64)
    logits = model.upscale(model.swap_decoder(features, tokens)(torch.tensor(maps)), features.frames[0], (128, 96))
    expected = np.stack([stock(index) for index in maps])
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@cache
def double_sam():
    """In double precision, of large weights; its position table stays that of single precision."""
    sam = random_sam(16, 0.3, 10.0)
    position = sam.prompt_encoder.get_dense_pe().double()
    points = sam.prompt_encoder((torch.tensor([[[20.0, 40.0]]]), torch.ones(1, 1)), None, None)[0].double()
    clone = shaken(16, 0.0)
    clone.load_state_dict(sam.state_dict())
    clone = clone.double()
    clone.prompt_encoder.get_dense_pe = lambda: position
    return clone, points


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(-1, 15), min_size=16, max_size=16), min_size=1, max_size=4), st.integers(0, 9))
def test_nothing_is_approximated(maps, seed):
    sam, sparse = double_sam()
    features = 3 * random_features(sam, seed).double()
    dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, 4, 4)
    batch = torch.stack([swapped(features, index) for index in maps])
    expected = torch.cat(
        [sam.mask_decoder(one[None], sam.prompt_encoder.get_dense_pe(), sparse, dense, False)[0][0] for one in batch]
    )
    found = SwapDecoder(SharedWeights(sam_layers(sam)), features, sparse)(*changes_of(features, torch.tensor(maps)))
    assert found.dtype == torch.float64
    assert_equal(found, expected, 1e-10)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_gives_each_map_what_it_gets_alone(count):
    sam = random_sam(64)
    features, maps = random_features(sam), mixed_maps(64)[:count]
    together = shared(sam, features, THREE_POINTS, maps)
    alone = torch.cat([shared(sam, features, THREE_POINTS, [one]) for one in maps])
    assert together.shape == (count, 16, 16)
    assert_equal(together, alone)


def test_images_and_prompts_of_one_model_do_not_mix():
    sam = random_sam(64)
    model, index = SamModel("x", sam, ""), mixed_maps(64)
    frame = model._frame(np.zeros((64, 64, 3), np.uint8))
    cases = [(random_features(sam, seed), prompt) for seed in range(2) for prompt in (ONE_POINT, THREE_POINTS)]
    tokens = [model.prompt_tokens(prompt, frame) for _, prompt in cases]
    decoders = [model.swap_decoder(one_image(case[0]), given) for case, given in zip(cases, tokens, strict=True)]
    for maps in (index[:3], index[3:]):
        for (features, prompt), decode in zip(cases, decoders, strict=True):
            assert_equal(decode(torch.tensor(maps)), official(sam, features, prompt, maps))


def test_the_decoder_of_sam_vit_b():
    sam = shaken(256, 0.02, image_size=1024, mlp=2048)
    features = random_features(sam)
    rescale(sam, features, 10.0)
    maps = [mixed_maps(256)[2], mixed_maps(256)[4]]
    expected = official(sam, features, ONE_POINT, maps)
    assert expected.shape == (2, 256, 256)
    assert_equal(shared(sam, features, ONE_POINT, maps), expected)


def test_decoding_changes_nothing_and_repeats_itself():
    sam = random_sam(16, 0.2, 10.0)
    features, index = random_features(sam), torch.tensor(mixed_maps(16))
    parameters = {name: value.clone() for name, value in sam.state_dict().items()}
    before, model = (features.clone(), index.clone()), SamModel("x", sam, "")
    tokens = model.prompt_tokens(ONE_POINT, model._frame(np.zeros((64, 64, 3), np.uint8)))
    decode, kept = model.swap_decoder(one_image(features), tokens), tokens.clone()
    first, second = decode(index), decode(index)
    assert torch.equal(first, second)
    with torch.inference_mode():
        channels, differences = changes_of(features, index)
        copies = channels.clone(), differences.clone()
        assert torch.equal(SwapDecoder(SharedWeights(sam_layers(sam)), features, tokens)(channels, differences), first)
    assert all(torch.equal(a, b) for a, b in zip(copies, (channels, differences), strict=True))
    assert all(torch.equal(a, b) for a, b in zip((*before, kept), (features, index, tokens), strict=True))
    assert all(torch.equal(value, parameters[name]) for name, value in sam.state_dict().items())


@given(st.lists(st.lists(st.integers(-1, 7), min_size=8, max_size=8), min_size=1, max_size=5))
def test_changes_bring_features_to_the_swapped_ones(maps):
    features = torch.arange(8 * 6).reshape(8, 2, 3).double() ** 2
    channels, differences = changes_of(features, torch.tensor(maps))
    most = max(1, *(sum(j != c for c, j in enumerate(index)) for index in maps), 0)
    assert channels.shape == (len(maps), most)
    assert differences.shape == (len(maps), most, 6)
    for index, changed, added in zip(maps, channels.tolist(), differences, strict=True):
        assert len(set(changed)) == most, "no channel twice"
        flat = features.flatten(1).clone()
        for channel, difference in zip(changed, added, strict=True):
            flat[channel] += difference
        assert torch.equal(flat.reshape(features.shape), swapped(features, index))


def test_changes_of_the_identity_are_one_difference_of_zero():
    features = torch.randn(8, 2, 3)
    _, differences = changes_of(features, torch.tensor([ChannelMap(8).index()]))
    assert torch.equal(differences, torch.zeros(1, 1, 6))
