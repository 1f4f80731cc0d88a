"""SAM-Adapter's counts, and its prompts by hand with NumPy's transform."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tunerchecks import after_backward, check_gradients
from tunerworld import encode, fingerprint, meta_vit_b, same, shake, tiny_sam2, tiny_vit, tune

from redfree.errors import UserError
from redfree.tuners.sam_adapter import Options, PromptGenerator, high_pass

UNUSED = 419_424 + 132_612  # of ViT-B's decoder: the MLPs of the other masks, and the IoU head


def noise(seed, batch=1):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tuned(tiny_sam):
    """A SAM, and an adapter of width 8 on it whose every value is random."""
    attachment = tune("sam-adapter", tiny_sam, reduction=4)
    shake(attachment, 0.2)
    return tiny_sam, attachment


@pytest.mark.parametrize(
    ("variant", "declared", "trained"),
    [("paper", 63_312, 63_312), ("original", 4_121_908, 4_121_908 - UNUSED)],
)
def test_counts_on_vit_b(variant, declared, trained):
    attachment = tune("sam-adapter", meta_vit_b(), variant=variant)
    assert attachment.inserted_count == 63_312
    assert (attachment.declared_count, attachment.trained_count) == (declared, trained)


def test_what_the_count_is_made_of():
    attachment = tune("sam-adapter", meta_vit_b())
    counts = dict.fromkeys(("patch_conv", "embedding_generator", "lightweight_mlps", "shared_mlp"), 0)
    for name, value in attachment.inserted.items():
        counts[name.split(".")[1]] += value.numel()
    assert list(counts.values()) == [18_456, 18_456, 7_200, 19_200]


def test_original_frees_the_decoder_and_the_embedding_of_no_mask():
    freed = tune("sam-adapter", meta_vit_b(), variant="original").freed
    outside = {name for name in freed if not name.startswith("mask_decoder.")}
    assert outside == {"prompt_encoder.no_mask_embed.weight"}


def test_the_kernel_is_the_model_s_patch(tiny_sam):
    sam = copy.deepcopy(tiny_sam)
    sam.image_encoder.patch_embed.proj = torch.nn.Conv2d(3, 32, 8, 8)
    attachment = tune("sam-adapter", sam, reduction=4)
    assert attachment.inserted["prompt_generator.patch_conv.weight"].shape == (8, 3, 8, 8)


def numpy_high_pass(image, half):
    """Of one channel (S, S): its spectrum without whole numbers of waves in [-half, half) in both directions."""
    spectrum = np.fft.fft2(image)
    waves = np.rint(np.fft.fftfreq(len(image)) * len(image))
    low = (waves >= -half) & (waves < half)
    spectrum[np.outer(low, low)] = 0
    return np.abs(np.fft.ifft2(spectrum).real)


@pytest.mark.parametrize(("removed_area", "half"), [(0.25, 16), (0.1, 10), (1.0, 32)])
def test_the_high_pass_equals_numpy_s(removed_area, half):
    images = noise(5, batch=2)
    expected = [[numpy_high_pass(channel, half) for channel in image] for image in images.double().numpy()]
    found = high_pass(images, removed_area)
    assert found.dtype is torch.float32
    np.testing.assert_allclose(found, np.array(expected), atol=1e-5)


def waves(down, right):
    """Whole numbers of waves over 1024 x 1024 pixels."""
    place = 2 * torch.pi * torch.arange(1024, dtype=torch.float64) / 1024
    return torch.cos(down * place[:, None] + right * place)[None, None]


@pytest.mark.parametrize(("down", "right"), [(0, 0), (255, 0), (0, 255), (-255, 255), (-256, -256)])
def test_at_1024_pixels_the_centre_of_512_by_512_is_removed(down, right):
    # The square is not symmetric: it holds -256 and not 256, so that half of a wave at its edge is left.
    left = 0.5 if (down, right) == (-256, -256) else 0.0
    torch.testing.assert_close(high_pass(waves(down, right), 0.25), left * waves(down, right).abs(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("down", "right"), [(257, 0), (0, 257), (300, 3), (-400, 500)])
def test_at_1024_pixels_what_lies_outside_the_centre_is_kept(down, right):
    torch.testing.assert_close(high_pass(waves(down, right), 0.25), waves(down, right).abs(), atol=1e-9, rtol=0)


def by_hand(encoder, added, images):
    """The encoder's output, its blocks given what the method adds, from the names and values of the tensors alone."""
    sharp = np.array([[numpy_high_pass(c, 16) for c in image] for image in images.double().numpy()])
    patches = F.unfold(torch.from_numpy(sharp).float(), 16, stride=16).transpose(1, 2)
    high = patches @ added["patch_conv.weight"].flatten(1).T + added["patch_conv.bias"]
    tokens = F.conv2d(images, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, 16).permute(0, 2, 3, 1)
    embedded = tokens @ added["embedding_generator.weight"].T + added["embedding_generator.bias"]
    features = high.view(embedded.shape) + embedded
    tokens = tokens + encoder.pos_embed
    for number, block in enumerate(encoder.blocks):
        own = features @ added[f"lightweight_mlps.{number}.weight"].T + added[f"lightweight_mlps.{number}.bias"]
        tokens = tokens + F.gelu(own) @ added["shared_mlp.weight"].T + added["shared_mlp.bias"]
        tokens = block(tokens)
    return encoder.neck(tokens.permute(0, 3, 1, 2))


def test_the_features_are_those_of_the_formula(tuned):
    sam, attachment = tuned
    plain, images = copy.deepcopy(sam), noise(6, batch=2)
    adapted = sam.image_encoder(images)
    added = {name.removeprefix("prompt_generator."): value.detach() for name, value in attachment.inserted.items()}
    attachment.detach()
    assert (adapted - sam.image_encoder(images)).abs().max() > 0.1, "the comparison must not be of plain features"
    torch.testing.assert_close(adapted, by_hand(sam.image_encoder, added, images), atol=1e-5, rtol=1e-5)
    assert torch.equal(plain.image_encoder(images), adapted), "a copy keeps its own adapter"


def test_it_is_no_identity_at_the_start(tiny_sam):
    before = encode(tiny_sam)
    tune("sam-adapter", tiny_sam)
    assert (encode(tiny_sam) - before).abs().max() > 1e-4, "more than rounding"


def test_weights_are_drawn_as_the_authors_draw_them():
    generator = PromptGenerator(torch.nn.Conv2d(3, 768, 16, 16), 12, Options())
    assert all(not value.any() for name, value in generator.named_parameters() if name.endswith("bias"))
    linear = torch.cat([generator.shared_mlp.weight.flatten(), generator.embedding_generator.weight.flatten()])
    assert linear.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.patch_conv.weight.std().item() == pytest.approx((2 / (24 * 16 * 16)) ** 0.5, rel=0.02)


def test_the_same_seed_draws_the_same_adapter(tiny_sam):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        attachment = tune("sam-adapter", tiny_sam)
        states.append(attachment.state())
        attachment.detach()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("variant", ["paper", "original"])
def test_gradients_reach_what_is_declared_and_nothing_else(tiny_sam, variant):
    check_gradients(after_backward(tiny_sam, "sam-adapter", shaken_by=0.1, variant=variant))


def test_the_neck_stays_frozen(tiny_sam):
    tune("sam-adapter", tiny_sam, variant="original")
    assert not any(value.requires_grad for value in tiny_sam.image_encoder.neck.parameters())


def test_detaching_restores_the_model_bit_for_bit(tiny_sam):
    before, features = fingerprint(tiny_sam), encode(tiny_sam)
    attachment = tune("sam-adapter", tiny_sam, variant="original")
    assert not same(before, fingerprint(tiny_sam))
    shake(attachment)
    attachment.detach()
    assert same(before, fingerprint(tiny_sam))
    assert torch.equal(encode(tiny_sam), features)
    assert not any(value.requires_grad for value in tiny_sam.parameters())


def test_state_and_load_go_round(tuned):
    sam, attachment = tuned
    state, features = attachment.state(), encode(sam)
    shake(attachment)
    assert not torch.equal(encode(sam), features)
    attachment.load(state)
    assert torch.equal(encode(sam), features)


def test_it_cannot_be_merged(tuned):
    with pytest.raises(UserError, match="cannot be merged"):
        tuned[1].merge()


@pytest.mark.parametrize("build", [tiny_sam2, tiny_vit])
def test_other_models_are_refused(build):
    module = build()
    before = fingerprint(module)
    with pytest.raises(UserError, match="sam-adapter is defined on SAM of segment_anything alone"):
        tune("sam-adapter", module)
    assert same(before, fingerprint(module))


def test_a_reduction_beyond_the_width_is_refused(tiny_sam):
    with pytest.raises(UserError, match="width 32 cannot be reduced 33 times; lower reduction"):
        tune("sam-adapter", tiny_sam, reduction=33)


def test_a_second_adapter_is_refused(tuned):
    with pytest.raises(UserError, match="attached to this model already; detach it first"):
        tune("sam-adapter", tuned[0])
