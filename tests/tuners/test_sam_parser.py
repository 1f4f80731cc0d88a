"""SAM-PARSER's counts, its weights by hand with NumPy's decomposition, its merging, and where it is defined."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from tinyworld import make_model, make_sample
from tunerchecks import after_backward, check_gradients
from tunerworld import encode, fingerprint, meta_vit_b, same, shake, tiny_sam2, tiny_vit, tune

from redfree.errors import UserError
from redfree.models import lean_attention
from redfree.models.loading import untrained_model
from redfree.models.promptable import Encoding
from redfree.models.sam import SamModel
from redfree.tuners.sam_parser import SingularConv

UNUSED = 419_424 + 132_612  # of ViT-B's decoder: the MLPs of the other masks, and the IoU head


@pytest.fixture(params=["sam", "sam2"])
def plain(request, tiny_sam):
    return tiny_sam if request.param == "sam" else tiny_sam2()


@pytest.mark.parametrize(
    ("variant", "declared", "trained"), [("paper", 512, 512), ("original", 4_058_852, 4_058_852 - UNUSED)]
)
def test_counts_on_vit_b(variant, declared, trained):
    attachment = tune("sam-parser", meta_vit_b(), variant=variant)
    assert {name: value.numel() for name, value in attachment.inserted.items()} == {
        "neck.0.singular_values": 256,
        "neck.2.singular_values": 256,
    }
    assert (attachment.declared_count, attachment.trained_count) == (declared, trained)


@pytest.mark.parametrize("size", ["vit_l", "vit_h"])
def test_the_larger_sizes_insert_as_many(size):
    with torch.device("meta"):
        sam = sam_model_registry[size](checkpoint=None)
    assert tune("sam-parser", sam).inserted_count == 512


def test_original_frees_the_decoder_as_the_paper_describes():
    freed = tune("sam-parser", meta_vit_b(), variant="original").freed
    assert {name.split(".")[0] for name in freed} == {"mask_decoder"}


def test_the_convolution_of_sam2_is_the_lateral_one_of_the_level_that_swaps_act_on():
    """Its input is the stage of stride 16, whose map is as large as the embedding."""
    module = tiny_sam2()
    attachment = tune("sam-parser", module)
    (name,) = attachment.inserted
    assert name == "neck.convs.1.conv.singular_values"
    sizes, layer = [], module.image_encoder.neck.convs[1].conv
    layer.register_forward_pre_hook(lambda _layer, arguments: sizes.append(arguments[0].shape[-2:]))
    assert [encode(module).shape[-2:]] == sizes


def test_counts_on_sam2():
    module = untrained_model("sam2.1_hiera_tiny").module
    attachment = tune("sam-parser", module, variant="original")
    assert (attachment.inserted_count, attachment.declared_count) == (256, 256 + 4_215_109)


def test_features_at_the_start_are_sam_s(plain):
    before = encode(plain)
    tune("sam-parser", plain)
    torch.testing.assert_close(encode(plain), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(256, 768, 1), (256, 256, 3), (16, 4, 1)])
def test_weights_at_the_start_are_the_convolution_s(shape):
    rows, columns, side = shape
    conv = torch.nn.Conv2d(columns, rows, side)
    layer = SingularConv(conv)
    assert layer.singular_values.numel() == min(rows, columns * side**2)
    torch.testing.assert_close(layer.weight(), conv.weight, atol=1e-6, rtol=0)


def test_singular_values_are_numpy_s(tiny_sam):
    weight = tiny_sam.image_encoder.neck[2].weight.flatten(1).double().numpy()
    values = tune("sam-parser", tiny_sam).inserted["neck.2.singular_values"]
    np.testing.assert_allclose(values.detach(), np.linalg.svd(weight, compute_uv=False), rtol=1e-6)


@pytest.mark.parametrize("number", [0, 2])
def test_a_tuned_convolution_is_that_of_the_formula(tiny_sam, number):
    conv = tiny_sam.image_encoder.neck[number]
    left, values, right = np.linalg.svd(conv.weight.flatten(1).double().numpy(), full_matrices=False)
    attachment = tune("sam-parser", tiny_sam)
    shake(attachment, 0.3)
    tuned = attachment.inserted[f"neck.{number}.singular_values"].detach().double().numpy()
    assert np.abs(tuned - values).max() > 0.1
    weight = torch.from_numpy(left @ np.diag(tuned) @ right).float().view_as(conv.weight)
    features = torch.randn(2, conv.in_channels, 5, 7)
    expected = F.conv2d(features, weight, None, conv.stride, conv.padding)
    torch.testing.assert_close(tiny_sam.image_encoder.neck[number](features), expected, atol=1e-5, rtol=1e-5)


def test_a_singular_value_may_become_negative(tiny_sam):
    conv, attachment = tiny_sam.image_encoder.neck[0], tune("sam-parser", tiny_sam)
    with torch.no_grad():
        attachment.inserted["neck.0.singular_values"].neg_()
    torch.testing.assert_close(tiny_sam.image_encoder.neck[0].weight(), -conv.weight, atol=1e-6, rtol=0)


def test_nearly_equal_singular_values_are_told_apart():
    """In single precision their vectors are arbitrary, and a trained value would scale another direction elsewhere."""
    left, right = (torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0] for _ in range(2))
    conv = torch.nn.Conv2d(32, 32, 1)
    conv.weight.data = (left @ torch.linspace(1, 1 + 1e-5, 32).double().diag() @ right).float().view(32, 32, 1, 1)
    layer, change = SingularConv(conv), np.linspace(-1, 1, 32)
    layer.singular_values.data += torch.from_numpy(change).float()
    left, values, right = np.linalg.svd(conv.weight.data.flatten(1).double().numpy())
    expected = left @ np.diag(values + change) @ right
    np.testing.assert_allclose(layer.weight().detach().flatten(1), expected, atol=1e-5)


def test_under_autocast_the_weight_is_rounded_once():
    layer, features = SingularConv(torch.nn.Conv2d(256, 256, 1)), torch.randn(1, 256, 4, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert layer.weight().dtype is torch.float32
        torch.testing.assert_close(layer(features), layer.conv(features), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_reach_what_is_declared_and_nothing_else(plain, variant):
    check_gradients(after_backward(plain, "sam-parser", shaken_by=0.05, variant=variant))


def test_the_merged_model_is_a_plain_one_that_computes_the_same(plain):
    keys, modules = list(plain.state_dict()), fingerprint(plain)[1]
    attachment = tune("sam-parser", plain, variant="original")
    start = encode(plain)
    shake(attachment, 0.2)
    tuned, decoder = encode(plain), {name: value.clone() for name, value in attachment.freed.items()}
    attachment.merge()
    assert list(plain.state_dict()) == keys
    assert fingerprint(plain)[1] == modules
    torch.testing.assert_close(encode(plain), tuned, atol=1e-5, rtol=1e-5)
    assert (tuned - start).abs().max() > 0.05
    assert all(torch.equal(plain.get_parameter(name), value) for name, value in decoder.items())
    assert not any(value.requires_grad for value in plain.parameters())


def test_detaching_restores_the_model_bit_for_bit(plain):
    before, features = fingerprint(plain), encode(plain)
    attachment = tune("sam-parser", plain, variant="original")
    assert not same(before, fingerprint(plain))
    shake(attachment)
    attachment.detach()
    assert same(before, fingerprint(plain))
    assert torch.equal(encode(plain), features)


def test_state_and_load_go_round(plain):
    attachment = tune("sam-parser", plain)
    shake(attachment)
    state, features = attachment.state(), encode(plain)
    shake(attachment)
    assert not torch.equal(encode(plain), features)
    attachment.load(state)
    assert torch.equal(encode(plain), features)


def test_masks_follow_and_lean_attention_does_not_matter(tiny_sam, monkeypatch):
    sample, model = make_sample(0), make_model(tiny_sam)
    plain = model.decode(model.encode([sample.image]), [sample.prompt])[0]
    shake(tune("sam-parser", tiny_sam), 0.3)
    official = SamModel("tiny", tiny_sam, "", Encoding(attention="official")).encode([sample.image])
    monkeypatch.setitem(lean_attention.BUDGETS, "cpu", 0)
    features = model.encode([sample.image])
    torch.testing.assert_close(features.maps, official.maps, atol=1e-5, rtol=0)
    assert not torch.allclose(model.decode(features, [sample.prompt])[0], plain, atol=1e-3)


def test_models_without_a_neck_are_refused():
    module = tiny_vit()
    before = fingerprint(module)
    with pytest.raises(UserError, match="sam-parser is defined on models with a neck; choose one of"):
        tune("sam-parser", module)
    assert same(before, fingerprint(module))


def test_a_second_one_is_refused(tiny_sam):
    tune("sam-parser", tiny_sam)
    before = fingerprint(tiny_sam)
    with pytest.raises(UserError, match=r"image_encoder.neck.0: .* not SingularConv; detach what is attached"):
        tune("sam-parser", tiny_sam)
    assert same(before, fingerprint(tiny_sam))
