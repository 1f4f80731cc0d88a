import copy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redfree.models.lean_attention import BUDGETS, lean_attention


def make_encoder(side=16, heads=2, width=16, window=0, scale=0.1, **options):
    """Two blocks, the second with global attention; patches of 4 pixels, `side` of them; every weight is random."""
    torch.manual_seed(0)
    given = {"use_rel_pos": True, "mlp_ratio": 1, "depth": 2, "global_attn_indexes": (1,), **options}
    encoder = ImageEncoderViT(
        img_size=4 * side, patch_size=4, embed_dim=width, num_heads=heads, out_chans=8, window_size=window, **given
    )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5 if "rel_pos" in name else scale)
    return encoder.eval().requires_grad_(False)


def make_images(side, batch=1):
    return torch.randn(batch, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(1))


def lean(encoder, images, budget=0):
    with lean_attention(encoder, budget):
        return encoder(images)


def assert_equal_to_official(encoder, images, budget=0):
    expected = encoder(images)
    assert expected.std() > 0.1, "the comparison must not be of constants"
    torch.testing.assert_close(lean(encoder, images, budget), expected, atol=1e-5, rtol=0)


def matrix_bytes(queries, side=16):
    """Scores of some queries with every key of a map, in float32."""
    return 4 * queries * side**2


class Sizes(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *(tensor.numel() * tensor.element_size() for tensor in tensors)])
        return result


@pytest.mark.parametrize("queries", [0, 1, 100, 256, 300, 512, 1000, 10**6])
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_official_with_any_number_of_queries_at_a_time(batch, queries):
    assert_equal_to_official(make_encoder(), make_images(16, batch), matrix_bytes(queries))


@pytest.mark.parametrize("use_rel_pos", [True, False])
@pytest.mark.parametrize("window", [4, 5, 7, 16, 20], ids="window {}".format)
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_official_with_windows_that_divide_the_map_or_are_padded(batch, window, use_rel_pos):
    encoder = make_encoder(window=window, use_rel_pos=use_rel_pos)
    assert_equal_to_official(encoder, make_images(16, batch), matrix_bytes(30))


@pytest.mark.parametrize("window", [0, 3])
def test_equal_to_official_for_a_map_of_another_size_than_the_tables(window):
    encoder = make_encoder(window=window, use_abs_pos=False)
    assert_equal_to_official(encoder, torch.randn(2, 3, 28, 44), matrix_bytes(20))


def test_a_layer_keeps_its_own_scale():
    encoder, images = make_encoder(), make_images(16)
    before = encoder(images)
    encoder.blocks[1].attn.scale = 3.0
    assert not torch.allclose(encoder(images), before, atol=1e-2)
    assert_equal_to_official(encoder, images)


@pytest.mark.parametrize("name", ["sam_nano", "tiny"])
def test_equal_to_official_for_the_sizes_of_the_nano_models(name, tiny_sam):
    if name == "tiny":
        encoder, side = tiny_sam.image_encoder, 64
    else:
        encoder, side = make_encoder(side=8, heads=6, width=192, scale=0.05, depth=5), 32
    assert_equal_to_official(encoder, torch.randn(2, 3, side, side))


@example(side=9, heads=3, width=4, window=4, batch=2, queries=17, use_rel_pos=True)
@given(
    side=st.integers(1, 10),
    heads=st.integers(1, 4),
    width=st.integers(1, 9),
    window=st.integers(0, 11),
    batch=st.integers(1, 3),
    queries=st.integers(0, 400),
    use_rel_pos=st.booleans(),
)
def test_one_layer_equals_the_official_for_any_size(*, side, heads, width, window, batch, queries, use_rel_pos):
    encoder = make_encoder(side, heads, heads * width, window, use_rel_pos=use_rel_pos, depth=1)
    images = make_images(side, batch)
    expected = encoder(images)
    torch.testing.assert_close(lean(encoder, images, matrix_bytes(queries, side)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_error_is_no_larger_than_that_of_the_official(dtype, window):
    encoder, images = make_encoder(heads=4, width=64, window=window), make_images(16)
    exact = encoder(images)
    with torch.autocast("cpu", dtype):
        official, ours = encoder(images), lean(encoder, images, matrix_bytes(300))
    assert ours.dtype == official.dtype
    error = (official - exact).abs().mean()
    assert (ours - official).abs().mean() <= 1.5 * error
    assert (ours - exact).abs().mean() <= 1.1 * error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_weights_is_kept(dtype):
    encoder, images = make_encoder().to(dtype), make_images(16).to(dtype)
    features = lean(encoder, images, matrix_bytes(300))
    assert features.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(features, encoder(images), atol=tolerance, rtol=0)


@pytest.mark.parametrize("use_rel_pos", [True, False])
def test_no_tensor_is_larger_than_the_budget(use_rel_pos):
    encoder, images, budget = make_encoder(heads=4, use_rel_pos=use_rel_pos), make_images(16), matrix_bytes(64)
    with Sizes() as official:
        encoder(images)
    with Sizes() as ours:
        lean(encoder, images, budget)
    assert official.largest == matrix_bytes(4 * 256), "the official code holds 4 heads of 256 queries"
    assert ours.largest <= budget


def test_a_matrix_within_the_budget_is_left_to_the_official_code_bit_for_bit():
    encoder, images = make_encoder(), make_images(16, 2)
    assert matrix_bytes(2 * 2 * 256) < BUDGETS["cpu"]
    with lean_attention(encoder):
        default = encoder(images)
    assert torch.equal(default, encoder(images))
    assert not torch.equal(lean(encoder, images, matrix_bytes(256)), default), "the lean way must differ in some bit"


def test_the_official_forward_is_back_after_the_block_bit_for_bit():
    encoder, images = make_encoder(window=5), make_images(16)
    expected, state, keys = encoder(images), copy.deepcopy(encoder.state_dict()), list(vars(encoder.blocks[0].attn))
    with lean_attention(encoder, 0):
        assert encoder.state_dict().keys() == state.keys()
        encoder(images)
    assert list(vars(encoder.blocks[0].attn)) == keys
    assert torch.equal(encoder(images), expected)
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[key])


def test_the_official_forward_is_back_after_an_error():
    encoder, images = make_encoder(), make_images(16)
    expected = encoder(images)
    with pytest.raises(KeyError), lean_attention(encoder, 0):
        raise KeyError
    assert torch.equal(encoder(images), expected)


def test_blocks_may_be_nested_and_the_outermost_counts():
    encoder, images = make_encoder(), make_images(16)
    expected, outer = encoder(images), lean(encoder, images)
    assert not torch.equal(outer, expected)
    with lean_attention(encoder, 0):
        with lean_attention(encoder):
            assert torch.equal(encoder(images), outer)
        assert torch.equal(encoder(images), outer)
    assert torch.equal(encoder(images), expected)


def test_a_predictor_outside_the_block_runs_the_official_code(tiny_sam):
    image = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy()
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(image)
    before = predictor.features
    with lean_attention(tiny_sam, 0):
        predictor.set_image(image)
    torch.testing.assert_close(predictor.features, before, atol=1e-5, rtol=0)
    predictor.set_image(image)
    assert torch.equal(predictor.features, before)


def test_a_layer_that_somebody_changed_is_left_alone():
    class Zero(Attention):
        def forward(self, x):
            return torch.zeros_like(x)

    encoder = make_encoder()
    encoder.blocks[0].attn = Zero(16, 2, use_rel_pos=True, input_size=(16, 16))
    replaced = encoder.blocks[1].attn.forward = torch.zeros_like
    assert torch.equal(lean(encoder, make_images(16)), encoder(make_images(16)))
    assert encoder.blocks[1].attn.forward is replaced


def test_hooks_still_run():
    encoder, seen = make_encoder(), []
    encoder.blocks[1].attn.register_forward_hook(lambda *given: seen.append(given[2].shape))
    lean(encoder, make_images(16))
    assert seen == [(1, 16, 16, 16)]


def test_a_gradient_is_refused_rather_than_wrong():
    encoder = make_encoder().requires_grad_(True)
    with pytest.raises(RuntimeError, match="out="):
        lean(encoder, make_images(16))
