"""What models compute with SAM-COBOT: as before at the start, the same when merged, as before when detached."""

import pytest
import torch
from tunerworld import encode, fingerprint, same, shake, tiny_eva, tiny_sam2, tiny_vit, tune

from redfree.errors import UserError
from redfree.models.lean_attention import lean_attention

BOTH = pytest.mark.parametrize("flavour", ["lora", "adapter"])
VARIANTS = pytest.mark.parametrize("variant", ["paper", "original"])
SIDES = {tiny_sam2: 64, tiny_vit: 32, tiny_eva: 32}
OTHERS = pytest.mark.parametrize("build", SIDES)


def cobot(module, flavour="lora", **options):
    return tune("sam-cobot", module, flavour=flavour, **options)


@BOTH
@VARIANTS
def test_identity_at_the_start(tiny_sam, flavour, variant):
    before = encode(tiny_sam)
    cobot(tiny_sam, flavour, variant=variant)
    assert torch.equal(encode(tiny_sam), before)


@BOTH
@OTHERS
def test_identity_at_the_start_of_other_models(build, flavour):
    module = build()
    before = encode(module, SIDES[build])
    attachment = cobot(module, flavour)
    assert torch.equal(encode(module, SIDES[build]), before)
    shake(attachment, 0.3)
    assert not torch.allclose(encode(module, SIDES[build]), before)


def test_the_relation_links_blocks(tiny_sam):
    """What one block learns to scale by reaches another through the matrix."""
    attachment = cobot(tiny_sam)
    shake(attachment, 0.1)
    before = encode(tiny_sam)
    with torch.no_grad():
        attachment.inserted["relation.matrix"][0, 3] += 1  # queries of block 0 into values of block 1
    assert not torch.allclose(encode(tiny_sam), before)


@pytest.mark.parametrize("rank", [4, 8])
def test_merged_equals_unmerged(tiny_sam, rank):
    keys, weights = tiny_sam.state_dict().keys(), tiny_sam.image_encoder.blocks[1].attn.qkv.weight.clone()
    attachment = cobot(tiny_sam, rank=rank)
    shake(attachment, 0.3)
    tuned, inserted = encode(tiny_sam), {name: value.detach() for name, value in attachment.inserted.items()}
    attachment.merge()
    torch.testing.assert_close(encode(tiny_sam), tuned, rtol=0, atol=1e-5)
    assert tiny_sam.state_dict().keys() == keys
    merged = tiny_sam.image_encoder.blocks[1].attn.qkv
    assert type(merged) is torch.nn.Linear
    width = weights.shape[1]
    for part, column, start in (("q", 2, 0), ("v", 3, 2 * width)):
        rows = slice(start, start + width)
        expected = weights[rows] + by_hand(inserted, part, column)
        torch.testing.assert_close(merged.weight[rows], expected, rtol=0, atol=1e-5)
    assert torch.equal(merged.weight[width : 2 * width], weights[width : 2 * width])  # keys


def by_hand(inserted, part, column):
    """B K^T diag(CP + gamma) A of block 1, with K from the quaternions' table of products."""
    own = {key: inserted[f"blocks.1.{part}.{key}"] for key in ("A", "B", "link.gamma", "link.head.weight")}
    r, i, j, k = own["link.head.weight"]
    head = torch.vstack([torch.hstack(row) for row in ([r, i, j, k], [-i, r, k, -j], [-j, -k, r, i], [-k, j, -i, r])])
    shared = (inserted["relation.coefficients"] @ inserted["relation.matrix"])[:, column]
    return own["B"] @ head.T @ torch.diag(shared + own["link.gamma"]) @ own["A"]


@OTHERS
def test_merged_equals_unmerged_in_other_models(build):
    module = build()
    keys = module.state_dict().keys()
    attachment = cobot(module)
    shake(attachment, 0.1)
    tuned = encode(module, SIDES[build])
    attachment.merge()
    torch.testing.assert_close(encode(module, SIDES[build]), tuned, rtol=0, atol=1e-5)
    assert module.state_dict().keys() == keys


def test_the_adapter_cannot_be_merged(tiny_sam):
    with pytest.raises(UserError, match="this tuner cannot be merged"):
        cobot(tiny_sam, "adapter").merge()


@BOTH
@VARIANTS
def test_detaching_restores_the_model_bit_for_bit(tiny_sam, flavour, variant):
    before, features = fingerprint(tiny_sam), encode(tiny_sam)
    attachment = cobot(tiny_sam, flavour, variant=variant)
    shake(attachment, 0.3)
    assert not torch.allclose(encode(tiny_sam), features)
    attachment.detach()
    assert same(fingerprint(tiny_sam), before)
    assert torch.equal(encode(tiny_sam), features)


@BOTH
@VARIANTS
def test_a_state_is_taken_over_by_a_fresh_attachment(tiny_sam, flavour, variant):
    attachment = cobot(tiny_sam, flavour, variant=variant)
    shake(attachment, 0.3)
    tuned, state = encode(tiny_sam), attachment.state()
    attachment.detach()
    other = cobot(tiny_sam, flavour, variant=variant)
    assert not torch.allclose(encode(tiny_sam), tuned)
    other.load(state)
    assert torch.equal(encode(tiny_sam), tuned)
    assert other.state().keys() == state.keys()


@BOTH
def test_a_state_of_another_rank_is_refused(tiny_sam, flavour):
    attachment = cobot(tiny_sam, flavour, rank=4)
    state = attachment.state()
    attachment.detach()
    with pytest.raises(UserError, match="not those of this tuner on this model"):
        cobot(tiny_sam, flavour, rank=8).load(state)


def test_dropout_follows_the_mode_of_the_model(tiny_sam):
    attachment = cobot(tiny_sam, "adapter")
    shake(attachment, 0.3)
    calm = encode(tiny_sam)
    assert torch.equal(encode(tiny_sam), calm)
    tiny_sam.train()
    assert not torch.equal(encode(tiny_sam), calm)
    tiny_sam.eval()
    assert torch.equal(encode(tiny_sam), calm)


@BOTH
def test_lean_attention_sees_the_tuner(tiny_sam, flavour):
    shake(cobot(tiny_sam, flavour), 0.3)
    tuned = encode(tiny_sam)
    with lean_attention(tiny_sam.image_encoder, budget=1):
        torch.testing.assert_close(encode(tiny_sam), tuned, rtol=0, atol=1e-5)
