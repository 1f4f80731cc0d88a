from itertools import permutations

import numpy as np
import pytest
import torch
from tinyworld import make_evaluator, make_model, make_sample

from redfree.channels import ChannelMap
from redfree.models.loading import load_model
from redfree.models.nano import NanoArchitecture, build_nano
from redfree.search.scores import index_matrix

SAMPLES = [make_sample(0), make_sample(1, 90, 64, labels=(1, 0, 1)), make_sample(2, 40, 64)]
FORMATS = [("generic", "float32"), ("shared", "float32"), ("generic", "bfloat16"), ("shared", "bfloat16")]


def mixed_maps(channels):
    rng = np.random.default_rng(0)
    pairs = [ChannelMap(channels, (pair,)) for pair in list(permutations(range(channels), 2))[:: 1 + channels // 2]]
    many = [ChannelMap.from_index(rng.integers(-1, channels, channels).tolist()) for _ in range(10)]
    return index_matrix([ChannelMap(channels), *pairs[:100], *many, ChannelMap.zero(channels, range(channels))])


def scores(model, decoder, dtype="float32", folder=None, maps=None):
    evaluator = make_evaluator(model, SAMPLES, folder, 16, decoder=decoder, dtype=dtype)
    return evaluator.score(mixed_maps(model.channels) if maps is None else maps).values


class Counted:
    """A model that lists which decoder was asked for."""

    def __init__(self, model):
        self._model, self.asked = model, []

    def __getattr__(self, name):
        if name in ("swap_decoder", "map_decoder"):
            self.asked.append(name)
        return getattr(self._model, name)


@pytest.fixture(params=["tiny", "sam_nano"])
def model(request, tiny_sam):
    return make_model(tiny_sam) if request.param == "tiny" else load_model("sam_nano")


def test_shared_and_generic_decoding_score_equally(model):
    generic, shared = scores(model, "generic"), scores(model, "shared")
    np.testing.assert_allclose(shared, generic, atol=1e-3)
    assert (shared == generic).mean() > 0.99
    assert len(np.unique(generic)) > 50, "the maps must score differently"


@pytest.mark.parametrize("decoder", ["generic", "shared"])
def test_bfloat16_is_close_and_not_equal(model, decoder):
    exact, short = scores(model, decoder), scores(model, decoder, "bfloat16")
    assert short.dtype == np.float64
    assert (short != exact).mean() > 0.1
    assert np.abs(short - exact).mean() < 0.02
    assert np.abs(short - exact).max() < 0.2
    assert np.corrcoef(short.ravel(), exact.ravel())[0, 1] > 0.98


def test_counts_and_screens_do_not_depend_on_the_search_s_number_format(tiny_sam):
    model, channel_map = make_model(tiny_sam), ChannelMap(16, ((0, 5),), (2,))
    exact, short = (make_evaluator(model, SAMPLES, dtype=dtype) for dtype in ("float32", "bfloat16"))
    np.testing.assert_array_equal(exact.count(channel_map), short.count(channel_map))
    screens = [evaluator.screen(channel_map, [0, 1]).gains for evaluator in (exact, short)]
    np.testing.assert_array_equal(*screens)


def test_the_log_keeps_decoders_and_number_formats_apart(tiny_sam, tmp_path):
    maps, kept = index_matrix([ChannelMap(16, ((0, 5),)), ChannelMap(16)]), {}
    for count, (decoder, dtype) in enumerate(FORMATS, 1):
        model = Counted(make_model(tiny_sam))
        kept[decoder, dtype] = scores(model, decoder, dtype, tmp_path, maps)
        assert model.asked == ["swap_decoder" if decoder == "shared" else "map_decoder"] * len(SAMPLES)
        assert len(list(tmp_path.rglob("*.npz"))) == count
    for (decoder, dtype), expected in kept.items():
        model = Counted(make_model(tiny_sam))
        np.testing.assert_array_equal(scores(model, decoder, dtype, tmp_path, maps), expected)
        assert model.asked == []


@pytest.mark.parametrize(("channels", "name"), [(64, "map_decoder"), (256, "swap_decoder")])
def test_the_decoder_is_chosen_by_the_channels(channels, name):
    sam = build_nano(NanoArchitecture(64, 16, channels, 8, 1, 1, 32))
    model = Counted(make_model(sam))
    assert model.prefers_shared_decoding == (name == "swap_decoder")
    scores(model, "auto", maps=index_matrix([ChannelMap(channels)]))
    assert set(model.asked) == {name}


def test_running_out_of_memory_changes_no_score(tiny_sam, monkeypatch):
    model, expected = make_model(tiny_sam), scores(make_model(tiny_sam), "generic")
    decode, largest = type(model).decode_maps, []

    def small(self, features, tokens):
        if len(features.maps) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        largest.append(len(features.maps))
        return decode(self, features, tokens)

    monkeypatch.setattr(type(model), "decode_maps", small)
    np.testing.assert_allclose(scores(model, "generic"), expected, atol=1e-3)
    assert max(largest) == 4
