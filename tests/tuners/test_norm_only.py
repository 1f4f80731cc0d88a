import pytest
import torch
from tunerchecks import after_backward, check_gradients
from tunerworld import meta_vit_b, tiny_sam2, tiny_vit, tune

# Scale and shift of two norms a block, and of two in the neck.
ENCODER = 12 * 2 * 2 * 768 + 2 * 2 * 256
# Of four norms in each of two layers of the transformer and one after them, and of one between upscalings.
DECODER = (2 * 4 + 1) * 2 * 256 + 2 * 64


@pytest.mark.parametrize(("variant", "count"), [("paper", ENCODER), ("original", ENCODER + DECODER)])
def test_counts_on_vit_b(variant, count):
    attachment = tune("norm-only", meta_vit_b(), variant=variant)
    counts = attachment.inserted_count, attachment.declared_count, attachment.trained_count
    assert counts == (0, count, count)


def test_norms_of_maps_are_norms_too(tiny_sam):
    freed = tune("norm-only", tiny_sam, variant="original").freed
    maps = {"image_encoder.neck.1.weight", "image_encoder.neck.3.bias", "mask_decoder.output_upscaling.1.weight"}
    assert maps <= set(freed)
    assert not [name for name in freed if name.startswith("prompt_encoder.")]


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients(tiny_sam, variant):
    check_gradients(after_backward(tiny_sam, "norm-only", variant=variant))


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_in_sam2(variant):
    check_gradients(after_backward(tiny_sam2(), "norm-only", variant=variant))


def test_gradients_in_a_model_that_gives_tokens():
    vit = tiny_vit()
    attachment = tune("norm-only", vit, variant="original")
    assert {name.split(".")[0] for name in attachment.freed} == {"blocks", "norm"}
    vit(torch.randn(1, 3, 32, 32)).square().sum().backward()
    check_gradients(attachment)
