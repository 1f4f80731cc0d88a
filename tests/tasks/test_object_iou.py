import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redfree.tasks.object_iou import OBJECT_MIOU, metrics_of, numbered, object_iou
from redfree.tasks.segmentation import METRICS, count_pixels, image_iou


def as_the_owner(masks, objects):
    """`eval_mioU.py` of PerSeg's owner, by its definition: sums over an object's images, then the mean over objects."""
    ious = []
    for name in sorted(set(objects)):
        intersection = union = 0
        for (predicted, target), shown in zip(masks, objects, strict=True):
            if shown == name:
                intersection += np.logical_and(predicted, target).sum()
                union += np.logical_or(predicted, target).sum()
        ious.append(intersection / (union + 1e-10))
    return sum(ious) / len(ious)


@given(st.lists(st.sampled_from(["cat", "cat2", "backpack"]), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_is_the_owners_definition(objects, seed):
    rng = np.random.default_rng(seed)
    masks = [(rng.random((6, 7)) < rng.random(), rng.random((6, 7)) < rng.random()) for _ in objects]
    counts = np.array([count_pixels(*pair) for pair in masks])
    assert object_iou(counts, objects) == pytest.approx(as_the_owner(masks, objects), abs=1e-9)


def test_is_not_the_naive_mean_over_images():
    counts = np.array([[90, 5, 5, 0], [1, 9, 0, 90], [20, 0, 20, 60]])
    assert object_iou(counts, ["cat", "cat", "dog"]) == pytest.approx((91 / 110 + 0.5) / 2)
    assert image_iou(counts).mean() == pytest.approx((0.9 + 0.1 + 0.5) / 3)


def test_every_object_weighs_the_same():
    counts = np.array([[1, 0, 0, 9]] * 9 + [[0, 1, 0, 9]])
    assert object_iou(counts, ["cat"] * 9 + ["dog"]) == 0.5


def test_an_empty_union_scores_zero():
    assert object_iou(np.array([[0, 0, 0, 4], [2, 0, 0, 2]]), ["cat", "dog"]) == 0.5


@pytest.mark.parametrize("objects", [[], ["cat"], ["cat"] * 3])
def test_one_name_an_image(objects):
    with pytest.raises(ValueError, match="pass one name an image"):
        object_iou(np.ones((2, 4), np.int64), objects)
    with pytest.raises(ValueError, match="pass one name an image"):
        object_iou(np.ones((0, 4), np.int64), [])


class TestOverDraws:
    IDS = ("dog/01", "cat/01", "dog/02")

    def counts(self, draws):
        """(images, draws, 4)."""
        return np.random.default_rng(0).integers(1, 50, (len(self.IDS), draws, 4))

    @pytest.mark.parametrize("draws", [1, 3])
    def test_is_the_mean_over_draws(self, draws):
        counts = self.counts(draws)
        expected = [object_iou(counts[:, draw], ["dog", "cat", "dog"]) for draw in range(draws)]
        assert OBJECT_MIOU.summarise(numbered(counts, self.IDS)) == pytest.approx(np.mean(expected))

    def test_images_that_a_bootstrap_draws_keep_their_objects(self):
        counts = self.counts(2)
        chosen = [2, 2, 1, 0]
        resampled = numbered(counts, self.IDS)[chosen]
        alone = numbered(counts[chosen], [self.IDS[index] for index in chosen])
        assert OBJECT_MIOU.summarise(resampled) == pytest.approx(OBJECT_MIOU.summarise(alone))

    def test_counts_are_left_as_they_are(self):
        counts = self.counts(2)
        found = numbered(counts, self.IDS)
        assert found.shape == (3, 2, 5)
        assert np.array_equal(found[..., :4], counts)
        assert [set(found[image, :, 4]) for image in range(3)] == [{1}, {0}, {1}]


def test_is_a_metric_of_perseg_alone():
    assert metrics_of("perseg") == (*METRICS, OBJECT_MIOU)
    assert metrics_of("isic2016") == metrics_of("procedural/natural") == METRICS
