import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from redfree.errors import UserError
from redfree.models.catalogue import DINO_NANO_ARCHITECTURES
from redfree.models.dino_nano import build_dino_nano
from redfree.models.timm_names import TIMM_BACKBONES
from redfree.models.tokens import TokenModel, build_timm, timm_state

WIDTH, HEADS, PATCH = 24, 2, 8
SMALL = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 0}
VIT = partial(VisionTransformer, **SMALL)
DINOV3 = partial(
    Eva,
    **SMALL,
    dynamic_img_size=True,
    init_values=0.1,
    rope_type="dinov3",
    rope_temperature=100,
    rope_rotate_half=True,
    use_rot_pos_emb=True,
    use_abs_pos_emb=False,
    num_reg_tokens=4,
    use_fc_norm=False,
)
BUILD = {
    "dinov2": partial(VIT, init_values=0.1),
    "dinov2 with registers": partial(VIT, reg_tokens=4, no_embed_class=True, init_values=0.1),
    "dinov2 giant": partial(VIT, mlp_ratio=16 / 3, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, init_values=0.1),
    "clip": partial(VIT, pre_norm=True, act_layer="quick_gelu", num_classes=16),
    "dinov3": partial(DINOV3, qkv_bias=True),
}


def test_names_are_timms_and_their_table_needs_no_torch():
    assert set(TIMM_BACKBONES.values()) <= set(timm.list_models(include_tags=True))
    check = "import sys, redfree.models.timm_names; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


# The hub's state dicts as listed in the reference: their tensors, the mask token included, and their parameters in
# millions. timm has no mask token (C values); with registers it adds the class token's position embedding (C values)
# to the class token.
@pytest.mark.parametrize(
    ("name", "channels", "tensors", "millions"),
    [("dinov2_vits14", 384, 175, 22.06), ("dinov2_vitb14", 768, 175, 86.58), ("dinov2_vitl14", 1024, 343, 304.37)],
)
def test_parameters_of_dinov2(name, channels, tensors, millions):
    with torch.device("meta"):
        plain, registers = build_timm(name), build_timm(f"{name}_reg4")
    counts = [sum(p.numel() for p in module.parameters()) for module in (plain, registers)]
    assert len(plain.state_dict()) == tensors - 1
    assert len(registers.state_dict()) == tensors
    assert round((counts[0] + channels) / 1e6, 2) == millions
    assert counts[1] == counts[0] + 4 * channels - channels


def hub_dinov2(module):
    """The state of a timm model by the names of DINOv2's hub files."""
    state = {key: torch.randn_like(value) for key, value in module.state_dict().items()}
    width, expected = module.embed_dim, dict(state)
    hub = {**state, "mask_token": torch.zeros(1, width)}
    if isinstance(module.blocks[0].mlp.act, nn.SiLU):
        hub = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in hub.items()}
    if module.reg_token is not None:
        own = torch.randn(1, 1, width)
        hub["register_tokens"] = hub.pop("reg_token")
        hub["pos_embed"] = torch.cat([own, state["pos_embed"]], 1)
        expected["cls_token"] = state["cls_token"] + own
    return hub, expected


def openai_clip(module):
    """The state of a timm model by the names of OpenAI's files, some of the text model's beside them."""
    state = {key: torch.randn_like(value) for key, value in module.state_dict().items()}
    renamed = {
        "patch_embed.proj": "conv1",
        "pos_embed": "positional_embedding",
        "cls_token": "class_embedding",
        "norm_pre": "ln_pre",
        "blocks.": "transformer.resblocks.",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "qkv.": "in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    state["head.bias"] = torch.zeros_like(state["head.bias"])
    official = {"positional_embedding": torch.zeros(77, 8), "logit_scale": torch.zeros(())}
    for key, value in state.items():
        name = key.replace("norm.", "ln_post.") if key.startswith("norm.") else key
        for mine, theirs in renamed.items():
            name = name.replace(mine, theirs)
        official[f"visual.{name}"] = value[0] if key == "pos_embed" else value[0, 0] if key == "cls_token" else value
    del official["visual.head.bias"]
    official["visual.proj"] = official.pop("visual.head.weight").T
    return official, state


def hub_dinov3(module):
    """The state of a timm model by the names of DINOv3's files."""
    state = {key: torch.randn_like(value) for key, value in module.state_dict().items()}
    renamed = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
    official = {"mask_token": torch.zeros(1, WIDTH), "rope_embed.periods": torch.ones(3)}
    for key, value in state.items():
        name = key
        for mine, theirs in renamed.items():
            name = name.replace(mine, theirs)
        official[name] = value
    for block in range(2):
        query, value = (official.pop(f"blocks.{block}.attn.{part}_bias") for part in "qv")
        official[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        official[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(3 * WIDTH)
    return official, state


OFFICIAL = {
    "dinov2": hub_dinov2,
    "dinov2 with registers": hub_dinov2,
    "dinov2 giant": hub_dinov2,
    "clip": openai_clip,
    "dinov3": hub_dinov3,
}


@pytest.mark.parametrize("kind", OFFICIAL)
def test_official_files_load_strictly(kind):
    module = BUILD[kind]()
    official, expected = OFFICIAL[kind](module)
    keys = list(official)
    converted = timm_state(module, official)
    assert list(official) == keys, "the argument is left alone"
    assert all(torch.equal(converted[key], value) for key, value in expected.items())
    module.load_state_dict(converted, strict=True)


def hub_forward(state, images):
    """Normalised tokens by the formulas of DINOv2's own model, from the tensors of its hub file, at the native size."""

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + state["pos_embed"]
    registers = state.get("register_tokens", torch.zeros(1, 0, WIDTH)).expand(len(images), -1, -1)
    x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    for block in ("blocks.0", "blocks.1"):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(2, (3, HEADS, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        attended = linear((weights @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + state[f"{block}.ls1.gamma"] * attended
        hidden = norm(x, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in state:
            gate, content = linear(hidden, f"{block}.mlp.w12").chunk(2, -1)
            hidden = linear(F.silu(gate) * content, f"{block}.mlp.w3")
        else:
            hidden = linear(F.gelu(linear(hidden, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = x + state[f"{block}.ls2.gamma"] * hidden
    return norm(x, "norm")


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 with registers", "dinov2 giant"])
def test_a_converted_dinov2_computes_what_its_own_code_does(kind):
    module, images = BUILD[kind]().eval().requires_grad_(False), torch.randn(2, 3, 32, 32)
    state = {key: value * 0.3 for key, value in hub_dinov2(module)[0].items()}
    module.load_state_dict(timm_state(module, state), strict=True)
    expected = hub_forward(state, images)
    torch.testing.assert_close(module.forward_features(images), expected, atol=1e-5, rtol=0)
    assert expected.std() > 1e-2, "the comparison must not be of constants"


def test_timms_own_states_pass_and_others_are_left_to_strict_loading(capsys):
    nano = partial(build_dino_nano, DINO_NANO_ARCHITECTURES["dino_nano"])
    for build in (*BUILD.values(), nano, partial(timm.create_model, "test_resnet")):
        state = build().state_dict()
        converted = timm_state(build(), state)
        assert set(converted) == set(state)
        assert all(torch.equal(converted[key], value) for key, value in state.items())
    state = BUILD["dinov2 with registers"]().state_dict()
    assert timm_state(BUILD["dinov2"](), state) is state
    timm_state(DINOV3(qkv_bias=False), hub_dinov3(BUILD["dinov3"]())[0])
    assert capsys.readouterr().out == ""


def test_an_input_side_interpolates_the_published_positions():
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_timm("dinov2_vits14").state_dict().items()}
    module = build_timm("dinov2_vits14", input_side=56)
    assert {key: value.shape for key, value in module.state_dict().items()} == shapes
    model = TokenModel("dinov2", module, "0" * 64)
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    features = model.encode([image])
    assert (model.input_side, features.grid) == (56, (4, 4))
    inputs = create_transform(**{**resolve_model_data_config(module), "input_size": (3, 56, 56)})
    expected = module.forward_features(inputs(Image.fromarray(image))[None])
    torch.testing.assert_close(features.tokens, expected, atol=1e-5, rtol=0)
    assert model.options() == {"swap_on": "both", "swap_at": "after_norm", "fit": "crop", "input_side": 56}
    assert model.parameters == 22_056_192


@pytest.mark.parametrize(("name", "prefix"), [("test_resnet", 0), ("xcit_nano_12_p16_224", 1)])
def test_an_input_side_of_other_models(name, prefix):
    model = TokenModel(name, build_timm(name, input_side=64), "0" * 64)
    features = model.encode([np.zeros((30, 40, 3), np.uint8)])
    assert (model.input_side, features.prefix) == (64, prefix)
    assert features.grid == (64 // 32, 64 // 32) if prefix == 0 else (4, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_vits41", "did you mean 'dinov2_vits14'"),
        ("vit_base_patch16_244", "did you mean 'vit_base_patch16_224"),
        ("vit_base_patch16_224.may", "did you mean 'vit_base_patch16_224.mae'"),
        ("hf-hub:timm/vit_base_patch16_224.mae", "unknown timm backbone"),
        ("0", "known: clip_vit_b16"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        build_timm(name)


def test_a_side_that_patches_do_not_divide():
    with pytest.raises(UserError, match="225 is not a multiple of the model's patches of 14; take 224"):
        build_timm("dinov2_vits14", input_side=225)
