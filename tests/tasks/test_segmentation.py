import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tinyworld import iou_of_logits

from redfree.data.mmseg_lists import import_mmseg
from redfree.tasks.segmentation import METRICS, count_pixels, image_dice, image_iou

SUMMARISE = {metric.name: metric.summarise for metric in METRICS}
MASK_PAIRS = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


@pytest.fixture(scope="module")
def masks():
    """Predictions that resemble their targets, on images of one size, and the counts of each."""
    rng = np.random.default_rng(0)
    targets = rng.random((12, 24, 31)) < rng.uniform(0.05, 0.9, (12, 1, 1))
    predicted = targets ^ (rng.random(targets.shape) < rng.uniform(0.01, 0.6, (12, 1, 1)))
    return predicted, targets, np.array([count_pixels(p, t) for p, t in zip(predicted, targets, strict=True)])


@given(MASK_PAIRS)
def test_counts_are_those_of_a_loop_over_pixels(pair):
    predicted, target = pair
    expected = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for p, t in zip(predicted.ravel().tolist(), target.ravel().tolist(), strict=True):
        expected[p, t] += 1
    assert count_pixels(predicted, target) == tuple(expected.values())
    assert sum(count_pixels(predicted, target)) == target.size


@given(MASK_PAIRS)
def test_dice_is_a_function_of_iou_and_at_least_as_large(pair):
    counts = np.array(count_pixels(*pair))
    iou, dice = image_iou(counts), image_dice(counts)
    assert 0 <= iou <= dice <= 1
    assert dice == pytest.approx(2 * iou / (1 + iou))


@given(MASK_PAIRS)
def test_iou_of_logits_equals_the_counts(pair):
    predicted, target = pair
    logits = torch.where(torch.from_numpy(predicted), 0.5, -0.5)
    both = iou_of_logits(torch.stack([logits, -logits]), torch.from_numpy(target))
    assert both.tolist() == [image_iou(np.array(count_pixels(p, target))) for p in (predicted, ~predicted)]


def test_a_logit_of_zero_is_background():
    assert iou_of_logits(torch.zeros(1, 2, 2), torch.ones(2, 2, dtype=torch.bool)).tolist() == [0]


def test_an_empty_union_scores_zero():
    empty = np.zeros((3, 4), bool)
    counts = np.array([count_pixels(empty, empty)])
    assert counts.tolist() == [[0, 0, 0, 12]]
    assert {name: summarise(counts) for name, summarise in SUMMARISE.items()} == dict.fromkeys(SUMMARISE, 0.0)
    assert iou_of_logits(-torch.ones(1, 3, 4), torch.from_numpy(empty)).tolist() == [0]


def test_draws_are_averaged_with_images(masks):
    counts = np.stack([masks[2], masks[2][::-1] // 2], 1)
    assert SUMMARISE["mIoU"](counts) == pytest.approx(np.mean([SUMMARISE["mIoU"](counts[:, k]) for k in range(2)]))


def test_metrics_differ_where_images_do(masks):
    assert len({round(summarise(masks[2]), 6) for summarise in SUMMARISE.values()}) == len(SUMMARISE)


def test_metrics_equal_torchmetrics(masks):
    from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex
    from torchmetrics.segmentation import DiceScore

    predicted, targets = torch.from_numpy(masks[0]).int(), torch.from_numpy(masks[1]).int()
    pairs = list(zip(predicted, targets, strict=True))
    dice = DiceScore(num_classes=1, average="macro", input_format="one-hot")
    expected = {
        "mIoU": np.mean([float(BinaryJaccardIndex()(p, t)) for p, t in pairs]),
        "mDice": float(dice(predicted[:, None], targets[:, None])),
        "dataset_IoU": float(BinaryJaccardIndex()(predicted, targets)),
        "dataset_Dice": float(BinaryF1Score()(predicted, targets)),
    }
    assert {name: summarise(masks[2]) for name, summarise in SUMMARISE.items()} == pytest.approx(expected, abs=1e-6)


def test_dataset_metrics_equal_mmseg(masks):
    metric = import_mmseg("mmseg.evaluation").IoUMetric
    areas = [
        metric.intersect_and_union(torch.from_numpy(p).long(), torch.from_numpy(t).long(), 2, 255)
        for p, t in zip(*masks[:2], strict=True)
    ]
    totals = [sum(column) for column in zip(*areas, strict=True)]
    metrics = metric.total_area_to_metrics(*totals, metrics=["mIoU", "mDice"])
    assert SUMMARISE["dataset_IoU"](masks[2]) == pytest.approx(metrics["IoU"][1], abs=1e-6)
    assert SUMMARISE["dataset_Dice"](masks[2]) == pytest.approx(metrics["Dice"][1], abs=1e-6)
