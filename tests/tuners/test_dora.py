"""DoRA's counts, and its projection and gradients against the formula by hand and against peft's DoRA."""

import pytest
import torch
from tunerworld import meta_vit_b, peft_layer, shake, tune


@pytest.fixture
def tuned(tiny_sam):
    layer = tiny_sam.image_encoder.blocks[0].attn.qkv
    attachment = tune("dora", tiny_sam)
    shake(attachment, 0.3)
    return layer, attachment, tiny_sam.image_encoder.blocks[0].attn.qkv


@pytest.mark.parametrize(
    ("options", "inserted", "declared"),
    [
        ({}, 165_888, 165_888),
        ({"rank": 8}, 313_344, 313_344),
        ({"rank": 16}, 608_256, 608_256),
        ({"variant": "original"}, 165_888, 165_888 + 4_058_340),
    ],
)
def test_counts_on_vit_b(options, inserted, declared):
    attachment = tune("dora", meta_vit_b(), **options)
    assert (attachment.inserted_count, attachment.declared_count) == (inserted, declared)


def test_original_frees_the_decoder_only():
    freed = tune("dora", meta_vit_b(), variant="original").freed
    assert {name.split(".")[0] for name in freed} == {"mask_decoder"}


def test_magnitudes_start_as_norms_of_the_rows_not_of_the_columns(tiny_sam):
    weight = tiny_sam.image_encoder.blocks[0].attn.qkv.weight.clone()
    inserted = tune("dora", tiny_sam).inserted
    torch.testing.assert_close(inserted["blocks.0.q.magnitude"].data, weight[:32].pow(2).sum(1).sqrt())
    torch.testing.assert_close(inserted["blocks.0.v.magnitude"].data, weight[64:].pow(2).sum(1).sqrt())


def test_the_projection_is_that_of_the_decomposed_weight(tuned):
    layer, attachment, projection = tuned
    weight = layer.weight.double().clone()
    for part, first in (("q", 0), ("v", 64)):
        added = {key: attachment.inserted[f"blocks.0.{part}.{key}"].double() for key in ("A", "B", "magnitude")}
        for row in range(32):
            direction = weight[first + row] + added["B"][row] @ added["A"]
            weight[first + row] = added["magnitude"][row] * direction / direction.pow(2).sum().sqrt()
    tokens = torch.randn(2, 3, 5, 32)
    expected = tokens.double() @ weight.T + layer.bias.double()
    torch.testing.assert_close(projection(tokens).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(projection(tokens)[..., 32:64], layer(tokens)[..., 32:64])  # keys


@pytest.mark.parametrize(("part", "first"), [("q", 0), ("v", 64)])
def test_outputs_and_gradients_are_those_of_pefts_dora(tuned, part, first):
    layer, attachment, projection = tuned
    rows = slice(first, first + 32)
    theirs = peft_layer(layer, rows, use_dora=True)
    pairs = {
        "A": theirs.lora_A["default"].weight,
        "B": theirs.lora_B["default"].weight,
        "magnitude": theirs.lora_magnitude_vector["default"].weight,
    }
    ours = {key: attachment.inserted[f"blocks.0.{part}.{key}"] for key in pairs}
    with torch.no_grad():
        for key, value in pairs.items():
            value.copy_(ours[key])
    tokens, weights = torch.randn(2, 3, 5, 32), torch.randn(2, 3, 5, 32)
    given, expected = projection(tokens)[..., rows], theirs(tokens)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad((given * weights).sum(), list(ours.values()))
    other = torch.autograd.grad((expected * weights).sum(), list(pairs.values()))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_through_the_norm(tuned):
    layer, attachment, projection = tuned
    a, b, magnitude = (attachment.inserted[f"blocks.0.q.{key}"] for key in ("A", "B", "magnitude"))
    tokens, weights = torch.randn(5, 32), torch.randn(5, 32)
    (given,) = torch.autograd.grad((projection(tokens)[:, :32] * weights).sum(), b)
    combined = layer.weight[:32] + b @ a
    formula = {}
    for detached in (True, False):
        norm = combined.norm(dim=1).detach() if detached else combined.norm(dim=1)
        output = tokens @ (magnitude / norm)[:, None].mul(combined).T
        (formula[detached],) = torch.autograd.grad((output * weights).sum(), b, retain_graph=True)
    torch.testing.assert_close(given, formula[True], rtol=1e-4, atol=1e-4)
    assert (given - formula[False]).abs().max() > 1e-2
