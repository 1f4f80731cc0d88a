import numpy as np
import pytest
from tinyworld import RiggedEvaluator, make_evaluator, make_model, make_sample

from redfree.channels import ChannelMap
from redfree.search.base import SearchResult, TraceStep
from redfree.search.exhaustive import ExhaustiveSearch
from redfree.search.guard import cross_validate, fold_images

IMAGES = 20


class SpySearch:
    """Marks the images it was given: it zeroes the channels of their numbers. Scores by the map are thus of memory."""

    def __init__(self):
        self.given = []

    def __call__(self, evaluator, images):
        self.given.append(list(images))
        trace = (TraceStep("candidates", 7, 7 * len(images), 1.5, 0.5),)
        chosen = ChannelMap.zero(evaluator.channels, images)
        return SearchResult(chosen, (), 0.5, 0.5, 0.5, trace)


def jitter(d):
    return 0.02 * ((d * 7) % IMAGES) / IMAGES


def memorised(index, d):
    """An image of the search gains; any other loses."""
    return 0.5 + (0.3 if index[d] < 0 else -0.05 if -1 in index else 0.0) + jitter(d) * (-1 in index)


def helpful(index, d):
    return 0.5 + (0.02 + jitter(d) if -1 in index else 0.0)


def judge(value, folds=5, seed=0, images=IMAGES):
    spy, evaluator = SpySearch(), RiggedEvaluator(IMAGES, images, value)
    return cross_validate(spy, evaluator, folds, seed), spy, evaluator


@pytest.mark.parametrize(("count", "folds"), [(20, 5), (7, 2), (7, 7), (50, 5), (11, 3)])
def test_folds_are_disjoint_complete_and_even(count, folds):
    parts = fold_images(count, folds, 0)
    assert len(parts) == folds
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)


def test_folds_are_seeded():
    first, again, other = (np.concatenate(fold_images(20, 5, seed)).tolist() for seed in (3, 3, 4))
    assert first == again != other
    assert first != list(range(20))


def test_the_search_never_sees_the_fold_that_it_is_scored_on():
    _, spy, evaluator = judge(helpful)
    held_out = [images for label, _, images in evaluator.asked if label == "held-out fold"]
    assert len(spy.given) == len(held_out) == 5
    for given, held in zip(spy.given, held_out, strict=True):
        assert sorted([*given, *held]) == list(range(IMAGES))
    assert sorted(d for held in held_out for d in held) == list(range(IMAGES))


def test_a_search_that_over_fits_is_rejected():
    verdict, _, _ = judge(memorised)
    assert not verdict.accepted
    assert verdict.gain == pytest.approx(np.mean([-0.05 + jitter(d) for d in range(IMAGES)]))
    assert memorised([-1] * IMAGES, 0) > memorised(list(range(IMAGES)), 0), "in sample it must look like a gain"


def test_a_search_that_helps_is_accepted():
    verdict, _, _ = judge(helpful)
    assert verdict.accepted
    assert verdict.gain_ci95[0] > 0


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_the_verdict_is_the_one_standard_error_rule(scale):
    gains = np.random.default_rng(1).normal(0.02 * scale, 0.05, IMAGES)
    verdict, _, _ = judge(lambda index, d: 0.5 + (gains[d] if -1 in index else 0))
    error = np.sqrt(((gains - gains.mean()) ** 2).sum() / (IMAGES - 1)) / np.sqrt(IMAGES)
    assert verdict.gain == pytest.approx(gains.mean())
    assert verdict.standard_error == pytest.approx(error)
    assert verdict.accepted == (gains.mean() > error)
    half = 1.96 * error
    assert verdict.gain_ci95 == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.2 * half)
    assert (verdict.rule, verdict.folds) == ("one_standard_error", 5)


@pytest.mark.parametrize("rule", ["k_fold", "one_standard_error", "split_half"])
@pytest.mark.parametrize("over", ["error", "zero", "nothing", "interval"])
def test_rules_differ_in_how_far_above_zero_the_gain_must_be(rule, over):
    noise = np.random.default_rng(3).normal(0, 0.05, IMAGES)
    noise -= noise.mean()
    error = noise.std(ddof=1) / np.sqrt(IMAGES)
    mean = {"nothing": -0.1, "zero": 0.5, "error": 1.2, "interval": 3}[over] * error
    verdict = cross_validate(
        SpySearch(), RiggedEvaluator(IMAGES, IMAGES, lambda i, d: (noise[d] + mean) * (-1 in i)), 5, 0, rule
    )
    accepting = {"nothing": [], "zero": ["k_fold"], "error": ["k_fold", "one_standard_error"], "interval": [rule]}
    assert verdict.accepted == (rule in accepting[over])
    assert (verdict.rule, verdict.folds) == (rule, 2 if rule == "split_half" else 5)


def test_the_rule_can_go_either_way():
    table = np.random.default_rng(2).normal(0, 1, (20, IMAGES))
    verdicts = {judge(lambda index, d, row=row: row[d] * (-1 in index))[0].accepted for row in table}
    assert verdicts == {True, False}


def test_no_gain_at_all_is_rejected():
    verdict, _, _ = judge(lambda _index, _d: 0.5)
    assert (verdict.accepted, verdict.gain, verdict.standard_error) == (False, 0, 0)


@pytest.mark.parametrize(("images", "folds"), [(4, 5), (4, 1), (1, 2), (4, 0)])
def test_impossible_folds(images, folds):
    with pytest.raises(ValueError, match="folds cannot be made"):
        judge(helpful, folds, images=images)


def test_the_guard_around_the_real_search_equals_a_plain_loop(tiny_sam):
    evaluator = make_evaluator(make_model(tiny_sam), [make_sample(seed) for seed in range(4)])
    search = ExhaustiveSearch(2)
    verdict = cross_validate(search, evaluator, 2, seed=5)
    gains = {}
    for held_out in fold_images(4, 2, 5):
        kept = [d for d in range(4) if d not in held_out]
        index = search(evaluator, kept).channel_map.index()
        for d in held_out.tolist():
            scores = evaluator.score(np.array([list(range(16)), index], np.int16), [d]).values[:, 0]
            gains[d] = scores[1] - scores[0]
    assert verdict.gain == pytest.approx(np.mean(list(gains.values())))
    assert verdict.gain != 0
