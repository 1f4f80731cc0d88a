import numpy as np
import pytest
import torch

from redfree.tasks.loss import dice_bce_loss


def terms(logits, target, ignore=None):
    """Dice and cross-entropy of one mask, pixel by pixel in float64."""
    overlap = squares = entropy = count = 0.0
    for index in np.ndindex(logits.shape):
        if ignore is not None and ignore[index]:
            continue
        p, t = 1 / (1 + np.exp(-float(logits[index]))), float(target[index])
        overlap, squares, count = overlap + p * t, squares + p**2 + t**2, count + 1
        entropy -= t * np.log(p) + (1 - t) * np.log(1 - p)
    return 1 - (2 * overlap + 1e-5) / (squares + 1e-5), entropy / count


def case(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target, ignore = (torch.rand(shape, generator=generator) < share for share in (0.3, 0.2))
    return logits, target, ignore & ~target


@pytest.mark.parametrize("ignores", [False, True], ids=["all pixels", "ignored pixels"])
def test_it_is_the_sum_of_the_formulas(ignores):
    logits, target, ignore = case((9, 13))
    expected = sum(terms(logits, target, ignore if ignores else None))
    assert dice_bce_loss(logits, target, ignore if ignores else None).item() == pytest.approx(expected, rel=1e-9)


def test_a_batch_is_the_mean_of_its_masks():
    logits, target, ignore = case((3, 9, 13))
    alone = [dice_bce_loss(*one) for one in zip(logits, target, ignore, strict=True)]
    torch.testing.assert_close(dice_bce_loss(logits, target, ignore), torch.stack(alone).mean())
    assert len({round(loss.item(), 6) for loss in alone}) == 3


def test_cross_entropy_counts_for_a_single_channel_where_a_softmax_over_it_gives_zero():
    logits, target, _ = case((9, 13))
    dice, entropy = terms(logits, target)
    softmax = torch.nn.functional.cross_entropy(logits[None, None], target[None, None].double())
    assert softmax == 0, "the trap"
    assert dice_bce_loss(logits, target).item() - dice == pytest.approx(entropy, rel=1e-9)
    assert entropy > 0.1


def test_squares_are_of_the_predictions():
    logits, target = torch.zeros(2, 2), torch.tensor([[True, False], [False, False]])
    # p = 1/2 everywhere: Dice 1 - 2 * 0.5 / (4 * 0.25 + 1); without squares it were 1 - 1 / (2 + 1).
    assert dice_bce_loss(logits, target).item() == pytest.approx(1 - 1 / 2 + np.log(2), abs=1e-5)


def test_ignored_pixels_take_no_gradient_and_change_nothing():
    logits, target, ignore = case((9, 13))
    other = torch.where(ignore, -50.0, logits).requires_grad_()
    loss = dice_bce_loss(other, target, ignore)
    assert loss == dice_bce_loss(logits, target, ignore)
    loss.backward()
    assert torch.equal(other.grad == 0, ignore)


def test_a_mask_without_counted_pixels_costs_nothing():
    logits, target, _ = case((4, 4))
    assert dice_bce_loss(logits, torch.zeros_like(target), torch.ones_like(target)) == 0


def test_it_falls_to_zero_as_the_mask_becomes_right():
    _, target, _ = case((9, 13))
    losses = [dice_bce_loss(scale * (2.0 * target - 1), target).item() for scale in (-5, 0, 1, 5, 50)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-6)
