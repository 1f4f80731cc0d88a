from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redfree.channels import ChannelMap
from redfree.search import linear
from redfree.search.exhaustive import ExhaustiveSearch
from redfree.search.linear import LinearHeadEvaluator, map_logits, pair_logits, pair_squared_errors
from redfree.search.scores import index_matrix

shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 7), st.integers(0, 99))
few = settings(max_examples=30)


def make_head(images, channels, classes, seed=0):
    """Random features and a torch.nn.Linear as the independent reference."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(channels, classes)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return torch.randn(images, channels, generator=generator), head


def gathered(features, index):
    """Swapped features, spelled out one channel at a time."""
    swapped = torch.zeros_like(features)
    for channel, source in enumerate(index):
        if source >= 0:
            swapped[:, channel] = features[:, source]
    return swapped


def make_evaluator(images=5, channels=6, classes=3, seed=0):
    features, head = make_head(images, channels, classes, seed)
    labels = torch.arange(images) % classes
    return LinearHeadEvaluator(features, labels, head.weight, head.bias), head


def accuracy(evaluator, head, index):
    predicted = head(gathered(evaluator.features, index)).detach().numpy().argmax(1)
    return (predicted == evaluator.labels.numpy()).astype(float)


def random_maps(count, channels, seed):
    return np.random.default_rng(seed).integers(-1, channels, (count, channels)).astype(np.int16)


@pytest.fixture(scope="module")
def digits():
    """A logistic regression trained on 150 digits, and 40 others that it has not seen."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    pixels, labels = load_digits(return_X_y=True)
    fitted = LogisticRegression(C=0.1, max_iter=100).fit(pixels[:150] / 16, labels[:150])
    weight, bias = torch.tensor(fitted.coef_).float(), torch.tensor(fitted.intercept_).float()
    unseen = torch.tensor(pixels[150:190] / 16).float()
    return fitted, LinearHeadEvaluator(unseen, torch.tensor(labels[150:190]), weight, bias)


@few
@given(shapes)
def test_pair_logits_are_those_of_the_head_on_swapped_features(shape):
    images, channels, classes, _, seed = shape
    features, head = make_head(images, channels, classes, seed)
    pairs = list(product(range(channels), range(-1, channels)))
    logits = pair_logits(features, head.weight, head.bias, np.array(pairs))
    assert logits.shape == (len(pairs), images, classes)
    for (i, j), found in zip(pairs, logits, strict=True):
        index = [j if c == i else c for c in range(channels)]
        torch.testing.assert_close(found, head(gathered(features, index)), atol=1e-5, rtol=1e-5)


@few
@given(shapes)
def test_map_logits_are_those_of_the_head_on_swapped_features(shape):
    images, channels, classes, count, seed = shape
    features, head = make_head(images, channels, classes, seed)
    maps = np.concatenate([random_maps(count, channels, seed), index_matrix([ChannelMap(channels)])])
    logits = map_logits(features, head.weight, head.bias, maps)
    assert logits.shape == (count + 1, images, classes)
    for row, found in zip(maps, logits, strict=True):
        torch.testing.assert_close(found, head(gathered(features, row)), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits[-1], head(features))


def test_sparse_maps_of_different_sizes_keep_their_order():
    features, head = make_head(4, 12, 3)
    kinds = [ChannelMap(12, ((0, 5), (5, 0))), ChannelMap(12), ChannelMap.zero(12, [3]), ChannelMap(12, ((7, 2),))]
    kinds += [ChannelMap(12, ((1, 2),), (4, 6)), *reversed(kinds)]
    logits = map_logits(features, head.weight, head.bias, index_matrix(kinds))
    for channel_map, found in zip(kinds, logits, strict=True):
        torch.testing.assert_close(found, head(channel_map.apply(features)), atol=1e-5, rtol=1e-5)


def test_all_channels_zeroed_leave_the_bias():
    features, head = make_head(2, 5, 3)
    logits = map_logits(features, head.weight, head.bias, np.full((1, 5), -1, np.int16))
    torch.testing.assert_close(logits[0], head.bias.expand(2, 3), atol=1e-5, rtol=0)


def test_no_map_gives_no_logits():
    features, head = make_head(2, 5, 3)
    assert map_logits(features, head.weight, head.bias, np.zeros((0, 5), np.int16)).shape == (0, 2, 3)
    assert pair_logits(features, head.weight, head.bias, np.zeros((0, 2), np.int64)).shape == (0, 2, 3)


@few
@given(shapes)
def test_pair_squared_errors_equal_brute_force(shape):
    positions, channels, _, _, seed = shape
    features, head = make_head(positions, channels, 1, seed)
    features, head = features.double() + 3, head.double()
    target = torch.randn(positions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    found = pair_squared_errors(features, head.weight[0], head.bias.item(), target)
    assert found.shape == (channels, channels)
    for i, j in product(range(channels), repeat=2):
        predicted = head(gathered(features, [j if c == i else c for c in range(channels)]))[:, 0]
        assert found[i, j] == pytest.approx(((predicted - target) ** 2).sum().item(), rel=1e-9, abs=1e-9)


def test_squared_errors_of_float32_features_do_not_cancel():
    features, head = make_head(200, 4, 1)
    features = features + 1000
    target = head(features)[:, 0].detach()
    found = pair_squared_errors(features, head.weight[0], head.bias.item(), target)
    w, x = head.weight[0].detach().double(), features.double()
    expected = w[1] ** 2 * ((x[:, 2] - x[:, 1]) ** 2).sum()
    assert found.dtype == np.float64
    assert found[1, 2] == pytest.approx(expected.item(), rel=1e-3)


def test_squared_errors_of_unchanged_channels_are_the_heads_own():
    features, head = make_head(9, 5, 1)
    residual = head(features)[:, 0].detach().double() - 1
    found = pair_squared_errors(features, head.weight[0], head.bias.item(), torch.ones(9))
    np.testing.assert_allclose(found.diagonal(), (residual @ residual).item(), rtol=1e-5)
    assert len(set(found.diagonal())) == 1


def test_scores_are_the_heads_accuracy():
    evaluator, head = make_evaluator(images=7)
    maps = np.concatenate([random_maps(30, 6, 0), index_matrix([ChannelMap(6), ChannelMap.zero(6, [1, 4])])])
    scores = evaluator.score(maps)
    assert (len(evaluator), evaluator.channels) == (7, 6)
    assert scores.values.dtype == np.float64
    np.testing.assert_array_equal(scores.values, [accuracy(evaluator, head, row) for row in maps])
    assert 0 < scores.values.mean() < 1
    assert scores.seconds > 0


def test_only_the_images_asked_for_are_scored_in_their_order():
    evaluator, _ = make_evaluator(images=7)
    maps = random_maps(20, 6, 1)
    everything = evaluator.score(maps).values
    np.testing.assert_array_equal(evaluator.score(maps, [5, 0, 3]).values, everything[:, [5, 0, 3]])
    assert evaluator.score(maps, []).values.shape == (20, 0)
    assert evaluator.score(maps[:0]).values.shape == (0, 7)


def test_of_equal_logits_the_first_class_is_predicted():
    evaluator = LinearHeadEvaluator(torch.ones(3, 2), torch.tensor([0, 1, 2]), torch.zeros(3, 2), torch.zeros(3))
    assert evaluator.score(index_matrix([ChannelMap(2, ((0, 1),))])).values.tolist() == [[1.0, 0.0, 0.0]]


def test_chunks_give_the_same_scores_and_stay_small(monkeypatch):
    evaluator, _ = make_evaluator(images=4)
    maps, sizes = random_maps(25, 6, 2), []
    whole = evaluator.score(maps).values
    original = linear._LinearHead.map_logits

    def noted(head, part):
        logits = original(head, part)
        sizes.append((len(part), logits.numel() * logits.element_size()))
        return logits

    monkeypatch.setattr(linear._LinearHead, "map_logits", noted)
    monkeypatch.setattr(linear, "CHUNK_BYTES", 2000)
    np.testing.assert_array_equal(evaluator.score(maps).values, whole)
    assert len(sizes) > 3
    assert sum(count for count, _ in sizes) == 25
    assert max(size for _, size in sizes) <= 2000
    monkeypatch.setattr(linear, "CHUNK_BYTES", 1)
    np.testing.assert_array_equal(evaluator.score(maps).values, whole)


def test_the_ledger_counts_each_image_and_set_of_maps_once():
    evaluator, _ = make_evaluator(images=4)
    maps = random_maps(10, 6, 3)
    first = evaluator.score(maps, [0, 1])
    assert evaluator.ledger.passes == 20
    assert evaluator.ledger.seconds == pytest.approx(first.seconds)
    evaluator.score(maps, [1, 2])
    assert evaluator.ledger.passes == 30
    evaluator.score(maps[:3], [1])
    assert evaluator.ledger.passes == 33


def test_evaluators_share_no_ledger():
    first, second = make_evaluator()[0], make_evaluator()[0]
    first.score(random_maps(2, 6, 0))
    assert second.ledger.passes == 0


@pytest.mark.parametrize(
    "channel_map",
    [ChannelMap(6), ChannelMap(6, ((0, 3), (3, 0), (5, 1))), ChannelMap(6, ((2, 4),), (1,))],
    ids=["identity", "pairs", "zeroed"],
)
def test_the_screen_is_autograds_first_order_gain(channel_map):
    evaluator, head = make_evaluator(images=7)
    images = [6, 2, 3]
    original = evaluator.features[images]
    swapped = gathered(original, channel_map.index()).requires_grad_()
    torch.nn.functional.cross_entropy(head(swapped), evaluator.labels[images]).backward()
    expected = [
        [-(swapped.grad[:, i] * (original[:, j] - swapped[:, i])).sum().item() for j in range(6)] for i in range(6)
    ]
    found = evaluator.screen(channel_map, images).gains
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    touched = [c for c, source in enumerate(channel_map.index()) if source != c]
    assert np.flatnonzero(np.abs(found.diagonal()) > 1e-9).tolist() == touched


def test_a_small_step_gains_what_the_screen_promises():
    evaluator, head = make_evaluator(images=7)
    x, labels, step = evaluator.features.double(), evaluator.labels, 1e-5
    moved = x.clone()
    moved[:, 2] += step * (x[:, 4] - x[:, 2])
    before, after = (torch.nn.functional.cross_entropy(head.double()(z), labels).item() for z in (x, moved))
    assert evaluator.screen(ChannelMap(6), range(7)).gains[2, 4] == pytest.approx((before - after) / step, abs=1e-3)


def test_a_trained_head_scores_as_sklearn_does(digits):
    fitted, evaluator = digits
    assert evaluator.channels == 64
    pairs = [(20, 42), (36, 21), (0, 63), (28, 35), (42, 10), (43, 26)]
    maps = index_matrix([ChannelMap(64), *(ChannelMap(64, (pair,)) for pair in pairs), ChannelMap.zero(64, range(20))])
    expected = [fitted.predict(gathered(evaluator.features, row).numpy()) == evaluator.labels.numpy() for row in maps]
    found = evaluator.score(maps).values
    np.testing.assert_array_equal(found, np.array(expected, float))
    assert found[0].mean() > 0.6
    assert found[-1].mean() < found[0].mean()


def test_the_search_of_the_paper_runs_on_a_linear_head():
    evaluator, head = make_evaluator(images=12, channels=7, classes=4, seed=3)
    images = [1, 2, 4, 5, 7, 8, 10]
    found = ExhaustiveSearch(3)(evaluator, images)

    def mean(index):
        return accuracy(evaluator, head, index)[images].mean()

    singles = [mean([j if c == i else c for c in range(7)]) for i, j in permutations(range(7), 2)]
    assert found.baseline_score == pytest.approx(mean(range(7)))
    assert found.best_single_score == pytest.approx(max(singles))
    assert found.search_score == pytest.approx(mean(found.channel_map.index()))
    assert found.search_score >= found.best_single_score > found.baseline_score
    assert evaluator.ledger.passes == sum(step.decoder_passes for step in found.trace) > 42 * len(images)


def test_shapes_that_do_not_match_are_one_clear_line():
    features, weight, bias, labels = torch.ones(4, 3), torch.ones(2, 3), torch.ones(2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^features \(4, 3\), weight \(2, 5\), bias \(2,\) are not \(D, C\)"):
        LinearHeadEvaluator(features, labels, torch.ones(2, 5), bias)
    with pytest.raises(ValueError, match=r"bias \(1,\) are not \(D, C\), \(K, C\), \(K,\)$"):
        LinearHeadEvaluator(features, labels, weight, torch.ones(1))
    with pytest.raises(ValueError, match=r"^features \(4, 3, 1\)"):
        LinearHeadEvaluator(features[..., None], labels, weight, bias)
    with pytest.raises(ValueError, match=r"^labels have shape \(3,\), not \(4,\)$"):
        LinearHeadEvaluator(features, labels[:3], weight, bias)
    with pytest.raises(ValueError, match=r"^label 2 is outside 0..1$"):
        LinearHeadEvaluator(features, labels + 2, weight, bias)
    with pytest.raises(ValueError, match=r"^features \(4, 3\), weight \(3,\), target \(4, 1\) are not \(N, C\)"):
        pair_squared_errors(features, torch.ones(3), 0.0, torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"^features \(4, 3\), weight \(2,\), target \(4,\) are not"):
        pair_squared_errors(features, torch.ones(2), 0.0, torch.ones(4))


def test_maps_that_do_not_fit_are_one_clear_line():
    evaluator, head = make_evaluator(channels=6)
    with pytest.raises(ValueError, match=r"^maps have shape \(1, 7\), not \(M, 6\)$"):
        evaluator.score(index_matrix([ChannelMap(7)]))
    with pytest.raises(ValueError, match=r"^channel 6 is outside -1..5$"):
        map_logits(evaluator.features, head.weight, head.bias, np.array([[0, 1, 2, 3, 4, 6]], np.int16))
    with pytest.raises(ValueError, match=r"^channel -2 is outside -1..5$"):
        pair_logits(evaluator.features, head.weight, head.bias, np.array([[0, -2]]))
    with pytest.raises(ValueError, match=r"^channel -1 is outside 0..5$"):
        pair_logits(evaluator.features, head.weight, head.bias, np.array([[-1, 2]]))
    with pytest.raises(ValueError, match=r"^pairs have shape \(1, 3\), not \(M, 2\)$"):
        pair_logits(evaluator.features, head.weight, head.bias, np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="the swap is for 7"):
        evaluator.screen(ChannelMap(7), [0])
    with pytest.raises(ValueError, match=r"^a screen needs at least 1 image$"):
        evaluator.screen(ChannelMap(6), [])
