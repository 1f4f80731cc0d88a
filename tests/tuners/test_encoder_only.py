import pytest
import torch
from segment_anything import sam_model_registry
from tunerchecks import after_backward, check_gradients
from tunerworld import meta_vit_b, tiny_sam2, tiny_vit, tune


def test_counts_on_vit_b():
    attachment = tune("encoder-only", meta_vit_b())
    counts = attachment.inserted_count, attachment.declared_count, attachment.trained_count
    assert counts == (0, 89_670_912, 89_670_912)


@pytest.mark.parametrize(("size", "count"), [("vit_l", 308_278_272), ("vit_h", 637_026_048)])
def test_counts_on_larger_models(size, count):
    with torch.device("meta"):
        sam = sam_model_registry[size](checkpoint=None)
    assert tune("encoder-only", sam).declared_count == count


def test_position_tables_and_neck_are_freed(tiny_sam):
    freed = tune("encoder-only", tiny_sam).freed
    assert freed.keys() == {f"image_encoder.{name}" for name, _ in tiny_sam.image_encoder.named_parameters()}
    assert {"image_encoder.pos_embed", "image_encoder.blocks.0.attn.rel_pos_h", "image_encoder.neck.3.bias"} <= set(
        freed
    )


def test_gradients_pass_the_frozen_decoder(tiny_sam):
    check_gradients(after_backward(tiny_sam, "encoder-only"))


def test_gradients_in_sam2():
    check_gradients(after_backward(tiny_sam2(), "encoder-only"))


def test_a_model_that_gives_tokens_is_nothing_but_an_encoder():
    vit = tiny_vit()
    attachment = tune("encoder-only", vit)
    assert attachment.freed.keys() == dict(vit.named_parameters()).keys()
    vit(torch.randn(1, 3, 32, 32)).square().sum().backward()
    check_gradients(attachment)
