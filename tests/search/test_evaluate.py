from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from tinyworld import Stock, make_evaluator, make_model, make_sample, plain_iou

from redfree.channels import ChannelMap
from redfree.search import evaluate
from redfree.search.evaluate import resize_mask
from redfree.search.scores import index_matrix
from redfree.tasks.segmentation import count_pixels, image_iou

SIZES = [(64, 64), (64, 48), (20, 80), (130, 97), (30, 30)]
MAPS = [
    ChannelMap(16),
    ChannelMap(16, ((3, 9),)),
    ChannelMap(16, ((0, 1), (1, 0), (7, 2), (15, 2))),
    ChannelMap.zero(16, [4]),
    ChannelMap(16, ((2, 11),), (0, 5, 11)),
    ChannelMap.zero(16, range(16)),
    *(ChannelMap(16, (pair,)) for pair in list(permutations(range(16), 2))[::29]),
]


@pytest.fixture
def samples():
    return [make_sample(seed, *size, labels=(1, 0)) for seed, size in enumerate(SIZES)]


def brute_force(sam, samples, maps):
    """IoU in the input frame of the official predictor with features swapped by hand: (maps, images)."""
    values = np.zeros((len(maps), len(samples)))
    for d, sample in enumerate(samples):
        stock = Stock(sam, sample)
        for m, channel_map in enumerate(maps):
            predicted = stock(channel_map.index(), input_frame=True) > 0
            values[m, d] = plain_iou(predicted, resize_mask(sample.mask, predicted.shape).numpy())
    return values


@pytest.mark.parametrize("decoder", ["generic", "shared"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_scores_equal_brute_force_on_the_official_predictor(tiny_sam, samples, batch, decoder):
    evaluator = make_evaluator(make_model(tiny_sam), samples, batch=batch, decoder=decoder)
    scores = evaluator.score(index_matrix(MAPS))
    expected = brute_force(tiny_sam, samples, MAPS)
    np.testing.assert_allclose(scores.values, expected, atol=1e-12)
    assert scores.seconds > 0
    assert min(len(set(column)) for column in expected.T) >= 8, "the maps must score differently"


def test_scores_of_images_of_the_input_size_are_those_of_the_final_mask(tiny_sam):
    samples = [make_sample(seed) for seed in range(2)]
    evaluator = make_evaluator(make_model(tiny_sam), samples)
    final = np.stack([image_iou(evaluator.count(m)) for m in MAPS])
    np.testing.assert_array_equal(evaluator.score(index_matrix(MAPS)).values, final)


def test_chosen_images_come_in_the_order_asked(tiny_sam, samples):
    evaluator = make_evaluator(make_model(tiny_sam), samples)
    everything = evaluator.score(index_matrix(MAPS[:4])).values
    np.testing.assert_array_equal(evaluator.score(index_matrix(MAPS[:4]), [3, 0]).values, everything[:, [3, 0]])


@pytest.mark.parametrize("unit_passes", [1, 2 * len(MAPS), 3 * len(MAPS) - 1])
def test_scores_do_not_depend_on_how_images_form_units(tiny_sam, samples, tmp_path, monkeypatch, unit_passes):
    expected = make_evaluator(make_model(tiny_sam), samples).score(index_matrix(MAPS)).values
    monkeypatch.setattr(evaluate, "_UNIT_PASSES", unit_passes)
    for _ in ("computed", "read from the log"):
        evaluator = make_evaluator(make_model(tiny_sam), samples, tmp_path)
        np.testing.assert_array_equal(evaluator.score(index_matrix(MAPS)).values, expected)
        assert evaluator.ledger.passes == len(MAPS) * len(samples)
    assert len(list(tmp_path.rglob("*.npz"))) == (5 if unit_passes == 1 else 3)


def test_a_unit_of_several_images_is_counted_once(tiny_sam, samples):
    evaluator = make_evaluator(make_model(tiny_sam), samples)
    first = evaluator.score(index_matrix(MAPS[:3]), [0, 1])
    evaluator.score(index_matrix(MAPS[:3]), [0, 1])
    assert (evaluator.ledger.passes, evaluator.ledger.seconds) == (6, first.seconds)


def test_counts_equal_the_official_masks_at_the_size_of_the_image(tiny_sam, samples):
    evaluator = make_evaluator(make_model(tiny_sam), samples)
    for channel_map in MAPS[:5]:
        for counts, sample in zip(evaluator.count(channel_map), samples, strict=True):
            predicted = Stock(tiny_sam, sample)(channel_map.index()) > 0
            pairs = [(predicted, sample.mask), (predicted, ~sample.mask), (~predicted, sample.mask)]
            expected = [(a & b).sum() for a, b in [*pairs, (~predicted, ~sample.mask)]]
            assert counts.tolist() == expected


def test_index_matrix_marks_zeroed_channels():
    matrix = index_matrix([ChannelMap(4, ((0, 2),)), ChannelMap.zero(4, [1, 3])])
    assert matrix.tolist() == [[2, 1, 2, 3], [0, -1, 2, -1]]
    assert matrix.dtype == np.int16


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_resized_pixel_is_set_where_half_of_its_area_is(mask, size):
    repeated = mask.repeat(size[0], 0).repeat(size[1], 1)
    areas = repeated.reshape(size[0], mask.shape[0], size[1], mask.shape[1]).mean((1, 3))
    assert resize_mask(mask, size).tolist() == (areas >= 0.5).tolist()


def test_resizing_to_the_same_size_changes_nothing():
    mask = np.random.default_rng(0).random((7, 11)) < 0.5
    assert np.array_equal(resize_mask(mask, (7, 11)).numpy(), mask)


def test_the_ledger_counts_each_image_and_set_of_maps_once(tiny_sam, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_UNIT_PASSES", 1)
    evaluator = make_evaluator(make_model(tiny_sam), samples, tmp_path)
    first = evaluator.score(index_matrix(MAPS[:3]), [0, 1])
    assert (evaluator.ledger.passes, evaluator.ledger.seconds) == (6, pytest.approx(first.seconds))
    wider = evaluator.score(index_matrix(MAPS[:3]), [1, 2])
    assert evaluator.ledger.passes == 9
    assert evaluator.ledger.seconds < first.seconds + wider.seconds
    evaluator.score(index_matrix(MAPS[:2]), [1])
    assert evaluator.ledger.passes == 11
    later = make_evaluator(make_model(tiny_sam), samples, tmp_path)
    assert later.ledger.passes == 0
    assert later.score(index_matrix(MAPS[:3]), [0, 1]).seconds == first.seconds
    assert (later.ledger.passes, later.ledger.seconds) == (6, pytest.approx(first.seconds))


def ring(sample):
    """The sample with a band around its object ignored, and a stripe at the image's border."""
    near = ndimage.binary_dilation(sample.mask, iterations=3)
    near[:4] = True
    return replace(sample, ignore=near & ~sample.mask)


@pytest.mark.parametrize("decoder", ["generic", "shared"])
def test_ignored_pixels_count_neither_in_the_search_nor_in_the_end(tiny_sam, samples, decoder):
    ringed = [ring(sample) for sample in samples]
    evaluator = make_evaluator(make_model(tiny_sam), ringed, decoder=decoder)
    scores = evaluator.score(index_matrix(MAPS[:8])).values
    for d, sample in enumerate(ringed):
        stock = Stock(tiny_sam, sample)
        for m, channel_map in enumerate(MAPS[:8]):
            predicted = stock(channel_map.index(), input_frame=True) > 0
            target, ignore = (resize_mask(mask, predicted.shape).numpy() for mask in (sample.mask, sample.ignore))
            counted = target | ~ignore
            assert scores[m, d] == pytest.approx(plain_iou(predicted[counted], target[counted]), abs=1e-12)
    final = evaluator.count(MAPS[1])
    for counts, sample in zip(final, ringed, strict=True):
        predicted = Stock(tiny_sam, sample)(MAPS[1].index()) > 0
        kept = ~sample.ignore
        assert tuple(counts) == count_pixels(predicted[kept], sample.mask[kept])
        assert counts.sum() == kept.sum() < kept.size


def test_the_screen_of_images_without_truth_in_places_is_the_slope_of_their_loss(tiny_sam, samples):
    plain, ringed = (
        make_evaluator(make_model(tiny_sam), chosen) for chosen in (samples[:2], [*map(ring, samples[:2])])
    )
    identity = ChannelMap(16)
    assert np.abs(plain.screen(identity, [0, 1]).gains - ringed.screen(identity, [0, 1]).gains).max() > 1e-6
    empty = make_evaluator(make_model(tiny_sam), [replace(s, ignore=np.zeros_like(s.mask)) for s in samples[:2]])
    np.testing.assert_allclose(empty.screen(identity, [0, 1]).gains, plain.screen(identity, [0, 1]).gains, atol=1e-12)
