"""Passes through an adapted SAM, one after another and of several images: none sees anything of another."""

import pytest
import torch
from tinyworld import make_model, make_sample
from tunerworld import encode, shake, tune

from redfree.channels import ChannelMap
from redfree.models import lean_attention
from redfree.models.feature_cache import FeatureCache
from redfree.models.promptable import Encoding
from redfree.models.sam import SamModel


def noise(seed, batch=1):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tuned(tiny_sam):
    """A SAM, and an adapter of width 8 on it whose every value is random."""
    attachment = tune("sam-adapter", tiny_sam, reduction=4)
    shake(attachment, 0.2)
    return tiny_sam, attachment


@pytest.fixture
def encoder(tuned):
    return tuned[0].image_encoder


def lean_model(sam, attention):
    return SamModel("tiny", sam, "", Encoding(batch=2, attention=attention))


def test_it_works_under_lean_attention(tuned, monkeypatch):
    samples = [make_sample(seed, 50, 64) for seed in range(3)]
    images = [sample.image for sample in samples]
    expected = lean_model(tuned[0], "official").encode(images).maps
    monkeypatch.setitem(lean_attention.BUDGETS, "cpu", 0)
    torch.testing.assert_close(lean_model(tuned[0], "lean").encode(images).maps, expected, atol=1e-5, rtol=0)


def test_an_image_is_encoded_alike_alone_in_a_batch_and_after_others(encoder):
    images = noise(7, batch=3)
    with torch.no_grad():
        alone = [encoder(images[k : k + 1]) for k in range(3)]
        again = [encoder(images[k : k + 1]) for k in (2, 0, 1)]
        together = encoder(images)
    for k, place in ((2, 0), (0, 1), (1, 2)):
        assert torch.equal(alone[k], again[place])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def gradients_of(attachment, output):
    return torch.autograd.grad(output.square().sum(), list(attachment.inserted.values()))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradients_in_between_changes_no_gradient(tuned, mode):
    encoder, attachment = tuned[0].image_encoder, tuned[1]
    expected = gradients_of(attachment, encoder(noise(8)))
    output = encoder(noise(8))
    with mode():
        encoder(noise(9, batch=2))
    for found, gradient in zip(gradients_of(attachment, output), expected, strict=True):
        assert torch.equal(found, gradient)
    assert torch.equal(gradients_of(attachment, encoder(noise(8)))[0], expected[0]), "and so after the other pass"


def test_nothing_of_an_image_is_kept_after_its_pass(encoder):
    tokens = torch.randn(1, 4, 4, 32)
    encoder(noise(10))
    with pytest.raises(RuntimeError, match="without the encoder"):
        encoder.blocks[0](tokens)


def test_a_pass_that_failed_leaves_nothing_to_the_next(encoder):
    expected = encoder(noise(11))
    with pytest.raises(RuntimeError):
        encoder(torch.randn(1, 3, 128, 128))  # the position table does not fit
    assert torch.equal(encoder(noise(11)), expected)


def test_features_are_cached_by_whoever_gives_the_tuned_model_a_hash_of_its_own(tuned, tmp_path):
    model, images = make_model(tuned[0], sha="1" * 64), [make_sample(0).image]
    for computed in (1, 0):
        found = FeatureCache(tmp_path).encode(model, images)
        assert found.computed == computed
        assert torch.equal(found.features.maps, model.encode(images).maps)


def test_a_swap_on_top_swaps_adapted_features(tuned):
    swap = ChannelMap(16, ((0, 7), (3, 0)))
    expected = swap.apply(encode(tuned[0]))
    with swap.attach(tuned[0]):
        assert torch.equal(encode(tuned[0]), expected)


def test_masks_depend_on_it(tiny_sam):
    model, sample = make_model(tiny_sam), make_sample(0)
    plain = model.decode(model.encode([sample.image]), [sample.prompt])[0]
    shake(tune("sam-adapter", tiny_sam))
    assert not torch.allclose(model.decode(model.encode([sample.image]), [sample.prompt])[0], plain, atol=1e-4)


def test_it_follows_the_model_to_another_format(tuned):
    tuned[0].double()
    assert tuned[0].image_encoder(noise(12).double()).dtype is torch.float64
