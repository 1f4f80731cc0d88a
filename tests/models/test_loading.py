"""Models by name: sizes on the meta device, official file forms, options, and a model of one's own."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor
from tinyworld import make_sample

from redfree.data.registry import open_dataset
from redfree.data.schema import read_samples
from redfree.errors import UserError
from redfree.models import catalogue
from redfree.models.catalogue import MODELS, Sam2Options
from redfree.models.checkpoints import checkpoint_of
from redfree.models.loading import build_module, check_options, load_model, load_module, load_sam, load_tokens
from redfree.models.nano import build_nano
from redfree.models.sam2_configs import build_sam2
from redfree.models.sam2_nano import build_sam2_nano
from redfree.tasks.segmentation import count_pixels, image_iou

ROOT = Path(__file__).parents[2]
# Counted by others on the built models.
REFERENCE = {
    "sam_vit_b": 93_735_472,
    "sam_vit_l": 312_342_832,
    "sam_vit_h": 641_090_608,
    "sam2_hiera_tiny": 38_945_986,
    "sam2_hiera_small": 46_043_842,
    "sam2_hiera_base_plus": 80_833_666,
    "sam2_hiera_large": 224_430_130,
    "sam2.1_hiera_tiny": 38_962_498,
    "sam2.1_hiera_small": 46_060_354,
    "sam2.1_hiera_base_plus": 80_850_178,
    "sam2.1_hiera_large": 224_446_642,
}
COUNTED = [name for name, entry in MODELS.items() if entry.parameters and "giant" not in entry.architecture]
TINY2 = catalogue.Sam2NanoArchitecture(64, 16, 8, (1, 1, 2, 1), (4, 2, 4, 2), (3,), 2)


@pytest.fixture
def meta(monkeypatch):
    """Builds modules without memory; SAM 2 reads some numbers while it is built, which the meta device has not."""
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_channels_are_those_of_the_built_model(name):
    entry = MODELS[name]
    module = build_module(entry, entry.options())
    assert sum(p.numel() for p in module.parameters()) == entry.parameters
    if entry.family == "timm":
        assert module.num_features == entry.channels
    elif entry.family == "sam2":
        assert module.hidden_dim == entry.channels
    else:
        assert module.prompt_encoder.embed_dim == entry.channels


def test_parameters_equal_the_references():
    assert {name: MODELS[name].parameters for name in REFERENCE} == REFERENCE


def test_every_model_ships_or_has_a_checkpoint():
    for name, entry in MODELS.items():
        if not entry.ships:
            assert checkpoint_of(name).filename


@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
def test_a_configuration_is_read_though_hydra_was_initialised_elsewhere(version, tmp_path):
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base=None):
        module = build_sam2(f"configs/{version}/{version}_hiera_t.yaml", apply_postprocessing=True)
    decoder = module.sam_mask_decoder
    assert decoder.dynamic_multimask_via_stability
    assert (decoder.dynamic_multimask_stability_delta, decoder.dynamic_multimask_stability_thresh) == (0.05, 0.98)


@pytest.fixture
def tiny_sam2(monkeypatch, tmp_path):
    """A named SAM 2 and a file of its weights in the official form."""
    entry = catalogue.ModelEntry("sam2", "tiny2", 0, 16, ships=True)
    monkeypatch.setitem(catalogue.SAM2_NANO_ARCHITECTURES, "tiny2", TINY2)
    monkeypatch.setitem(catalogue.MODELS, "tiny2", entry)
    torch.save({"model": build_sam2_nano(TINY2).state_dict()}, tmp_path / "tiny2.pt")
    return tmp_path / "tiny2.pt"


def test_options_reach_the_model_and_the_record(tiny_sam2):
    options = {"apply_postprocessing": True, "swap_at": "before_no_mem_embed", "batch": 3, "precision": "bfloat16"}
    model = load_model("tiny2", tiny_sam2, options)
    assert model.options() == {"apply_postprocessing": True, "swap_at": "before_no_mem_embed"}
    assert (model.encoding.batch, model.encoding.precision) == (3, "bfloat16")
    assert check_options("tiny2", options).recorded() == options
    assert Sam2Options().recorded() == {"apply_postprocessing": False, "swap_at": "image_embed"}


def test_the_record_of_an_old_cell_names_no_options():
    assert check_options("sam_nano", {}).recorded() == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sam_nano", {"swap_at": "image_embed"}, "options of sam_nano: unknown field 'swap_at'"),
        ("sam2_nano", {"swap_at": "here"}, "options of sam2_nano: field swap_at: "),
        ("sam_nano", {"precision": "int8"}, "options of sam_nano: field precision: "),
        ("sam_nano", {"device": "tpu"}, "options of sam_nano: field device: "),
        ("sam_nano", {"batch": 0}, "options of sam_nano: field batch: "),
        ("sam_nan", {}, "unknown model 'sam_nan'; did you mean 'sam_nano'?"),
    ],
)
def test_bad_options_are_one_line(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        load_model(name, None, options)
    assert len(str(refused.value).splitlines()) == 1


def test_a_model_without_weights_says_where_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("REDFREE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"sam_vit_b_01ec64.pth: the weights of sam_vit_b are not here; run `redfree"):
        load_model("sam_vit_b")
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="1 bytes, but sam_vit_b has 375042383"):
        load_model("sam_vit_b")


def test_a_bfloat16_encoder_is_close_and_gives_float32(tmp_path):
    image = make_sample(1, 128, 128).image
    exact, rounded = (
        load_model("sam_nano", None, options).encode([image]) for options in ({}, {"precision": "bfloat16"})
    )
    assert rounded.maps.dtype == torch.float32
    error = (exact.maps - rounded.maps).abs().max() / exact.maps.abs().max()
    assert 1e-5 < error < 0.1


def test_families_are_not_confused():
    with pytest.raises(UserError, match="dino_nano gives tokens, not masks"):
        load_model("dino_nano")
    with pytest.raises(UserError, match="sam_nano makes masks, it gives no tokens"):
        load_tokens("sam_nano")
    with pytest.raises(UserError, match="sam2_nano is not of segment_anything"):
        load_sam("sam2_nano")
    with pytest.raises(UserError, match="a backbone of timm needs its weights"):
        load_tokens("vit_tiny_patch16_224")


def test_any_backbone_of_timm_is_loaded_by_its_own_name(tmp_path):
    import timm

    module = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    save_file(module.state_dict(), tmp_path / "a.safetensors")
    model = load_tokens("vit_tiny_patch16_224", tmp_path / "a.safetensors")
    assert model.encode([make_sample(0).image]).tokens.shape == (1, 197, 192)


def test_mobile_sam_asks_for_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mobile_sam", None)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="mobile_sam needs its own package; pip install git"):
        load_module("mobile_sam", tmp_path / "a.safetensors")


def test_the_plain_module_is_for_the_official_predictor():
    module, sha256 = load_module("sam_nano")
    sample = make_sample(0)
    predictor = SamPredictor(module)
    predictor.set_image(sample.image)
    model = load_model("sam_nano")
    expected = model.decode(model.encode([sample.image]), [sample.prompt])[0].numpy()
    points = np.array(sample.prompt.points), np.array(sample.prompt.labels)
    found = predictor.predict(*points, multimask_output=False, return_logits=True)[0][0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sha256 == model.checkpoint_sha256


def example():
    """The example of docs/models.md."""
    return (ROOT / "docs/models.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.fixture
def similar(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "similar.py").write_text(example())
    yield
    sys.modules.pop("similar", None)


@pytest.mark.usefixtures("similar")
def test_the_documented_model_of_ones_own_has_thirty_lines_and_marks_what_looks_like_the_point():
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 30
    model = load_model("similar:build", None, {"threshold": 0.7})
    assert model.options() == {"threshold": 0.7}
    samples = list(read_samples(open_dataset("procedural/natural").load("validation", 8, 0)))
    masks = model.decode(model.encode([s.image for s in samples]), [s.prompt for s in samples])
    counts = np.array([count_pixels(np.asarray(m > 0), s.mask) for m, s in zip(masks, samples, strict=True)])
    everything = np.mean([s.mask.mean() for s in samples])
    assert image_iou(counts).mean() > 2 * everything


@pytest.mark.usefixtures("similar")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("similar:nothing", "has no attribute 'nothing'"),
        ("nowhere:build", "No module named 'nowhere'"),
        ("empty:build", "what the function returned has no channels, checkpoint_sha256,"),
    ],
)
def test_a_wrong_import_path_is_one_line(path, message, tmp_path):
    (tmp_path / "empty.py").write_text("def build(checkpoint, options): return None")
    with pytest.raises(UserError, match=message) as refused:
        load_model(path)
    assert len(str(refused.value).splitlines()) == 1


def test_listing_models_imports_no_torch():
    code = "import sys; from redfree.report.models import models_table; from pathlib import Path; "
    code += "print('sam2.1_hiera_tiny' in models_table(Path('/nowhere')), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_random_weights_in_the_official_form_of_a_small_sam_load(tmp_path, monkeypatch):
    arch = catalogue.NanoArchitecture(64, 16, 16, 32, 2, 2, 32)
    monkeypatch.setitem(catalogue.NANO_ARCHITECTURES, "tiny", arch)
    monkeypatch.setitem(catalogue.MODELS, "tiny", catalogue.ModelEntry("segment_anything", "tiny", 0, 16))
    torch.save(build_nano(arch).state_dict(), tmp_path / "tiny.pth")
    model = load_model("tiny", tmp_path / "tiny.pth")
    assert (model.encoding.batch, model.encoding.attention) == (1, "lean")
