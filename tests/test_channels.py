import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything import SamPredictor
from torch import nn

from redfree.channels import ChannelMap, load_swap
from redfree.errors import UserError

CHANNELS = 6
index_vectors = st.lists(st.integers(-1, CHANNELS - 1), min_size=CHANNELS, max_size=CHANNELS)


@st.composite
def pair_lists(draw):
    """Pairs in random order, with at most one for each destination."""
    destinations = draw(st.permutations(range(CHANNELS)))[: draw(st.integers(0, CHANNELS))]
    return [(i, (i + draw(st.integers(1, CHANNELS - 1))) % CHANNELS) for i in destinations]


def features(channels=CHANNELS):
    return torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, ((0, 4),)), "channel 4 is outside 0..3"),
        ((4, ((-1, 2),)), "channel -1 is outside 0..3"),
        ((4, (), (7,)), "channel 7 is outside 0..3"),
        ((4, ((2, 2),)), "two different channels"),
        ((4, ((1, 2), (1, 3))), "channel 1 is written twice"),
        ((4, ((1, 2),), (1,)), "channel 1 is written twice"),
        ((4, (), (3, 3)), "channel 3 is written twice"),
    ],
)
def test_invalid_maps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChannelMap(*arguments)


def test_unknown_semantics_are_refused():
    with pytest.raises(ValueError, match="simultaneous, sequential"):
        ChannelMap.from_pairs(4, [(0, 1)], "parallel")


@given(index_vectors)
def test_apply_equals_brute_force(index):
    x = features()
    expected = torch.stack([x[:, j] if j >= 0 else torch.zeros_like(x[:, 0]) for j in index], 1)
    assert torch.equal(ChannelMap.from_index(index).apply(x), expected)


@given(index_vectors)
def test_index_round_trip(index):
    assert ChannelMap.from_index(index).index() == index


@given(pair_lists())
def test_simultaneous_pairs_read_the_original(pairs):
    x = features()
    expected = x.clone()
    for i, j in pairs:
        expected[:, i] = x[:, j]
    assert torch.equal(ChannelMap.from_pairs(CHANNELS, pairs).apply(x), expected)


@given(pair_lists())
def test_sequential_pairs_equal_an_in_place_loop(pairs):
    x = features()
    expected = x.clone()
    for i, j in pairs:
        expected[:, i] = expected[:, j].clone()
    assert torch.equal(ChannelMap.from_pairs(CHANNELS, pairs, "sequential").apply(x), expected)


def test_a_two_way_exchange_tells_the_semantics_apart():
    pairs = [(0, 1), (1, 0)]
    assert ChannelMap.from_pairs(2, pairs).index() == [1, 0]
    assert ChannelMap.from_pairs(2, pairs, "sequential").index() == [1, 1]


@given(index_vectors, index_vectors)
def test_compose_equals_applying_twice(first, second):
    x, one, two = features(), ChannelMap.from_index(first), ChannelMap.from_index(second)
    assert torch.equal(two.compose(one).apply(x), two.apply(one.apply(x)))


def test_compose_refuses_other_channels():
    with pytest.raises(ValueError, match="3 and 4 channels"):
        ChannelMap(3).compose(ChannelMap(4))


def test_zero_clears_its_channels_even_of_infinities():
    x = features()
    x[0, 1, 0, 0] = float("inf")
    mapped = ChannelMap.zero(CHANNELS, [4, 1]).apply(x)
    assert not mapped[:, [1, 4]].any()
    assert torch.equal(mapped[:, [0, 2, 3, 5]], x[:, [0, 2, 3, 5]])


def test_identity_returns_the_same_object():
    x = features()
    assert ChannelMap(CHANNELS).is_identity
    assert ChannelMap(CHANNELS).apply(x) is x
    assert not ChannelMap.zero(CHANNELS, [0]).is_identity
    assert not ChannelMap(CHANNELS, ((0, 1),)).is_identity


def test_apply_leaves_its_argument_alone():
    x = features()
    before = x.clone()
    ChannelMap(CHANNELS, ((0, 1),), (2,)).apply(x)
    assert torch.equal(x, before)


@given(index_vectors)
def test_tokens_are_mapped_along_the_last_dimension(index):
    x, swap = features(), ChannelMap.from_index(index)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(swap.apply(tokens, dim=-1), swap.apply(x).flatten(2).transpose(1, 2))


def test_apply_refuses_other_channels():
    with pytest.raises(ValueError, match="features have 6 channels, the swap is for 7"):
        ChannelMap(7).apply(features())


@settings(max_examples=25)
@given(index_vectors)
def test_json_round_trip(tmp_path_factory, index):
    path, swap = tmp_path_factory.mktemp("swap") / "swap.json", ChannelMap.from_index(index)
    swap.save(path, score=0.5, model="sam_nano")
    assert load_swap(path) == swap
    assert json.loads(path.read_text())["score"] == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[1, 2]",
        "null",
        "{}",
        '{"channels": 4}',
        '{"pairs": [[0, 1]]}',
        '{"channels": 4, "pairs": [[0, 4]]}',
        '{"channels": 4, "pairs": [[0, 1, 2]]}',
        '{"channels": 4, "pairs": [0, 1]}',
        '{"channels": 4, "pairs": [[0.5, 1]]}',
        '{"channels": 4, "pairs": [["0", 1]]}',
        '{"channels": "4", "pairs": []}',
        '{"channels": 4, "pairs": [[0, 1], [0, 2]]}',
        '{"channels": 4, "pairs": [], "zeroed": 3}',
    ],
)
def test_load_swap_refuses_what_is_no_swap_in_one_line(tmp_path, text):
    path = tmp_path / "swap.json"
    path.write_text(text)
    with pytest.raises(UserError, match="not a swap") as caught:
        load_swap(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_load_swap_names_a_path_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"absent.json: no such file"):
        load_swap(tmp_path / "absent.json")
    with pytest.raises(UserError, match="is a directory"):
        load_swap(tmp_path)


SWAP = ChannelMap(16, ((0, 5), (3, 0), (15, 7)), (2,))
POINT = {"point_coords": np.array([[20.0, 30.0]]), "point_labels": np.array([1])}


def predict(sam, image, swap=None):
    """Logits, IoU and low-resolution logits of the official predictor; `swap` is applied to its features by hand."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    if swap is not None:
        predictor.features = torch.stack([predictor.features[:, j] * (j >= 0) for j in swap.index()], 1)
    return predictor.predict(**POINT, multimask_output=False, return_logits=True)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def image():
    return np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_attach_makes_the_official_predictor_decode_swapped_features(tiny_sam, image):
    plain, expected = predict(tiny_sam, image), predict(tiny_sam, image, SWAP)
    before = {name: value.clone() for name, value in tiny_sam.state_dict().items()}
    attachment = SWAP.attach(tiny_sam)
    assert same(predict(tiny_sam, image), expected)
    assert not same(expected, plain)
    attachment.detach()
    attachment.detach()
    assert same(predict(tiny_sam, image), plain)
    after = tiny_sam.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_attachment_as_context_manager_detaches_even_on_an_error(tiny_sam, image):
    def fail_inside():
        with SWAP.attach(tiny_sam):
            assert not same(predict(tiny_sam, image), plain)
            raise RuntimeError("inside")

    plain = predict(tiny_sam, image)
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert same(predict(tiny_sam, image), plain)


def test_attaching_two_swaps_composes_them(tiny_sam, image):
    second = ChannelMap(16, ((5, 2), (1, 0)))
    expected = predict(tiny_sam, image, second.compose(SWAP))
    with SWAP.attach(tiny_sam), second.attach(tiny_sam):
        assert same(predict(tiny_sam, image), expected)


def test_attach_refuses_other_models(tiny_sam):
    with pytest.raises(UserError, match=r"for 15 channels, the model has 16"):
        ChannelMap(15).attach(tiny_sam)
    with pytest.raises(UserError, match="Linear has no image_encoder"):
        SWAP.attach(nn.Linear(2, 2))
    other = nn.Module()
    other.image_encoder = nn.Linear(2, 2)
    with pytest.raises(UserError, match="LayerNorm2d"):
        SWAP.attach(other)
