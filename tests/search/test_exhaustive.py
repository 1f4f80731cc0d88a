from itertools import combinations, permutations

import numpy as np
import pytest
from tinyworld import RiggedEvaluator, Stock, make_evaluator, make_model, make_sample, plain_iou

from redfree.channels import ChannelMap
from redfree.search.exhaustive import ExhaustiveSearch
from redfree.search.subsets import ZERO, subsets, top_candidates

C, N = 16, 4


class BruteForce:
    """The paper's search spelled out on the official predictor, with nothing taken from the package."""

    def __init__(self, sam, samples):
        self.stocks, self.known = [Stock(sam, sample) for sample in samples], {}

    def mean_iou(self, index):
        key = tuple(index)
        if key not in self.known:
            ious = [plain_iou(stock(key) > 0, stock.sample.mask) for stock in self.stocks]
            self.known[key] = float(np.mean(ious))
        return self.known[key]

    @staticmethod
    def index(chosen, sequential):
        index = list(range(C))
        for i, j in chosen:
            index[i] = j if j < 0 else index[j] if sequential else j
        return index

    def search(self, candidates, sequential=False):
        ranked = sorted(candidates, key=lambda pair: -self.mean_iou(self.index([pair], sequential)))
        top = []
        for pair in ranked:
            if len(top) < N and pair[0] not in [i for i, _ in top]:
                top.append(pair)
        best, best_score = None, -1.0
        for size in range(1, N + 1):
            for subset in combinations(top, size):
                score = self.mean_iou(self.index(subset, sequential))
                if score > best_score:
                    best, best_score = self.index(subset, sequential), score
        return tuple(top), best, best_score, self.mean_iou(self.index(top[:1], sequential))


@pytest.fixture
def samples():
    return [make_sample(seed) for seed in range(2)]


@pytest.mark.parametrize(
    "search",
    [ExhaustiveSearch(N), ExhaustiveSearch(N, "sequential"), ExhaustiveSearch(N, zero=True)],
    ids=["simultaneous", "sequential", "zero"],
)
def test_the_result_equals_brute_force(tiny_sam, samples, search):
    brute = BruteForce(tiny_sam, samples)
    candidates = [(c, ZERO) for c in range(C)] if search.zero else list(permutations(range(C), 2))
    top, index, score, single = brute.search(candidates, search.semantics == "sequential")
    found = search(make_evaluator(make_model(tiny_sam), samples), range(2))
    assert found.top == top
    assert found.channel_map.index() == index
    assert found.search_score == pytest.approx(score, abs=1e-12)
    assert found.best_single_score == pytest.approx(single, abs=1e-12)
    assert found.baseline_score == pytest.approx(brute.mean_iou(range(C)), abs=1e-12)
    assert found.search_score >= found.best_single_score > found.baseline_score
    counted = [(step.stage, step.evaluations, step.decoder_passes) for step in found.trace]
    amounts = {"identity": 1, "candidates": len(candidates), "subsets": 2**N - 1 - N}
    assert counted == [(stage, amount, 2 * amount) for stage, amount in amounts.items()]


def test_only_the_images_given_choose(tiny_sam, samples):
    evaluator = make_evaluator(make_model(tiny_sam), samples)
    alone = make_evaluator(make_model(tiny_sam), samples[1:])
    found, expected = ExhaustiveSearch(2)(evaluator, [1]), ExhaustiveSearch(2)(alone, [0])
    assert (found.channel_map, found.search_score) == (expected.channel_map, expected.search_score)
    assert found.channel_map != ExhaustiveSearch(2)(evaluator, [0]).channel_map


def test_of_equal_subsets_the_smallest_and_first_is_chosen():
    found = ExhaustiveSearch(3)(RiggedEvaluator(4, 2, lambda _index, _d: 0.5), range(2))
    assert found.top == ((0, 1), (1, 0), (2, 0))
    assert found.channel_map == ChannelMap(4, ((0, 1),))


def test_a_larger_subset_wins_only_where_it_scores_more():
    def value(index, _d):
        return 0.5 + 0.1 * (index[0] == 2) + 0.05 * (index[3] == 1) - 0.2 * (index[1] != 1)

    found = ExhaustiveSearch(3)(RiggedEvaluator(4, 1, value), range(1))
    assert found.top[:2] == ((0, 2), (3, 1))
    assert found.channel_map == ChannelMap(4, ((0, 2), (3, 1)))
    assert (found.baseline_score, found.best_single_score) == (0.5, 0.6)
    assert found.search_score == pytest.approx(0.65)


def test_semantics_differ_where_a_pair_reads_what_another_wrote():
    values = {(1, 1, 2, 3): 0.9, (0, 1, 0, 3): 0.8, (1, 1, 1, 3): 1.0, (1, 1, 0, 3): 0.7}
    evaluator = RiggedEvaluator(4, 1, lambda index, _d: values.get(tuple(index), 0.0))
    assert ExhaustiveSearch(2, "sequential")(evaluator, [0]).channel_map.index() == [1, 1, 1, 3]
    assert ExhaustiveSearch(2, "simultaneous")(evaluator, [0]).channel_map.index() == [1, 1, 2, 3]


def test_candidates():
    assert ExhaustiveSearch().candidates(3) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert ExhaustiveSearch(zero=True).candidates(3) == [(0, ZERO), (1, ZERO), (2, ZERO)]
    assert len(ExhaustiveSearch().candidates(64)) == 64 * 63


def test_top_candidates_keeps_the_best_of_each_source():
    candidates = [(0, 1), (0, 2), (1, 0), (2, 0), (3, 1)]
    scores = np.array([0.9, 0.8, 0.5, 0.7, 0.7])
    assert top_candidates(candidates, scores, 3) == ((0, 1), (2, 0), (3, 1))
    assert top_candidates(candidates, scores, 9) == ((0, 1), (2, 0), (3, 1), (1, 0))
    assert top_candidates(candidates, np.zeros(5), 2) == ((0, 1), (1, 0))


def test_subsets_are_all_and_smaller_ones_come_first():
    top = [(0, 1), (2, 3), (4, 5)]
    assert subsets(top) == [
        ((0, 1),),
        ((2, 3),),
        ((4, 5),),
        ((0, 1), (2, 3)),
        ((0, 1), (4, 5)),
        ((2, 3), (4, 5)),
        tuple(top),
    ]
    assert len(set(subsets([(i, 99) for i in range(10)]))) == 2**10 - 1


@pytest.mark.parametrize("zero", [False, True])
def test_climbing_scores_fewer_subsets_and_lies_between_the_best_single_and_the_best_of_all(tiny_sam, samples, zero):
    evaluator = make_evaluator(make_model(tiny_sam), samples)
    climbed = ExhaustiveSearch(6, zero=zero, climbs=True)(evaluator, range(2))
    found = ExhaustiveSearch(6, zero=zero)(evaluator, range(2))
    assert climbed.top == found.top
    assert found.best_single_score <= climbed.search_score <= max(found.search_score, found.baseline_score)
    assert sum(step.evaluations for step in climbed.trace) < sum(step.evaluations for step in found.trace)
