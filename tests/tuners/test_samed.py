"""SAMed's counts, and its projection against W + BA by hand and against peft's LoRA."""

import math

import pytest
import torch
from tunerworld import meta_vit_b, peft_layer, shake, tune


@pytest.mark.parametrize(
    ("options", "inserted", "declared"),
    [
        ({}, 147_456, 147_456),
        ({"rank": 8}, 294_912, 294_912),
        ({"rank": 16}, 589_824, 589_824),
        ({"variant": "original"}, 147_456, 4_212_016),
    ],
)
def test_counts_on_vit_b(options, inserted, declared):
    attachment = tune("samed", meta_vit_b(), **options)
    assert (attachment.inserted_count, attachment.declared_count) == (inserted, declared)


def test_what_trains_leaves_out_what_a_single_mask_never_reaches():
    assert tune("samed", meta_vit_b(), variant="original").trained_count == 4_212_016 - 419_424 - 132_612


def test_original_frees_the_decoder_and_the_prompt_encoder_only():
    freed = tune("samed", meta_vit_b(), variant="original").freed
    assert {name.split(".")[0] for name in freed} == {"mask_decoder", "prompt_encoder"}
    assert sum(value.numel() for name, value in freed.items() if name.startswith("prompt_encoder")) == 6_220


def test_factors_start_as_the_authors_draw_them(tiny_sam):
    inserted = tune("samed", tiny_sam).inserted
    bound = 1 / math.sqrt(32)  # kaiming_uniform with a = sqrt(5)
    assert all(not value.any() for name, value in inserted.items() if name.endswith("B"))
    drawn = torch.cat([value.flatten() for name, value in inserted.items() if name.endswith("A")])
    assert drawn.abs().max() <= bound
    assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_the_projection_is_that_of_the_weight_plus_b_a(tiny_sam):
    layer = tiny_sam.image_encoder.blocks[1].attn.qkv
    attachment = tune("samed", tiny_sam)
    shake(attachment, 0.3)
    added, weight = attachment.inserted, layer.weight.double().clone()
    for part, first in (("q", 0), ("v", 64)):
        a, b = (added[f"blocks.1.{part}.{factor}"].double() for factor in "AB")
        for row in range(32):
            for column in range(32):
                weight[first + row, column] += sum(b[row, k] * a[k, column] for k in range(4))
    tokens = torch.randn(2, 3, 5, 32)
    expected = tokens.double() @ weight.T + layer.bias.double()
    tuned = tiny_sam.image_encoder.blocks[1].attn.qkv(tokens)
    torch.testing.assert_close(tuned.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(tuned[..., 32:64], layer(tokens)[..., 32:64])  # keys


def test_queries_and_values_are_those_of_pefts_lora(tiny_sam):
    layer = tiny_sam.image_encoder.blocks[0].attn.qkv
    attachment = tune("samed", tiny_sam)
    shake(attachment, 0.3)
    tokens = torch.randn(2, 3, 5, 32)
    tuned = tiny_sam.image_encoder.blocks[0].attn.qkv(tokens)
    for part, rows in (("q", slice(0, 32)), ("v", slice(64, 96))):
        theirs = peft_layer(layer, rows)
        theirs.lora_A["default"].weight = attachment.inserted[f"blocks.0.{part}.A"]
        theirs.lora_B["default"].weight = attachment.inserted[f"blocks.0.{part}.B"]
        torch.testing.assert_close(tuned[..., rows], theirs(tokens), rtol=1e-5, atol=1e-5)
