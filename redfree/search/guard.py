"""The guard: a swap is accepted only where its search wins on images that did not choose it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redfree.channels import ChannelMap
from redfree.records.statistics import bootstrap_mean_ci95
from redfree.search.base import Evaluator, Search
from redfree.search.scores import index_matrix

# Whether a swap is accepted, from the mean held-out gain, its standard error, and the lower end of its 95% interval.
RULES: Mapping[str, Callable[[float, float, float], bool]] = {
    "k_fold": lambda mean, _error, _low: mean > 0,
    "one_standard_error": lambda mean, error, _low: mean > error,
    "split_half": lambda _mean, _error, low: low > 0,
}


@dataclass(frozen=True)
class GuardVerdict:
    """The guard's answer.

    Attributes:
        rule: the acceptance rule.
        folds: number of folds.
        accepted: whether the swap is used.
        gain: mean held-out IoU gain over the search images.
        standard_error: of that mean over images.
        gain_ci95: 95% bootstrap interval of that mean.
    """

    rule: str
    folds: int
    accepted: bool
    gain: float
    standard_error: float
    gain_ci95: tuple[float, float]


def fold_images(count: int, folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Splits positions 0..count-1 into seeded folds of almost equal size, each ascending."""
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, folds)]


def cross_validate(
    search: Search, evaluator: Evaluator, folds: int, seed: int, rule: str = "one_standard_error"
) -> GuardVerdict:
    """Repeats the search without each fold in turn and scores what it chose on the fold.

    Every search image is thus scored once with a swap that it had no part in choosing. A rule decides on these gains:

    - `k_fold`: their mean is above 0;
    - `one_standard_error`: their mean exceeds its standard error;
    - `split_half`: with two folds, whatever `folds` says, their paired 95% bootstrap interval is above 0.

    Args:
        search: the search to judge.
        evaluator: scores maps on the search images, and holds no others.
        folds: number of folds, 2 or more.
        seed: seed of the folds.
        rule: one of `RULES`.

    Raises:
        ValueError: there are fewer images than folds, or fewer than 2 folds.
    """
    folds = 2 if rule == "split_half" else folds
    if not 2 <= folds <= len(evaluator):
        raise ValueError(f"{folds} folds cannot be made of {len(evaluator)} images")
    gains = np.zeros(len(evaluator))
    for held_out in fold_images(len(evaluator), folds, seed):
        kept = np.setdiff1d(np.arange(len(evaluator)), held_out)
        result = search(evaluator, kept.tolist())
        pair = index_matrix([ChannelMap(evaluator.channels), result.channel_map])
        scores = evaluator.score(pair, held_out.tolist(), "held-out fold")
        gains[held_out] = scores.values[1] - scores.values[0]
    mean, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    interval = bootstrap_mean_ci95(gains)
    return GuardVerdict(rule, folds, RULES[rule](mean, error, interval[0]), mean, error, interval)
