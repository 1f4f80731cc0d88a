import numpy as np
import pytest
import torch
from tinyworld import make_sample
from tunerworld import tiny_sam2

from redfree.data.schema import Prompt
from redfree.errors import UserError
from redfree.models import sam as sam_module
from redfree.models.promptable import Encoding
from redfree.models.sam import SamModel
from redfree.models.sam2 import Sam2Model

SIZES = [(64, 64), (90, 50), (40, 120)]
PROMPTS = {
    "point": Prompt(((20.0, 30.0),), (1,)),
    "points": Prompt(((20.0, 30.0), (5.0, 7.0)), (1, 0)),
    "box": Prompt((), (), (10.0, 12.0, 30.0, 34.0)),
}


@pytest.fixture(params=["sam", "sam2", "sam2 before no_mem_embed"])
def build(request, tiny_sam):
    def model(encoding=None):
        if request.param == "sam":
            return SamModel("tiny", tiny_sam, "", encoding)
        torch.manual_seed(0)
        at = "image_embed" if request.param == "sam2" else "before_no_mem_embed"
        return Sam2Model("tiny2", tiny_sam2(), "", encoding, swap_at=at)

    return model


def images():
    return [make_sample(k, *size).image for k, size in enumerate(SIZES)]


def levels(features):
    return (features.maps, *features.high_resolution)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_trainable_features_are_those_of_encode(build, precision):
    model = build(Encoding(batch=3, precision=precision))
    frozen, trainable = model.encode(images()), model.trainable_features(images())
    assert trainable.frames == frozen.frames
    for one, other in zip(levels(trainable), levels(frozen), strict=True):
        torch.testing.assert_close(one, other.clone(), atol=1e-5, rtol=1e-5)
        assert (one.dtype, one.is_inference()) == (torch.float32, False)


def test_the_callers_autocast_holds_in_trainable_features(build):
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        ours = model.trainable_features(images()).maps
    expected = build(Encoding(batch=3, precision="bfloat16")).encode(images()).maps
    torch.testing.assert_close(ours, expected.clone(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, model.encode(images()).maps.clone(), atol=1e-5)


def test_gradients_reach_every_part_that_features_are_computed_with(build):
    model = build()
    model.module.requires_grad_(True)
    features = model.trainable_features(images())
    sum(level.square().sum() for level in levels(features)).backward()
    reached = {name for name, value in model.module.named_parameters() if value.grad is not None and value.grad.any()}
    below = tuple(f"{part}." for part in model.feature_parts)
    assert all(f"{name}.".startswith(below) for name in reached)
    assert all(any(f"{name}.".startswith(part) for name in reached) for part in below if part != "no_mem_embed.")
    assert ("no_mem_embed" in reached) is (getattr(model, "swap_at", None) == "image_embed")


def test_attention_is_the_official_one_where_gradients_flow(tiny_sam, monkeypatch):
    used = []
    monkeypatch.setattr(sam_module, "lean_attention", lambda _: used.append(1) or sam_module.nullcontext())
    model = SamModel("tiny", tiny_sam, "")
    model.trainable_features(images())
    assert not used, "lean attention takes no gradient of relative positions"
    model.encode(images())
    assert used


def test_an_image_that_is_too_thin_is_refused(build):
    with pytest.raises(UserError, match="too thin"):
        build().trainable_features([np.zeros((1, 50, 3), np.uint8)])


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_trainable_tokens_are_the_prompt_tokens_and_carry_gradients(build, prompt):
    model = build()
    frame = model.encode(images()[:1]).frames[0]
    kept, tokens = model.prompt_tokens(prompt, frame), model.trainable_tokens(prompt, frame)
    assert (kept.is_inference(), tokens.is_inference(), tokens.requires_grad) == (True, False, False)
    assert torch.equal(tokens, kept)
    model.module.requires_grad_(True)
    model.trainable_tokens(prompt, frame).square().sum().backward()
    moved = {name for name, value in model.module.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved
    assert all("prompt_encoder.point_embeddings" in name or "not_a_point" in name for name in moved)


def test_trainable_logits_are_of_the_weights_of_the_moment(build):
    model = build()
    features = model.trainable_features(images()[:1])
    tokens = model.trainable_tokens(PROMPTS["point"], features.frames[0])
    before = model.decode_maps(features, tokens)
    assert torch.equal(model.trainable_logits(features, tokens), before)
    decoder = "mask_decoder" if isinstance(model, SamModel) else "sam_mask_decoder"
    with torch.no_grad():
        model.module.get_parameter(f"{decoder}.mask_tokens.weight").neg_()
    after = model.trainable_logits(features, tokens)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(model.decode_maps(features, tokens), before), "what was kept is still the old"
    model.weights_changed()
    assert torch.equal(model.decode_maps(features, tokens), after)


def test_shared_decoding_forgets_old_weights_too(build):
    model, index = build(), torch.arange(16)[None].clone()
    index[0, 3] = 5
    features = model.encode(images()[:1])
    tokens = model.prompt_tokens(PROMPTS["point"], features.frames[0])
    before = model.swap_decoder(features, tokens)(index)
    with torch.no_grad():
        for value in model.module.parameters():
            value.mul_(1.1)
    model.weights_changed()
    after, expected = (decoder(features, tokens)(index) for decoder in (model.swap_decoder, model.map_decoder))
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


def test_gradients_flow_through_the_single_mask_of_sam2_that_chooses_among_several():
    model = Sam2Model("tiny2", tiny_sam2(), "")
    model.sam2.sam_mask_decoder.dynamic_multimask_via_stability = True
    assert model.post_processes
    features = model.trainable_features(images()[:1])
    tokens = model.trainable_tokens(PROMPTS["point"], features.frames[0])
    chosen = model.trainable_logits(features, tokens)
    model.sam2.sam_mask_decoder.dynamic_multimask_via_stability = False
    assert torch.equal(chosen, model.decode_maps(features, tokens))
