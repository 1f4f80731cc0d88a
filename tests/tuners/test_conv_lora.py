"""Conv-LoRA's counts, its projection by hand, the independence of the maps of a batch, and its gate."""

import pytest
import torch
import torch.nn.functional as F
from tunerworld import backward, encode, fingerprint, meta_vit_b, same, shake, tiny_sam2, tiny_vit, tune

from redfree.errors import UserError
from redfree.models.lean_attention import lean_attention


@pytest.fixture
def tuned(tiny_sam):
    layer = tiny_sam.image_encoder.blocks[0].attn.qkv
    attachment = tune("conv-lora", tiny_sam)
    shake(attachment, 0.3)
    return layer, attachment, tiny_sam.image_encoder.blocks[0].attn.qkv


@pytest.mark.parametrize(("variant", "declared"), [("paper", 119_232), ("original", 119_232 + 4_058_340)])
def test_counts_on_vit_b(variant, declared):
    attachment = tune("conv-lora", meta_vit_b(), variant=variant)
    assert (attachment.inserted_count, attachment.declared_count) == (119_232, declared)


def test_original_frees_the_decoder_only():
    freed = tune("conv-lora", meta_vit_b(), variant="original").freed
    assert {name.split(".")[0] for name in freed} == {"mask_decoder"}


@pytest.mark.parametrize("build", ["sam", "sam2"])
def test_it_is_an_exact_identity_at_the_start(build, tiny_sam):
    module = tiny_sam if build == "sam" else tiny_sam2()
    before = encode(module)
    attachment = tune("conv-lora", module)
    assert torch.equal(encode(module), before)
    shake(attachment)
    assert not torch.equal(encode(module), before)


def choices(attachment, tokens, block=0):
    """Maps A x (B, 3, H, W), and the expert with the highest score of each map's mean."""
    added = {name.removeprefix(f"blocks.{block}.qkv."): value.detach() for name, value in attachment.inserted.items()}
    maps = torch.einsum("rc,bhwc->brhw", added["A"], tokens)
    scores = torch.einsum("er,br->be", added["mixture.gate.weight"], maps.mean((2, 3)))
    return added, maps, scores.argmax(1).tolist()


def test_the_projection_is_that_of_the_formula(tuned):
    layer, attachment, projection = tuned
    tokens = torch.randn(40, 5, 7, 32)
    added, maps, chosen = choices(attachment, tokens)
    assert len(set(chosen)) >= 4
    for index, expert in enumerate(chosen):
        own, ratio = maps[index : index + 1], expert + 1
        large = F.interpolate(own, (5 * ratio, 7 * ratio), mode="bilinear")
        weight, bias = (added[f"mixture.experts.{expert}.{part}"] for part in ("weight", "bias"))
        columns = F.unfold(large, 3, padding=1)
        convolved = (weight.flatten(1) @ columns + bias[:, None]).reshape(large.shape)
        mixed = own + F.interpolate(convolved, (5, 7), mode="bilinear")
        expected = layer(tokens[index]) + torch.einsum("or,brhw->hwo", added["B"], mixed)
        torch.testing.assert_close(projection(tokens)[index], expected, rtol=1e-5, atol=1e-5)


def test_maps_of_a_batch_do_not_depend_on_each_other(tuned):
    _, attachment, projection = tuned
    tokens = torch.randn(12, 4, 4, 32)
    assert len(set(choices(attachment, tokens)[2])) >= 3
    alone = torch.cat([projection(tokens[index : index + 1]) for index in range(12)])
    torch.testing.assert_close(projection(tokens), alone, rtol=1e-5, atol=1e-5)


def test_noise_of_the_gate_is_drawn_in_training_only(tuned):
    _, _, projection = tuned
    tokens = torch.randn(12, 4, 4, 32)
    assert not projection.training
    assert torch.equal(projection(tokens), projection(tokens))
    projection.train()
    assert not torch.equal(projection(tokens), projection(tokens))


def test_training_reaches_the_gate_though_the_chosen_expert_weighs_one(tuned):
    _, attachment, projection = tuned
    projection.train()
    tokens = torch.randn(12, 4, 4, 32)
    (projection(tokens) * torch.randn(12, 4, 4, 96)).sum().backward()
    for part in ("gate", "noise"):
        assert attachment.inserted[f"blocks.0.qkv.mixture.{part}.weight"].grad.abs().max() > 0


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_reach_what_trains_and_nothing_else(variant, tiny_sam):
    attachment, gradients = backward(tiny_sam, "conv-lora", shaken_by=0.05, variant=variant)
    trained = attachment.trained()
    assert gradients.keys() <= {id(value) for value in trained.values()}
    for name, value in trained.items():
        # Of the experts only the chosen one learns from one image, and the width of the noise in training alone.
        if ".experts." not in name and ".noise." not in name:
            assert gradients[id(value)].abs().max() > 0, name
    for block in range(2):
        weights = [attachment.inserted[f"blocks.{block}.qkv.mixture.experts.{k}.weight"] for k in range(8)]
        assert sum(id(weight) in gradients for weight in weights) == 1


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_detached_the_model_is_bit_identical(variant, tiny_sam):
    before, plain = encode(tiny_sam), fingerprint(tiny_sam)
    attachment = tune("conv-lora", tiny_sam, variant=variant)
    shake(attachment)
    assert not torch.equal(encode(tiny_sam), before)
    attachment.detach()
    assert same(fingerprint(tiny_sam), plain)
    assert torch.equal(encode(tiny_sam), before)


def test_its_state_makes_another_attachment_the_same(tiny_sam):
    attachment = tune("conv-lora", tiny_sam)
    shake(attachment)
    state, tuned = attachment.state(), encode(tiny_sam)
    attachment.detach()
    other = tune("conv-lora", tiny_sam)
    other.load(state)
    assert torch.equal(encode(tiny_sam), tuned)


def test_it_runs_under_lean_attention_and_autocast(tiny_sam):
    shake(tune("conv-lora", tiny_sam))
    official = encode(tiny_sam)
    with lean_attention(tiny_sam.image_encoder, budget=1):
        torch.testing.assert_close(encode(tiny_sam), official, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny_sam.image_encoder.blocks[0].attn.qkv(torch.randn(3, 4, 4, 32)).dtype == torch.bfloat16


def test_it_cannot_be_merged(tiny_sam):
    with pytest.raises(UserError, match="cannot be merged"):
        tune("conv-lora", tiny_sam).merge()


def test_tokens_without_rows_and_columns_are_refused():
    with pytest.raises(UserError, match=r"^conv-lora needs tokens in rows and columns: [^\n]*sam2 alone$"):
        tune("conv-lora", tiny_vit())
