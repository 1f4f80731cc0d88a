import pytest
import torch
from tunerchecks import after_backward, check_gradients
from tunerworld import meta_vit_b, tiny_eva, tiny_sam2, tiny_vit, tune

# Of a block: two norms, qkv, proj, lin1, lin2. Then the patch embedding and the neck's two norms.
ENCODER = 12 * (2 * 768 + 3 * 768 + 768 + 4 * 768 + 768) + 768 + 2 * 256


@pytest.mark.parametrize(("variant", "count"), [("paper", ENCODER), ("original", ENCODER + 4_058_340)])
def test_counts_on_vit_b(variant, count):
    attachment = tune("bitfit", meta_vit_b(), variant=variant)
    assert (attachment.inserted_count, attachment.declared_count) == (0, count)


def test_what_is_freed_in_a_block_of_sam(tiny_sam):
    prefix = "image_encoder.blocks.1."
    found = {name.removeprefix(prefix) for name in tune("bitfit", tiny_sam).freed if name.startswith(prefix)}
    assert found == {f"{layer}.bias" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")}


def test_original_trains_the_task_s_own_layers_whole(tiny_sam):
    freed = tune("bitfit", tiny_sam, variant="original").freed
    decoder = {f"mask_decoder.{name}" for name, _ in tiny_sam.mask_decoder.named_parameters()}
    assert {name for name in freed if not name.startswith("image_encoder.")} == decoder


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients(tiny_sam, variant):
    check_gradients(after_backward(tiny_sam, "bitfit", variant=variant))


def test_gradients_in_sam2():
    check_gradients(after_backward(tiny_sam2(), "bitfit"))


def test_biases_of_queries_and_values_that_have_names_of_their_own():
    eva = tiny_eva()
    attachment = tune("bitfit", eva)
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.attn.proj.bias"} <= set(attachment.freed)
    eva(torch.randn(1, 3, 32, 32)).square().sum().backward()
    check_gradients(attachment)


def test_a_model_that_gives_tokens_trains_the_same_in_both_variants():
    vit = tiny_vit()
    assert tune("bitfit", vit, variant="original").freed.keys() == tune("bitfit", vit).freed.keys()
