"""Bootstrap intervals over images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_SEED = 20_260_101


def bootstrap_ci95(
    per_image: NDArray[np.int64], summarise: Callable[[NDArray[np.int64]], float]
) -> tuple[float, float]:
    """95% percentile bootstrap interval of any summary of images.

    Args:
        per_image: values with images along axis 0.
        summarise: maps resampled images to one number.

    Returns:
        The 2.5% and 97.5% quantiles over a fixed, seeded set of resamples, so that equal data give equal intervals.
    """
    rng = np.random.default_rng(_SEED)
    draws = rng.integers(len(per_image), size=(RESAMPLES, len(per_image)))
    low, high = np.quantile([summarise(per_image[draw]) for draw in draws], [0.025, 0.975])
    return float(low), float(high)


def bootstrap_mean_ci95(values: NDArray[np.float64]) -> tuple[float, float]:
    """95% percentile bootstrap interval of a mean over images, as `bootstrap_ci95` but vectorised.

    Args:
        values: (images,) scores, or paired differences of two methods on the same images.
    """
    rng = np.random.default_rng(_SEED)
    draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)
