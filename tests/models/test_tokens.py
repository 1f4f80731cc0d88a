import math
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from redfree.channels import ChannelMap
from redfree.errors import UserError
from redfree.hooks import hook_tokens
from redfree.models.catalogue import DINO_NANO_ARCHITECTURES
from redfree.models.dino_nano import build_dino_nano
from redfree.models.promptable import Encoding
from redfree.models.tokens import TokenFeatures, TokenModel

WIDTH = 24
SIZES = {"square": (48, 48), "portrait": (90, 37), "panorama": (20, 131), "of the input's size": (32, 32)}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "num_classes": 0}
VIT, EVA = partial(VisionTransformer, **SMALL), partial(Eva, **SMALL)
DINOV3 = partial(
    EVA,
    dynamic_img_size=True,
    init_values=0.1,
    rope_type="dinov3",
    rope_temperature=100,
    rope_rotate_half=True,
    use_rot_pos_emb=True,
    use_abs_pos_emb=False,
    num_reg_tokens=4,
    use_fc_norm=False,
    norm_layer=partial(nn.LayerNorm, eps=1e-5),
)
BUILD = {
    "plain": partial(VIT, init_values=0.1),
    "registers": partial(VIT, reg_tokens=4, no_embed_class=True, init_values=0.1),
    "no_embed_class": partial(VIT, no_embed_class=True),
    "fc_norm": partial(VIT, class_token=False, global_pool="avg"),
    "register without class": partial(VIT, class_token=False, reg_tokens=1, global_pool="avg", fc_norm=False),
    "clip": partial(VIT, pre_norm=True, act_layer="quick_gelu", norm_layer=partial(nn.LayerNorm, eps=1e-5)),
    "swiglu": partial(VIT, mlp_ratio=16 / 3, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, init_values=0.1),
    "distilled": partial(VisionTransformerDistilled, **SMALL),
    "dinov3": partial(DINOV3, qkv_bias=True),
    "dino_nano": partial(build_dino_nano, DINO_NANO_ARCHITECTURES["dino_nano"]),
}
# (leading tokens, whether the first is a class token, whether forward_features ends in a norm)
PREFIX = {
    "registers": (5, True, True),
    "fc_norm": (0, False, False),
    "register without class": (1, False, True),
    "distilled": (2, True, True),
    "dinov3": (5, True, True),
}
WHERE = pytest.mark.parametrize("swap_at", ["after_norm", "before_norm"])
ON = pytest.mark.parametrize("swap_on", ["patches", "class", "both"])


def random_weights(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return module.eval()


def make(kind, **options):
    return TokenModel(kind, random_weights(BUILD[kind]()), "0" * 64, **options)


@pytest.fixture(params=BUILD)
def kind(request):
    return request.param


def image_of(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey_of(seed, height, width):
    return np.repeat(image_of(seed, height, width)[:, :, :1], 3, 2)


def inputs_of(model, image, **config):
    """What timm's own evaluation transform makes of an image."""
    side = model.input_side
    config = {**resolve_model_data_config(model.module), "input_size": (3, side, side), **config}
    return create_transform(**config)(Image.fromarray(image))[None]


def random_map(channels, seed=0):
    index = np.random.default_rng(seed).integers(-1, channels, channels)
    return ChannelMap.from_index([int(i) for i in index])


def brute_force(tokens, channel_map, rows):
    out = tokens.clone()
    for i, j in enumerate(channel_map.index()):
        out[:, rows, i] = 0 if j < 0 else tokens[:, rows, j]
    return out


def rows_of(features, swap_on):
    patches = range(features.prefix, features.tokens.shape[1])
    classes = [0] if features.has_class else []
    return {"patches": [*patches], "class": classes, "both": [*classes, *patches]}[swap_on]


# Encoding


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("of", [image_of, grey_of], ids=["colour", "grey"])
def test_tokens_equal_timms_forward_features(kind, size, of):
    model, image = make(kind), of(1, *size)
    features = model.encode([image])
    expected = model.module.forward_features(inputs_of(model, image))
    torch.testing.assert_close(features.tokens, expected, atol=1e-5, rtol=0)
    assert features.tokens.std() > 1e-2, "the comparison must not be of constants"
    assert (features.prefix, features.has_class, features.normalised) == PREFIX.get(kind, (1, True, True))
    assert features.prefix + math.prod(features.grid) == features.tokens.shape[1]


def test_the_input_has_the_size_that_the_model_was_built_for():
    assert make("plain").input_side == 32
    assert make("dino_nano").input_side == 128
    published = TokenModel("vit", timm.create_model("test_vit"), "0" * 64)
    assert published.input_side == resolve_model_data_config(published.module)["input_size"][1]
    image = image_of(0, 200, 300)
    config = resolve_model_data_config(published.module)
    expected = published.module.forward_features(create_transform(**config)(Image.fromarray(image))[None])
    torch.testing.assert_close(published.encode([image]).tokens, expected, atol=1e-5, rtol=0)
    assert (
        TokenModel("vit", timm.create_model("test_vit", img_size=64, dynamic_img_size=False), "0" * 64).input_side == 64
    )


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_squash_shows_the_whole_image(size):
    model, image = make("plain", fit="squash"), image_of(2, *size)
    small = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = model.module.forward_features((values - mean) / std)
    torch.testing.assert_close(model.encode([image]).tokens, expected, atol=1e-5, rtol=0)


def test_batches_equal_one_image_at_a_time(kind):
    images = [image_of(seed, *size) for seed, size in enumerate([*SIZES.values()] * 2)][:5]
    model = make(kind, encoding=Encoding(batch=2))
    together, parts = model.encode(images), list(model.encode_each(images))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(TokenFeatures.concatenate(parts).tokens, together.tokens)
    alone = torch.cat([model.encode([image]).tokens for image in images])
    torch.testing.assert_close(together.tokens, alone, atol=1e-5, rtol=0)
    assert torch.equal(together.select([3, 0]).tokens, together.tokens[[3, 0]])
    assert together.nbytes == together.tokens.nbytes


def test_bfloat16_gives_float32_features_near_the_exact_ones():
    image = image_of(3, 60, 40)
    model = make("registers", encoding=Encoding(precision="bfloat16"), swap_at="before_norm")
    rounded = model.encode([image])
    model.encoding = Encoding()
    exact = model.encode([image])
    assert rounded.tokens.dtype == torch.float32
    assert not torch.equal(rounded.tokens, exact.tokens)
    torch.testing.assert_close(rounded.tokens, exact.tokens, atol=0.3, rtol=0.1)


def test_views_of_the_features():
    features = make("registers").encode([image_of(4, 50, 40), image_of(5, 40, 50)])
    tokens = features.tokens
    assert torch.equal(features.class_token, tokens[:, 0])
    assert torch.equal(features.patches, tokens[:, 5:])
    assert torch.equal(features.maps[1, :, 2, 3], tokens[1, 5 + 2 * 4 + 3])
    assert torch.equal(features.pooled(), torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1))
    without = make("fc_norm").encode([image_of(4, 50, 40)])
    assert torch.equal(without.pooled(), without.tokens.mean(1))
    with pytest.raises(UserError, match="no class token"):
        _ = without.class_token


# Swaps


@WHERE
def test_the_identity_changes_no_bit(kind, swap_at):
    model = make(kind, swap_at=swap_at)
    image = image_of(6, 70, 40)
    swapped = model.swapped(model.encode([image]), ChannelMap(model.channels))
    assert torch.equal(swapped.tokens, model.module.forward_features(inputs_of(model, image)))


@WHERE
@ON
def test_swapped_tokens_equal_indexing_and_the_live_model(kind, swap_on, swap_at):
    if swap_on == "class" and not PREFIX.get(kind, (1, True))[1]:
        with pytest.raises(UserError, match="no class token"):
            make(kind, swap_on=swap_on, swap_at=swap_at)
        return
    model = make(kind, swap_on=swap_on, swap_at=swap_at)
    image, channel_map = image_of(7, 40, 70), random_map(model.channels)
    module, features, inputs = model.module, model.encode([image]), inputs_of(model, image)
    norm = nn.Identity() if swap_at == "after_norm" else module.norm
    expected = norm(brute_force(features.tokens, channel_map, rows_of(features, swap_on)))
    swapped = model.swapped(features, channel_map)
    assert torch.equal(swapped.tokens, expected)
    plain, output = module.forward_features(inputs), module(inputs)
    assert not torch.equal(swapped.tokens, plain)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    handle = hook_tokens(module, channel_map, swap_on, swap_at)
    assert torch.equal(module.forward_features(inputs), expected)
    assert torch.equal(module(inputs), module.forward_head(expected))
    handle.remove()
    assert torch.equal(module.forward_features(inputs), plain)
    assert torch.equal(module(inputs), output)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_the_two_places_differ_where_there_is_a_norm(kind):
    module, image = random_weights(BUILD[kind]()), image_of(8, 40, 40)
    after, before = (TokenModel(kind, module, "0" * 64, swap_at=at) for at in ("after_norm", "before_norm"))
    channel_map = random_map(after.channels)
    one, other = (model.swapped(model.encode([image]), channel_map) for model in (after, before))
    assert torch.equal(one.tokens, other.tokens) == isinstance(module.norm, nn.Identity)
    assert one.normalised == other.normalised


@WHERE
@ON
@pytest.mark.parametrize("kind", ["registers", "distilled", "dinov3"])
def test_registers_are_never_swapped(kind, swap_on, swap_at):
    model = make(kind, swap_on=swap_on, swap_at=swap_at)
    image = image_of(9, 40, 60)
    swapped = model.swapped(model.encode([image]), random_map(model.channels)).tokens
    plain = model.module.forward_features(inputs_of(model, image))
    prefix = PREFIX[kind][0]
    assert torch.equal(swapped[:, 1:prefix], plain[:, 1:prefix])
    assert torch.equal(swapped[:, :1], plain[:, :1]) == (swap_on == "patches")
    assert torch.equal(swapped[:, prefix:], plain[:, prefix:]) == (swap_on == "class")


@settings(max_examples=25)
@given(index=st.lists(st.integers(-1, WIDTH - 1), min_size=WIDTH, max_size=WIDTH), after=st.booleans())
def test_any_map(index, after):
    model, images, features = _any_map_world(after)
    channel_map = ChannelMap.from_index(index)
    padded = F.pad(features.tokens, (0, 1))
    mapped = torch.cat([padded[:, :1, index], features.tokens[:, 1:5], padded[:, 5:, index]], 1)
    swapped = model.swapped(features, channel_map).tokens
    assert torch.equal(swapped, mapped if after else model.module.norm(mapped))
    handle = hook_tokens(model.module, channel_map, swap_at=model.swap_at)
    assert torch.equal(model.module.forward_features(images), swapped)
    handle.remove()


def _any_map_world(after, world={}):  # noqa: B006 - built once for all examples
    if after not in world:
        torch.manual_seed(0)
        model = make("registers", swap_at="after_norm" if after else "before_norm")
        image = image_of(10, 32, 32)
        world[after] = model, inputs_of(model, image), model.encode([image])
    return world[after]


def test_two_swaps_on_a_live_model_apply_one_after_the_other():
    model, inputs = make("plain"), torch.randn(1, 3, 32, 32)
    first, second = random_map(WIDTH, 1), random_map(WIDTH, 2)
    plain = model.module.forward_features(inputs)
    handles = [hook_tokens(model.module, channel_map) for channel_map in (first, second)]
    assert torch.equal(model.module.forward_features(inputs), second.compose(first).apply(plain, dim=-1))
    handles[0].remove()
    assert torch.equal(model.module.forward_features(inputs), second.apply(plain, dim=-1))
    handles[1].remove()
    assert torch.equal(model.module.forward_features(inputs), plain)


# Models that give maps


def _swin():
    return SwinTransformer(img_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=0)


@pytest.mark.parametrize("build", [partial(timm.create_model, "test_resnet"), _swin], ids=["NCHW", "NHWC"])
def test_maps_are_patches_without_prefix(build):
    model, image = TokenModel("maps", random_weights(build()), "0" * 64), image_of(11, 80, 60)
    features, channel_map = model.encode([image]), random_map(model.channels)
    plain = model.module.forward_features(inputs_of(model, image))
    plain = plain.permute(0, 3, 1, 2) if build is _swin else plain
    assert torch.equal(features.maps, plain)
    assert (features.prefix, features.has_class, features.normalised) == (0, False, build is _swin)
    assert torch.equal(model.swapped(features, channel_map).maps, channel_map.apply(plain))
    model.encoding = Encoding(precision="bfloat16")
    assert model.encode([image]).tokens.dtype == torch.float32


def test_maps_have_no_norm_of_tokens_to_be_taken_before():
    image = image_of(11, 80, 60)
    with pytest.raises(UserError, match="gives maps"):
        TokenModel("swin", _swin(), "0" * 64, swap_at="before_norm").encode([image])
    # Where no norm follows there is nothing to take them before.
    module = timm.create_model("test_resnet")
    one, other = (TokenModel("resnet", module, "0" * 64, swap_at=at) for at in ("after_norm", "before_norm"))
    assert torch.equal(one.encode([image]).tokens, other.encode([image]).tokens)


# Mistakes


def test_mistakes_in_what_is_swapped():
    with pytest.raises(UserError, match="no class token"):
        make("fc_norm", swap_on="class")
    plain, resnet = BUILD["plain"](), timm.create_model("test_resnet")
    with pytest.raises(UserError, match="no class token"):
        hook_tokens(BUILD["fc_norm"](), ChannelMap(WIDTH), "class")
    with pytest.raises(UserError, match="for 8 channels, the model has 24"):
        hook_tokens(plain, ChannelMap(8))
    several = VIT()
    several.norm = nn.ModuleList([nn.LayerNorm(WIDTH)])
    for module in (resnet, several):
        with pytest.raises(UserError, match="no final norm"):
            hook_tokens(module, ChannelMap(WIDTH))
    swin = _swin()
    with hook_tokens(swin, ChannelMap(16)), pytest.raises(UserError, match="no tokens but"):
        swin.forward_features(torch.zeros(1, 3, 32, 32))


def test_mistakes_in_features():
    image = image_of(13, 40, 40)
    after, before = make("plain"), make("plain", swap_at="before_norm")
    with pytest.raises(ValueError, match="not taken where this model swaps, after_norm"):
        after.swapped(before.encode([image]), ChannelMap(WIDTH))
    with pytest.raises(ValueError, match="not taken where this model swaps, before_norm"):
        before.swapped(after.encode([image]), ChannelMap(WIDTH))
    for other in (ChannelMap(8, ((0, 1),)), ChannelMap(8)):
        with pytest.raises(ValueError, match="24 channels, the swap is for 8"):
            after.swapped(after.encode([image]), other)
    with pytest.raises(ValueError, match="of one model and one input size"):
        TokenFeatures.concatenate([after.encode([image]), before.encode([image])])
    with pytest.raises(ValueError, match="must be some"):
        after.encode([])


class _Odd(nn.Module):
    """A model whose features are of some kind."""

    num_features = WIDTH

    def __init__(self, output):
        super().__init__()
        self.norm, self.output = nn.LayerNorm(WIDTH), output

    def forward_features(self, inputs):
        self.norm(torch.zeros(WIDTH))
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([torch.zeros(1, 4, WIDTH)], "neither tokens nor maps"),
        (torch.zeros(1, WIDTH), "neither tokens nor maps"),
        (torch.zeros(1, 5, WIDTH), "gives 5 tokens, not 0 and a square of patches"),
    ],
)
def test_other_kinds_of_features(output, message):
    image = image_of(14, 40, 40)
    with pytest.raises(UserError, match=message):
        TokenModel("odd", _Odd(output), "0" * 64).encode([image])
    with pytest.raises(UserError, match="does not end in its norm"):
        TokenModel("odd", _Odd(output), "0" * 64, swap_at="before_norm").encode([image])


def test_an_input_that_is_not_square():
    module = VIT(img_size=(32, 64))
    with pytest.raises(UserError, match="not square"):
        TokenModel("wide", module, "0" * 64)
