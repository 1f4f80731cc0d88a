import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tinyworld import make_evaluator, make_model, make_sample

from redfree.channels import ChannelMap
from redfree.search.evaluate import resize_mask
from redfree.tasks.loss import sharp_iou_loss

STEP = 1e-4
MAPS = [ChannelMap(16), ChannelMap(16, ((0, 5), (3, 2), (9, 0))), ChannelMap(16, ((1, 4),), (7, 8))]


class Double:
    """The loss of one image by the official decoder in double precision, its sigmoid as wide as it is for a map."""

    def __init__(self, sam, sample, features, frame):
        self.features, self.frame, points = features.double(), frame, torch.tensor(sample.prompt.points)[None]
        scaled = points * torch.tensor([frame.resized[1] / frame.original[1], frame.resized[0] / frame.original[0]])
        sparse, dense = sam.prompt_encoder((scaled, torch.tensor(sample.prompt.labels)[None]), None, None)
        self.fixed = sam.prompt_encoder.get_dense_pe().double(), sparse.double(), dense.double(), False
        self.decoder = copy.deepcopy(sam.mask_decoder).double()
        self.target = resize_mask(sample.mask, frame.resized).double()

    def logits(self, features):
        low = self.decoder(features[None], *self.fixed)[0]
        full = torch.nn.functional.interpolate(low, (64, 64), mode="bilinear", align_corners=False)[0, 0]
        return full[: self.frame.resized[0], : self.frame.resized[1]]

    def mapped(self, index):
        return torch.stack([self.features[j] if j >= 0 else torch.zeros_like(self.features[0]) for j in index])

    def gain(self, index, i, j):
        """By how much the loss falls, per unit of the way from X'_i to X_j."""
        mapped = self.mapped(index)
        width, losses = 0.03 * self.logits(mapped).std(), []
        for step in (STEP, -STEP):
            moved = mapped.clone()
            moved[i] += step * (self.features[j] - mapped[i])
            p = 1 / (1 + torch.exp(-self.logits(moved) / width))
            losses.append(float(1 - (p * self.target).sum() / (p + self.target - p * self.target).sum()))
        return (losses[1] - losses[0]) / (2 * STEP)


@pytest.mark.parametrize("channel_map", MAPS, ids=["identity", "swapped", "zeroed"])
def test_the_screen_is_the_slope_of_the_loss(tiny_sam, channel_map):
    samples = [make_sample(1), make_sample(2, 96, 70, labels=(1, 0)), make_sample(3)]
    evaluator, images = make_evaluator(make_model(tiny_sam), samples), [0, 1]
    screen = evaluator.screen(channel_map, images)
    features = evaluator.features
    doubles = [Double(tiny_sam, samples[d], features.maps[d], features.frames[d]) for d in images]
    rng = np.random.default_rng(0)
    entries = [(0, 5), (5, 0), (7, 7), (1, 1), (4, 8), *rng.integers(0, 16, (25, 2)).tolist()]
    expected = np.array([np.mean([one.gain(channel_map.index(), i, j) for one in doubles]) for i, j in entries])
    found = np.array([screen.gains[i, j] for i, j in entries])
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-4 * np.abs(expected).max())
    assert (screen.gains.shape, screen.decoder_passes) == ((16, 16), 6)
    assert screen.seconds > 0


def test_moving_a_channel_to_where_it_is_gains_nothing(tiny_sam):
    evaluator = make_evaluator(make_model(tiny_sam), [make_sample(1)])
    channel_map = MAPS[1]
    gains = evaluator.screen(channel_map, [0]).gains
    already = [gains[i, j] for i, j in enumerate(channel_map.index())]
    np.testing.assert_allclose(already, 0, atol=1e-5 * np.abs(gains).max())


def test_a_screen_is_the_mean_of_its_images_and_changes_nothing(tiny_sam):
    samples = [make_sample(seed) for seed in range(3)]
    evaluator = make_evaluator(make_model(tiny_sam), samples)
    before = evaluator.features.maps.clone()
    alone = [evaluator.screen(MAPS[2], [d]).gains for d in (0, 2)]
    np.testing.assert_allclose(evaluator.screen(MAPS[2], [0, 2]).gains, np.mean(alone, 0), rtol=1e-4, atol=1e-7)
    assert torch.equal(evaluator.features.maps, before)
    assert all(parameter.grad is None for parameter in tiny_sam.parameters())


def test_the_ledger_counts_a_screen_once(tiny_sam):
    evaluator = make_evaluator(make_model(tiny_sam), [make_sample(seed) for seed in range(2)])
    for channel_map, images, passes in ((MAPS[0], [0, 1], 6), (MAPS[0], [0, 1], 6), (MAPS[1], [0, 1], 12)):
        evaluator.screen(channel_map, images)
        assert evaluator.ledger.passes == passes


LOGITS = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6), elements=st.floats(-8, 8, width=32)
)


@given(LOGITS, st.randoms(use_true_random=False))
def test_the_loss_lies_between_0_and_1_and_ignores_the_scale(values, random):
    target = torch.tensor([[random.random() < 0.5 for _ in row] for row in values])
    logits = torch.from_numpy(values)
    loss = float(sharp_iou_loss(logits, target))
    assert -1e-6 <= loss <= 1 + 1e-6
    if logits.std() > 1e-3:
        for factor in (0.25, 64.0):
            assert float(sharp_iou_loss(factor * logits, target)) == pytest.approx(loss, abs=1e-5)


@given(LOGITS, st.randoms(use_true_random=False))
def test_its_gradient_is_finite(values, random):
    target = torch.tensor([[random.random() < 0.5 for _ in row] for row in values])
    logits = torch.from_numpy(values).requires_grad_()
    assert torch.isfinite(torch.autograd.grad(sharp_iou_loss(logits, target), logits)[0]).all()


@pytest.mark.parametrize("level", [0.0, 1e-9, 3.0, -3.0])
@pytest.mark.parametrize("covered", [0, 5, 64])
def test_constant_logits_have_a_finite_loss_and_gradient(level, covered):
    logits = torch.full((8, 8), level, requires_grad=True)
    loss = sharp_iou_loss(logits, (torch.arange(64) < covered).reshape(8, 8))
    assert 0 <= float(loss.detach()) <= 1
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@pytest.mark.parametrize("covered", [1, 20, 32, 63])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_a_right_mask_costs_nothing_and_a_disjoint_one_everything(covered, scale):
    target = (torch.arange(64) < covered).reshape(8, 8)
    logits = scale * torch.where(target, 1.0, -1.0)
    assert float(sharp_iou_loss(logits, target)) == pytest.approx(0, abs=1e-6)
    assert float(sharp_iou_loss(-logits, target)) == pytest.approx(1, abs=1e-6)


def test_the_loss_is_one_minus_the_iou_of_a_mask_without_doubt():
    rng = np.random.default_rng(0)
    predicted, target = (torch.from_numpy(rng.random((20, 20)) < 0.5) for _ in range(2))
    iou = float((predicted & target).sum() / (predicted | target).sum())
    assert float(sharp_iou_loss(predicted * 2.0 - 1, target)) == pytest.approx(1 - iou, abs=1e-6)


def test_only_pixels_near_the_contour_matter():
    logits = torch.linspace(-1, 1, 101).repeat(3, 1).requires_grad_()
    gradient = torch.autograd.grad(sharp_iou_loss(logits, logits.detach() > 0.3), logits)[0].abs()
    assert gradient[:, 48:53].min() > 100 * gradient[:, [0, 20, 80, 100]].max()


def test_ignored_pixels_do_not_matter_to_the_loss():
    rng = torch.Generator().manual_seed(0)
    logits, target = torch.randn(20, 30, generator=rng), torch.zeros(20, 30, dtype=torch.bool)
    target[5:12, 8:20] = True
    ignore = ~target & (torch.rand(20, 30, generator=rng) < 0.5)
    flipped = torch.where(ignore, -logits, logits)  # keeps the spread of the logits to within their mean
    width = logits.std() / flipped.std()
    one, other = (sharp_iou_loss(values, target, ignore) for values in (logits, flipped * width))
    assert float(one) == pytest.approx(float(other), abs=1e-4)
    assert abs(float(sharp_iou_loss(logits, target)) - float(one)) > 0.05
