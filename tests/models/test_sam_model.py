import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from tinyworld import Stock, make_model, make_sample

from redfree.channels import ChannelMap
from redfree.models.base import Features
from redfree.models.loading import load_model

SIZES = {
    "square of the input's size": (64, 64),
    "small": (17, 23),
    "portrait": (201, 90),
    "panorama": (33, 300),
    "large square": (150, 150),
}
LABELS = {"one point": (1,), "several points": (1, 0, 1, 0)}


@pytest.fixture(scope="module")
def nano():
    return load_model("sam_nano")


@pytest.fixture(params=["tiny", "nano"])
def model(request, tiny_sam):
    return make_model(tiny_sam) if request.param == "tiny" else request.getfixturevalue("nano")


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_encode_and_decode_equal_the_official_predictor(model, size, labels):
    sample = make_sample(3, *size, labels)
    features = model.encode([sample.image])
    stock = Stock(model.sam, sample)
    torch.testing.assert_close(features.maps, stock.features, atol=1e-5, rtol=0)
    (logits,) = model.decode(features, [sample.prompt])
    assert logits.shape == sample.mask.shape
    np.testing.assert_allclose(logits.numpy(), stock(), atol=1e-5, rtol=1e-5)
    assert logits.std() > 1e-2, "the comparison must not be of constants"


def test_batches_equal_one_image_at_a_time(model):
    samples = [make_sample(seed, *size) for seed, size in enumerate([*SIZES.values()] * 4)]
    together = model.encode([s.image for s in samples])
    alone = [model.encode([s.image]) for s in samples]
    assert together.frames == tuple(one.frames[0] for one in alone)
    torch.testing.assert_close(together.maps, torch.cat([one.maps for one in alone]), atol=1e-5, rtol=0)
    for logits, one, sample in zip(model.decode(together, [s.prompt for s in samples]), alone, samples, strict=True):
        torch.testing.assert_close(logits, model.decode(one, [sample.prompt])[0], atol=1e-4, rtol=1e-4)


def test_the_identity_swap_changes_no_bit(model):
    sample = make_sample(5, 90, 50)
    features = model.encode([sample.image])
    swapped = Features(ChannelMap(model.channels).apply(features.maps), features.frames)
    assert torch.equal(model.decode(swapped, [sample.prompt])[0], model.decode(features, [sample.prompt])[0])


def test_a_swap_attached_to_the_predictor_equals_decoding_swapped_features(model):
    sample = make_sample(6, 70, 110, (1, 0))
    swap = ChannelMap(model.channels, ((0, 7), (3, 0), (7, 12)), (5,))
    features = model.encode([sample.image])
    (expected,) = model.decode(Features(swap.apply(features.maps), features.frames), [sample.prompt])
    (unswapped,) = model.decode(features, [sample.prompt])
    assert not torch.allclose(expected, unswapped, atol=1e-3)
    with swap.attach(model.sam):
        attached = Stock(model.sam, sample)()
    np.testing.assert_allclose(attached, expected.numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(Stock(model.sam, sample)(), unswapped.numpy(), atol=1e-5, rtol=1e-5)


def test_the_model_is_frozen_and_in_evaluation_mode(tiny_sam):
    model = make_model(tiny_sam.train().requires_grad_(True))
    assert not model.sam.training
    assert not any(p.requires_grad for p in model.sam.parameters())
    assert model.parameters == sum(p.numel() for p in tiny_sam.parameters())
    assert model.channels == 16


def test_upscale_to_the_resized_size_crops_the_padding(tiny_sam):
    model, sample = make_model(tiny_sam), make_sample(7, 20, 80)
    features = model.encode([sample.image])
    (frame,) = features.frames
    assert (frame.original, frame.resized) == ((20, 80), (16, 64))
    low = model.decode_maps(features, model.prompt_tokens(sample.prompt, frame))
    full = SamPredictor(tiny_sam).model.postprocess_masks(low[:, None], (64, 64), (64, 64))
    torch.testing.assert_close(model.upscale(low, frame, frame.resized), full[:, 0, :16, :])
