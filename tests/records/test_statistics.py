import numpy as np
import pytest
from scipy import stats

from redfree.records.statistics import bootstrap_ci95, bootstrap_mean_ci95


@pytest.fixture
def values():
    return np.random.default_rng(3).beta(4, 2, 80)


def test_the_interval_agrees_with_scipy(values):
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=5).confidence_interval
    # Two sets of 10,000 resamples: their quantiles differ by a few percent of the width.
    width = reference.high - reference.low
    assert bootstrap_mean_ci95(values) == pytest.approx((reference.low, reference.high), abs=0.05 * width)


def test_the_interval_holds_the_mean_and_narrows_with_more_images(values):
    low, high = bootstrap_mean_ci95(values)
    assert low < values.mean() < high
    many_low, many_high = bootstrap_mean_ci95(np.tile(values, 9))
    assert many_high - many_low == pytest.approx((high - low) / 3, rel=0.1)


def test_equal_data_give_equal_intervals(values):
    before = np.random.default_rng(0)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    first = bootstrap_mean_ci95(values)
    np.random.seed(2)  # noqa: NPY002
    assert bootstrap_mean_ci95(values.copy()) == first
    assert before.random() == np.random.default_rng(0).random()


def test_the_general_interval_equals_that_of_the_mean(values):
    counts = (values * 1000).astype(np.int64)
    assert bootstrap_ci95(counts, lambda c: float(c.mean())) == pytest.approx(
        bootstrap_mean_ci95(counts.astype(float)), abs=1e-9
    )


def test_images_are_resampled_whole():
    """Two columns that always sum to 10: resampling rows keeps the sum of their means."""
    first = np.arange(10)
    rows = np.stack([first, 10 - first], 1)
    assert bootstrap_ci95(rows, lambda r: float(r.sum(1).mean())) == (10.0, 10.0)


@pytest.mark.parametrize("constant", [0.0, 0.25, -1.0])
def test_constant_values_have_no_width(constant):
    assert bootstrap_mean_ci95(np.full(7, constant)) == (constant, constant)


def test_one_image_has_no_width():
    assert bootstrap_mean_ci95(np.array([0.5])) == (0.5, 0.5)
