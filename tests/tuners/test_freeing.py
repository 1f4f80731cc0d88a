"""Every tuner that adds nothing."""

import pytest
import torch
from tunerworld import encode, fingerprint, meta_vit_b, same, shake, tiny_sam2, tiny_vit, tune

from redfree.errors import UserError

TUNERS = ["decoder-only", "encoder-only", "medsam", "bitfit", "norm-only"]
EVERY = pytest.mark.parametrize("name", TUNERS)
VARIANTS = pytest.mark.parametrize("variant", ["paper", "original"])


@VARIANTS
@EVERY
def test_detaching_restores_the_model_bit_for_bit(tiny_sam, name, variant):
    before, features = fingerprint(tiny_sam), encode(tiny_sam)
    attachment = tune(name, tiny_sam, variant=variant)
    assert same(fingerprint(tiny_sam), before)  # nothing is added
    assert torch.equal(encode(tiny_sam), features)
    shake(attachment)
    assert not same(fingerprint(tiny_sam), before)
    attachment.detach()
    assert same(fingerprint(tiny_sam), before)
    assert torch.equal(encode(tiny_sam), features)
    assert not any(p.requires_grad for p in tiny_sam.parameters())


@EVERY
def test_merging_leaves_what_was_trained(tiny_sam, name):
    attachment = tune(name, tiny_sam)
    shake(attachment)
    tuned = fingerprint(tiny_sam)
    attachment.merge()
    assert same(fingerprint(tiny_sam), tuned)
    assert not any(p.requires_grad for p in tiny_sam.parameters())


@EVERY
def test_a_state_is_taken_over_by_a_fresh_attachment(tiny_sam, name):
    attachment = tune(name, tiny_sam)
    shake(attachment)
    tuned, state = fingerprint(tiny_sam), attachment.state()
    attachment.detach()
    tune(name, tiny_sam).load(state)
    assert same(fingerprint(tiny_sam), tuned)


@EVERY
def test_nothing_is_inserted_and_no_name_is_the_prompt_encoders(name):
    attachment = tune(name, meta_vit_b(), variant="original")
    assert not attachment.inserted
    assert not [key for key in attachment.freed if key.startswith("prompt_encoder")]


@pytest.mark.parametrize("name", ["decoder-only", "encoder-only", "medsam"])
def test_where_the_freed_set_is_the_method_the_variants_are_the_same(tiny_sam, name):
    paper = tune(name, tiny_sam, variant="paper")
    assert paper.freed.keys() == tune(name, tiny_sam, variant="original").freed.keys()


@EVERY
def test_an_option_that_does_not_exist(name):
    with pytest.raises(UserError, match=f"options of {name}: unknown field 'rank'"):
        tune(name, meta_vit_b(), rank=4)


@pytest.mark.parametrize("name", ["decoder-only", "medsam"])
def test_a_model_that_gives_tokens_has_no_decoder_to_train(name):
    expected = f"{name}: VisionTransformer has no mask decoder; use a model of segment_anything or sam2"
    with pytest.raises(UserError) as caught:
        tune(name, tiny_vit())
    assert str(caught.value) == expected


@pytest.mark.parametrize(("name", "what"), [("bitfit", "bias terms"), ("norm-only", "layer norms with parameters")])
def test_an_encoder_without_what_would_train(name, what):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False)])

        def forward_features(self, tokens):
            return self.blocks[0](tokens)

    with pytest.raises(UserError) as caught:
        tune(name, Bare())
    assert str(caught.value) == f"{name}: the encoder has no {what}; use another tuner"


@EVERY
def test_an_encoder_that_is_no_row_of_blocks(tiny_sam, name):
    """As MobileSAM's, whose stages are called `layers`."""
    encoder = torch.nn.Module()
    encoder.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    tiny_sam.image_encoder = encoder
    assert tune(name, tiny_sam).trained_count > 0


@EVERY
def test_sam2_has_the_same_parts(name):
    prefixes = {"decoder-only": {"sam_mask_decoder"}, "medsam": {"image_encoder", "sam_mask_decoder"}}
    freed = tune(name, tiny_sam2()).freed
    assert {key.split(".")[0] for key in freed} == prefixes.get(name, {"image_encoder"})
