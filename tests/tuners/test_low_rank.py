"""What every low-rank change of queries and values keeps to, on every kind of model that it is defined on."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from tunerworld import backward, encode, fingerprint, same, shake, tiny_eva, tiny_sam2, tiny_vit, tune

from redfree.errors import UserError
from redfree.models.lean_attention import lean_attention
from redfree.tuners.anatomy import anatomy_of
from redfree.tuners.catalogue import tuner_options
from redfree.tuners.low_rank import LowRank, attach_low_rank

BUILD = {"sam2": (tiny_sam2, 64), "timm": (tiny_vit, 32), "eva": (tiny_eva, 32)}
pytestmark = pytest.mark.parametrize("name", ["samed", "dora"])


@pytest.fixture(params=["sam", *BUILD])
def model(request):
    if request.param == "sam":
        return request.getfixturevalue("tiny_sam"), 64
    build, side = BUILD[request.param]
    return build(), side


def test_it_is_an_exact_identity_at_the_start(name, model):
    module, side = model
    before = encode(module, side)
    tune(name, module)
    assert torch.equal(encode(module, side), before)


def test_merged_it_computes_the_same_and_is_the_plain_model_again(name, model):
    module, side = model
    before, plain = encode(module, side), fingerprint(module)
    attachment = tune(name, module)
    shake(attachment)
    tuned = encode(module, side)
    attachment.merge()
    merged = fingerprint(module)
    assert (tuned - before).abs().max() > 1e-2
    torch.testing.assert_close(encode(module, side), tuned, rtol=1e-5, atol=1e-5)
    assert merged[0].keys() == plain[0].keys()
    assert merged[1:] == plain[1:]  # the very modules, and no hooks
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_merging_writes_to_no_keys_and_to_no_bias(name, tiny_sam):
    plain = fingerprint(tiny_sam)[0]
    attachment = tune(name, tiny_sam)
    shake(attachment)
    attachment.merge()
    changed = {key for key, value in tiny_sam.state_dict().items() if not torch.equal(value, plain[key])}
    weights = [f"image_encoder.blocks.{number}.attn.qkv.weight" for number in range(2)]
    assert changed == set(weights)
    for key in weights:
        queries, keys, values = (tiny_sam.state_dict()[key] != plain[key]).chunk(3)
        assert queries.any(1).all()
        assert not keys.any()
        assert values.any(1).all()


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_detached_the_model_is_bit_identical(name, variant, model):
    module, side = model
    before, plain = encode(module, side), fingerprint(module)
    attachment = tune(name, module, variant=variant)
    shake(attachment)
    assert not torch.equal(encode(module, side), before)
    attachment.detach()
    assert same(fingerprint(module), plain)
    assert torch.equal(encode(module, side), before)


def test_its_state_makes_another_attachment_the_same(name, tiny_sam):
    attachment = tune(name, tiny_sam, variant="original")
    shake(attachment)
    state, tuned = attachment.state(), encode(tiny_sam)
    attachment.detach()
    other = tune(name, tiny_sam, variant="original")
    assert not torch.equal(encode(tiny_sam), tuned)
    other.load(state)
    assert torch.equal(encode(tiny_sam), tuned)
    assert all(torch.equal(value, state[key]) for key, value in other.state().items())


def test_a_state_of_another_rank_is_refused(name, tiny_sam):
    attachment = tune(name, tiny_sam, rank=2)
    state = attachment.state()
    attachment.detach()
    with pytest.raises(UserError, match=r"^8 tensors are not those of this tuner on this model, such as blocks\."):
        tune(name, tiny_sam, rank=3).load(state)


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_reach_what_trains_and_nothing_else(name, variant, tiny_sam):
    attachment, gradients = backward(tiny_sam, name, shaken_by=0.05, variant=variant)
    trained = attachment.trained()
    assert gradients.keys() <= {id(value) for value in trained.values()}
    # The prompt's own tokens are made in inference mode; what stands for the absence of a mask prompt is not.
    reached = {key: value for key, value in trained.items() if "prompt_encoder." not in key or "no_mask" in key}
    for key, value in reached.items():
        assert gradients[id(value)].abs().max() > 0, key


def test_at_the_start_only_what_b_multiplies_has_a_gradient_of_zero(name, tiny_sam):
    attachment, gradients = backward(tiny_sam, name)
    for key, value in attachment.inserted.items():
        assert (gradients[id(value)].abs().max() > 0) == (not key.endswith(".A")), key


def test_it_runs_under_lean_attention(name, tiny_sam):
    attachment = tune(name, tiny_sam)
    shake(attachment)
    official = encode(tiny_sam)
    with lean_attention(tiny_sam.image_encoder, budget=1):
        lean = encode(tiny_sam)
    torch.testing.assert_close(lean, official, rtol=1e-5, atol=1e-5)
    assert not torch.equal(lean, official)


def test_it_runs_under_autocast_in_the_format_of_the_frozen_product(name, tiny_sam):
    attachment = tune(name, tiny_sam)
    shake(attachment)
    qkv = tiny_sam.image_encoder.blocks[0].attn.qkv
    with torch.autocast("cpu", torch.bfloat16):
        assert qkv(torch.randn(1, 4, 4, 32)).dtype == torch.bfloat16


def test_what_it_adds_is_in_the_mode_of_the_model(name, tiny_sam):
    tune(name, tiny_sam)
    assert not any(module.training for module in tiny_sam.modules())


def test_what_it_adds_is_drawn_from_the_global_generator(name, tiny_sam):
    def drawn(seed):
        torch.manual_seed(seed)
        attachment = tune(name, tiny_sam)
        attachment.detach()
        return attachment.state()["blocks.1.v.A"]

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


def test_names_are_the_same_whatever_package_the_model_is_of(name, model):
    inserted = tune(name, model[0]).inserted
    assert {"blocks.0.q.A", "blocks.0.q.B", "blocks.0.v.A", "blocks.1.v.B"} <= inserted.keys()


def test_a_second_tuner_on_the_first_is_refused(name, tiny_sam):
    tune(name, tiny_sam)
    with pytest.raises(UserError, match=r"^image_encoder\.blocks\.0 has no linear attn\.qkv to tune; [^\n]*$"):
        tune(name, tiny_sam)


def test_an_encoder_without_blocks_is_refused(name, tiny_sam):
    with pytest.raises(UserError, match=r"^the encoder has no blocks [^\n]*$"):
        attach_low_rank(replace(anatomy_of(tiny_sam), blocks={}, qkv={}), partial(LowRank, rank=4), {}, {})


def test_a_model_of_another_kind_is_refused(name):
    with pytest.raises(UserError, match="tuners know segment_anything"):
        tune(name, nn.Linear(2, 2))


def test_a_rank_of_zero_is_refused(name):
    with pytest.raises(UserError, match="field rank"):
        tuner_options(name, {"rank": 0})
