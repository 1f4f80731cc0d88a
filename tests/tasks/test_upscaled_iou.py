import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tinyworld import iou_of_logits

from redfree.tasks.segmentation import count_pixels
from redfree.tasks.upscaled_iou import UpscaledTarget

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def upscaled(logits, target, scale):
    """What the class avoids: (B, H, W) logits upscaled and cropped to the target."""
    size = (scale * logits.shape[1], scale * logits.shape[2])
    full = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return full[:, : target.shape[0], : target.shape[1]]


def assert_equal_to_upscaling(logits, target, scale):
    reference = upscaled(logits, target, scale)
    prepared = UpscaledTarget.of(target, tuple(logits.shape[1:]), scale)
    expected = [count_pixels(mask, target.cpu().numpy())[:2] for mask in (reference > 0).cpu().numpy()]
    assert prepared.counts(logits).tolist() == [[tp, tp + fp] for tp, fp in expected]
    assert prepared.iou(logits).tolist() == iou_of_logits(reference, target).tolist()


@st.composite
def whole_logits(draw, scales):
    """Whole-valued logits (B, h, w) of which some are mostly of one sign, a target of any crop, and a scale."""
    scale = draw(st.sampled_from(scales))
    height, width, batch = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    crop = draw(st.integers(1, scale * height)), draw(st.integers(1, scale * width))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.integers(-3, 4, (batch, height, width)) + rng.integers(-3, 4, (batch, 1, 1))
    return torch.from_numpy(logits).float(), torch.from_numpy(rng.random(crop) < rng.random()), scale


def smooth_logits(maps, side, seed):
    """Logits (maps, side, side) whose upscaling by 4 is exact in float32, and nowhere nearer to zero than 0.0009."""
    noise = torch.randn(maps, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)[:, 0]
    return (64 * smooth).round() + 2**-10


@settings(deadline=None, max_examples=200)
@given(whole_logits([1, 2, 3, 4, 5]))
def test_counts_and_iou_are_those_of_upscaled_logits(case):
    logits, target, scale = case
    # A weighted mean of whole numbers is a multiple of 1 / (2 s) ** 2, at least 1 / 100: none comes near -0.001, so
    # that rounding, which differs, decides nothing.
    assert upscaled(logits + 0.001, target, scale).abs().min() > 1e-5
    assert_equal_to_upscaling(logits + 0.001, target, scale)


@settings(deadline=None, max_examples=100)
@given(whole_logits([1, 2, 4]))
def test_interpolated_zeros_are_background(case):
    # Exact, since the weights are binary fractions: zeros, which whole numbers of both signs often give, are no ties.
    assert_equal_to_upscaling(*case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("crop", [(192, 192), (192, 71), (86, 192), (1, 1), (191, 189)])
def test_smooth_maps_of_cropped_images(crop, device):
    logits, target = smooth_logits(6, 48, 0), (smooth_logits(1, 192, 1)[0] > 0)[: crop[0], : crop[1]]
    assert upscaled(logits, target, 4).abs().min() > 0.0009
    assert_equal_to_upscaling(logits.to(device), target.to(device), 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_other_precision(dtype):
    logits, target = torch.tensor([[[3.0, -1.0], [-2.0, 1.0]]]), torch.eye(8, dtype=torch.bool)
    prepared = UpscaledTarget.of(target, (2, 2), 4)
    assert prepared.counts(logits.to(dtype)).tolist() == prepared.counts(logits).tolist()


def test_uniform_maps_mark_everything_or_nothing():
    target = torch.arange(7 * 10).view(7, 10) % 4 == 0
    prepared = UpscaledTarget.of(target, (3, 4), 3)
    logits = torch.ones(1, 3, 4) * torch.tensor([2.0, -2.0, 0.0])[:, None, None]
    assert prepared.counts(logits).tolist() == [[18, 70], [0, 0], [0, 0]]
    assert prepared.iou(logits).tolist() == [18 / 70, 0, 0]


def test_an_empty_target_scores_zero_also_where_the_union_is_empty():
    prepared = UpscaledTarget.of(torch.zeros(8, 8, dtype=torch.bool), (2, 2), 4)
    logits = torch.tensor([[[1.0, -1], [-1, -1]], [[-1.0, -1], [-1, -1]]])
    # A corner of 1 among -1 marks the pixels in which its weight is above a half.
    line = [1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0]
    marked = sum(x * y > 0.5 for x in line for y in line)
    assert prepared.counts(logits).tolist() == [[0, marked], [0, 0]]
    assert prepared.iou(logits).tolist() == [0, 0]


def test_no_maps_give_no_scores():
    prepared = UpscaledTarget.of(torch.ones(4, 4, dtype=torch.bool), (2, 2), 2)
    assert prepared.iou(torch.zeros(0, 2, 2)).shape == (0,)


def test_logits_that_require_gradients_are_scored():
    prepared = UpscaledTarget.of(torch.ones(4, 4, dtype=torch.bool), (2, 2), 2)
    logits = torch.tensor([[[3.0, -1.0], [-2.0, 1.0]]])
    assert prepared.iou(logits.clone().requires_grad_()).tolist() == prepared.iou(logits).tolist()


@pytest.mark.parametrize("shape", [(9, 12), (8, 13)])
def test_a_target_larger_than_the_upscaled_logits_is_refused(shape):
    line = rf"^the target is \({shape[0]}, {shape[1]}\), larger than the upscaled logits, \(8, 12\)$"
    with pytest.raises(ValueError, match=line):
        UpscaledTarget.of(torch.ones(shape, dtype=torch.bool), (2, 3), 4)


@pytest.mark.parametrize("scale", [0, -1])
def test_a_scale_below_one_is_refused(scale):
    with pytest.raises(ValueError, match=f"^the scale is {scale}, but must be at least 1$"):
        UpscaledTarget.of(torch.ones(1, 1, dtype=torch.bool), (2, 3), scale)


def test_logits_of_another_size_are_refused():
    prepared = UpscaledTarget.of(torch.ones(4, 6, dtype=torch.bool), (2, 3), 2)
    with pytest.raises(ValueError, match=r"^the logits are \(3, 2\), but the target is for \(2, 3\)$"):
        prepared.iou(torch.zeros(1, 3, 2))


@settings(deadline=None, max_examples=100)
@given(whole_logits([1, 2, 3, 4]), st.integers(0, 2**32 - 1))
def test_ignored_pixels_are_those_that_brute_force_leaves_out(case, seed):
    logits, target, scale = case
    ignore = torch.from_numpy(np.random.default_rng(seed).random(target.shape) < 0.4) & ~target
    prepared = UpscaledTarget.of(target, tuple(logits.shape[1:]), scale, ignore)
    masks = (upscaled(logits + 0.001, target, scale) > 0).numpy()
    expected = [count_pixels(mask, target.numpy(), ignore.numpy()) for mask in masks]
    assert prepared.counts(logits + 0.001).tolist() == [[tp, tp + fp] for tp, fp, _, _ in expected]
    unions = [max(1, tp + fp + fn) for tp, fp, fn, _ in expected]
    assert prepared.iou(logits + 0.001).tolist() == [tp / u for (tp, _, _, _), u in zip(expected, unions, strict=True)]
