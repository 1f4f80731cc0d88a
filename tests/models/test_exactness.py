"""Our encoding and decoding against the official predictors, for odd images and every kind of prompt."""

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor
from segment_anything import SamPredictor

from redfree.channels import ChannelMap
from redfree.data.reading import read_image
from redfree.data.schema import Prompt
from redfree.errors import UserError
from redfree.models.base import Features, Frame
from redfree.models.catalogue import SAM2_NANO_ARCHITECTURES, Sam2NanoArchitecture
from redfree.models.loading import load_model
from redfree.models.sam import SamModel
from redfree.models.sam2 import Sam2Model
from redfree.models.sam2_nano import build_sam2_nano

TINY2 = Sam2NanoArchitecture(64, 16, 8, (1, 1, 2, 1), (4, 2, 4, 2), (3,), 2)
PROMPTS = {
    "point": Prompt(((5.0, 7.0),), (1,)),
    "several points": Prompt(((5.0, 7.0), (2.0, 1.0), (9.0, 3.0)), (1, 0, 1)),
    "box": Prompt((), (), (1.0, 2.0, 9.0, 8.0)),
    "box and point": Prompt(((5.0, 7.0),), (0,), (1.0, 2.0, 9.0, 8.0)),
}
SIZES = {"square": (64, 64), "portrait": (90, 37), "panorama": (12, 200), "small": (10, 11), "large": (300, 280)}


def shaken(module, seed=1):
    """A module whose every weight is random, position tables and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return module.eval().requires_grad_(False)


def official_sam2(model):
    predictor, side = SAM2ImagePredictor(model.sam2), model.input_side
    # The predictor assumes an input of 1024 pixels.
    predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]
    return predictor


def predict(predictor, image, prompt):
    predictor.set_image(image)
    points = (np.array(prompt.points), np.array(prompt.labels)) if prompt.points else (None, None)
    box = None if prompt.box is None else np.array(prompt.box)
    return predictor.predict(*points, box=box, multimask_output=False, return_logits=True)[0][0]


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(params=["sam", "sam2", "sam2 before no_mem_embed", "sam2 post-processed", "sam_nano", "sam2_nano"])
def pair(request, tiny_sam):
    """A model of ours and its official predictor, on random and on trained weights."""
    match request.param:
        case "sam":
            model = SamModel("tiny", tiny_sam, "")
        case "sam2":
            model = Sam2Model("tiny", shaken(build_sam2_nano(TINY2)), "")
        case "sam2 before no_mem_embed":
            model = Sam2Model("tiny", shaken(build_sam2_nano(TINY2)), "", swap_at="before_no_mem_embed")
        case "sam2 post-processed":
            model = Sam2Model("tiny", shaken(build_sam2_nano(TINY2, apply_postprocessing=True)), "")
        case name:
            model = load_model(name)
    return model, SamPredictor(model.sam) if isinstance(model, SamModel) else official_sam2(model)


def assert_close(found, expected):
    largest = max(1.0, float(np.abs(expected).max()))
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) <= 1e-5 * largest


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_logits_equal_the_official_predictor(pair, size, prompt):
    model, predictor = pair
    image = noise(size)
    found = model.decode(model.encode([image]), [prompt])[0].numpy()
    assert_close(found, predict(predictor, image, prompt))
    assert found.std() > 1e-4, "the comparison must not be of constants"


def files(folder):
    """The same object in every kind of file that a photograph comes in."""
    pixels = noise((30, 44))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.fromarray(pixels).convert("L").save(folder / "grey.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(pixels).save(folder / "rotated.jpg", exif=rotated)
    return sorted(folder.iterdir())


def test_every_kind_of_file_gives_the_official_logits(pair, tmp_path):
    model, predictor = pair
    for path in files(tmp_path):
        image = read_image(path)
        assert image.shape == ((44, 30, 3) if path.name == "rotated.jpg" else (30, 44, 3))
        found = model.decode(model.encode([image]), [PROMPTS["point"]])[0].numpy()
        assert_close(found, predict(predictor, image, PROMPTS["point"]))


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1), (2, 9000)])
def test_strips_are_refused_in_one_line(pair, size):
    model, _ = pair
    if isinstance(model, Sam2Model) and size[0] == 2:
        pytest.skip("SAM 2 stretches both sides: two rows of pixels are enough")
    with pytest.raises(UserError, match=rf"{size[1]} x {size[0]} pixels \(width x height\) is too thin") as refused:
        model.encode([noise((40, 40)), noise(size)])
    assert len(str(refused.value).splitlines()) == 1


def test_images_encoded_together_equal_images_encoded_alone(pair):
    model, _ = pair
    images, prompts = [noise(size, 3) for size in SIZES.values()], [PROMPTS["point"]] * len(SIZES)
    together = model.decode(model.encode(images), prompts)
    for image, logits in zip(images, together, strict=True):
        assert_close(logits.numpy(), model.decode(model.encode([image]), prompts[:1])[0].numpy())


def test_an_attached_swap_equals_decoding_swapped_features(pair):
    model, predictor = pair
    channel_map = ChannelMap(model.channels, ((0, 3), (5, 1)), (2,))
    features = model.encode([noise((50, 64))])
    expected = model.decode(features.with_maps(channel_map.apply(features.maps)), [PROMPTS["point"]])[0].numpy()
    unswapped = predict(predictor, noise((50, 64)), PROMPTS["point"])
    at = getattr(model, "swap_at", None)
    with channel_map.attach(model.module, at):
        assert_close(predict(predictor, noise((50, 64)), PROMPTS["point"]), expected)
    assert np.abs(expected - unswapped).max() > 1e-4, "the swap must change something"
    assert (predict(predictor, noise((50, 64)), PROMPTS["point"]) == unswapped).all()


def test_the_identity_changes_nothing_bit_for_bit(pair):
    model, predictor = pair
    image, identity = noise((50, 64)), ChannelMap(model.channels)
    features = model.encode([image])
    mapped = features.with_maps(identity.apply(features.maps))
    plain, same = (model.decode(given, [PROMPTS["box"]])[0] for given in (features, mapped))
    assert torch.equal(plain, same)
    before = predict(predictor, image, PROMPTS["box"])
    with identity.attach(model.module, getattr(model, "swap_at", None)):
        assert (predict(predictor, image, PROMPTS["box"]) == before).all()


def test_a_swap_attached_to_sam2_acts_on_an_image_that_was_set_before():
    model = Sam2Model("tiny", shaken(build_sam2_nano(TINY2)), "")
    predictor, channel_map = official_sam2(model), ChannelMap(16, ((0, 3),))
    image = noise((50, 64))
    expected = predict(predictor, image, PROMPTS["point"])
    with channel_map.attach(model.sam2):
        prompt = np.array(PROMPTS["point"].points), np.array([1])
        late = predictor.predict(*prompt, multimask_output=False, return_logits=True)[0][0]
        assert np.abs(late - expected).max() > 1e-4
        assert (late == predict(predictor, image, PROMPTS["point"])).all()


def test_before_and_after_the_memory_embedding_are_not_the_same_swap():
    module, channel_map, masks = shaken(build_sam2_nano(TINY2)), ChannelMap(16, ((0, 3),)), []
    for at in ("image_embed", "before_no_mem_embed"):
        model = Sam2Model("tiny", module, "", swap_at=at)
        features = model.encode([noise((50, 64))])
        masks.append(model.decode(features.with_maps(channel_map.apply(features.maps)), [PROMPTS["point"]])[0])
    assert (masks[0] - masks[1]).abs().max() > 1e-4


def test_sam2_features_hold_what_the_predictor_keeps():
    model = Sam2Model("tiny", shaken(build_sam2_nano(TINY2)), "")
    predictor, image = official_sam2(model), noise((33, 64))
    predictor.set_image(image)
    features = model.encode([image])
    torch.testing.assert_close(features.maps, predictor._features["image_embed"], atol=1e-5, rtol=1e-5)
    for ours, official in zip(features.high_resolution, predictor._features["high_res_feats"], strict=True):
        torch.testing.assert_close(ours, official, atol=1e-5, rtol=1e-5)
    before = Sam2Model("tiny", model.sam2, "", swap_at="before_no_mem_embed").encode([image])
    added = model.sam2.no_mem_embed[0, 0, :, None, None]
    torch.testing.assert_close(before.maps + added, features.maps, atol=1e-6, rtol=1e-6)


def test_post_processing_falls_back_to_another_mask_and_refuses_the_shared_decoder():
    module = shaken(build_sam2_nano(TINY2, apply_postprocessing=True))
    model = Sam2Model("tiny", module, "")
    features = model.encode([noise((50, 64), seed) for seed in range(4)])
    chosen = model.decode(features, [PROMPTS["point"]] * 4)
    module.sam_mask_decoder.dynamic_multimask_via_stability = False
    single = model.decode(features, [PROMPTS["point"]] * 4)
    assert any(not torch.equal(a, b) for a, b in zip(chosen, single, strict=True))
    module.sam_mask_decoder.dynamic_multimask_via_stability = True
    assert not model.prefers_shared_decoding
    with pytest.raises(UserError, match="choose generic"):
        model.swap_decoder(features.select([0]), model.prompt_tokens(PROMPTS["point"], features.frames[0]))


def test_sam2_nano_is_built_of_the_sizes_that_it_names():
    arch = SAM2_NANO_ARCHITECTURES["sam2_nano"]
    model = Sam2Model("sam2_nano", build_sam2_nano(arch), "")
    features = model.encode([noise((64, 64))])
    assert features.maps.shape == (1, 64, 8, 8)
    assert [tuple(level.shape) for level in features.high_resolution] == [(1, 8, 32, 32), (1, 16, 16, 16)]


def random_maps(channels, count=6, seed=5):
    rng, maps = np.random.default_rng(seed), np.tile(np.arange(channels), (count, 1))
    for row, changed in zip(maps, (0, 1, 2, 5, channels), strict=False):
        row[rng.permutation(channels)[:changed]] = rng.integers(-1, channels, changed)
    maps[-1] = -1
    return torch.tensor(maps)


@pytest.mark.parametrize("at", ["image_embed", "before_no_mem_embed"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_both_decoders_of_sam2_equal_the_official_one_on_swapped_features(at, prompt):
    model, image = Sam2Model("tiny", shaken(build_sam2_nano(TINY2)), "", swap_at=at), noise((50, 64))
    predictor, features, maps = official_sam2(model), model.encode([image]), random_maps(16)
    tokens = model.prompt_tokens(prompt, features.frames[0])
    decoded = [decoder(features, tokens)(maps) for decoder in (model.map_decoder, model.swap_decoder)]
    for number, index in enumerate(maps.tolist()):
        with ChannelMap.from_index(index).attach(model.sam2, at):
            expected = predict(predictor, image, prompt)
        for low in decoded:
            found = model.upscale(low[number : number + 1], features.frames[0], (50, 64))[0].numpy()
            assert_close(found, expected)


def test_the_gradient_of_sam2_is_the_slope_of_the_loss():
    model = Sam2Model("tiny", shaken(build_sam2_nano(TINY2)), "")
    with torch.inference_mode(False):
        features = Features(
            torch.randn(2, 16, 4, 4),
            (Frame((64, 64), (64, 64)),) * 2,
            (torch.randn(2, 2, 16, 16), torch.randn(2, 4, 8, 8)),
        )
        tokens = torch.randn(2, 3, 16)

        def loss(logits):
            return logits.square().mean((1, 2)).sum()

        gradient, step = model.gradient(features, tokens, loss), 1e-2
        direction = torch.randn_like(features.maps)
        ends = [
            loss(model.decode_maps(features.with_maps(features.maps + sign * step * direction), tokens))
            for sign in (1, -1)
        ]
    slope = float((ends[0] - ends[1]) / (2 * step))
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-2)
