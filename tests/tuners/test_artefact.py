"""Files of fitted tuners: what is written comes back."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from tinyworld import make_model
from tunerworld import encode, fingerprint, same, shake, tune

from redfree.tuners import sam_parser
from redfree.tuners.artefact import FORMAT, TunerSpec, load_tuner, read_tuner, save_tuner, spec_of
from redfree.tuners.catalogue import TUNERS, tuner_options

KEY = "redfree_tuner"


@pytest.fixture
def model(tiny_sam):
    return make_model(tiny_sam, sha="ab" * 32)


def fitted(model, tuner="sam-parser", **options):
    """A tuner on a model, moved as if it had been fitted, and its spec."""
    attachment = tune(tuner, model.module, **options)
    shake(attachment, 0.2)
    return attachment, spec_of(tuner, tuner_options(tuner, options), attachment, model, "0123456789abcdef")


@pytest.fixture
def path(tmp_path, model):
    """The file of SAM-PARSER fitted to a model, which is plain again."""
    attachment, spec = fitted(model)
    save_tuner(tmp_path / "tuner.safetensors", attachment, spec)
    attachment.detach()
    return tmp_path / "tuner.safetensors"


def test_the_spec_says_what_the_tensors_belong_to(model):
    _, spec = fitted(model, "sam-adapter", variant="original", reduction=4)
    assert spec.model_dump() == {
        "tuner": "sam-adapter",
        "options": {"reduction": 4, "removed_area": 0.25},
        "variant": "original",
        "model": "tiny",
        "checkpoint_sha256": "ab" * 32,
        "run_id": "0123456789abcdef",
        "inserted": 3 * 8 * 256 + 8 + 32 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * 32 + 32,
        "trained": spec.trained,
        "format": 1,
    }
    assert spec.trained > spec.inserted


@pytest.mark.parametrize("variant", ["paper", "original"])
@pytest.mark.parametrize("tuner", ["sam-parser", "sam-adapter"])
def test_a_loaded_tuner_computes_what_was_saved(tmp_path, model, tuner, variant):
    attachment, spec = fitted(model, tuner, variant=variant)
    save_tuner(tmp_path / "tuner.safetensors", attachment, spec)
    state, features = attachment.state(), encode(model.module)
    attachment.detach()
    plain = fingerprint(model.module)
    loaded = load_tuner(tmp_path / "tuner.safetensors", model)
    assert torch.equal(encode(model.module), features)
    assert loaded.state().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state().items())
    loaded.detach()
    assert same(plain, fingerprint(model.module))


def test_options_come_back(tmp_path, model):
    attachment, spec = fitted(model, "sam-adapter", reduction=4)
    save_tuner(tmp_path / "tuner.safetensors", attachment, spec)
    attachment.detach()
    loaded = load_tuner(tmp_path / "tuner.safetensors", model)
    assert loaded.inserted["prompt_generator.shared_mlp.weight"].shape == (32, 8)


def test_read_gives_the_spec_and_the_tensors(tmp_path, model):
    attachment, spec = fitted(model)
    save_tuner(tmp_path / "tuner.safetensors", attachment, spec)
    found, state = read_tuner(tmp_path / "tuner.safetensors")
    assert found == spec
    assert state.keys() == attachment.trained().keys()
    assert all(torch.equal(value, attachment.trained()[name]) for name, value in state.items())


def test_a_file_is_safetensors_with_its_spec_as_json(path):
    with safe_open(path, "pt") as file:
        assert file.metadata().keys() == {KEY}
        assert json.loads(file.metadata()[KEY])["format"] == FORMAT == 1
        assert set(file.keys()) == {"neck.0.singular_values", "neck.2.singular_values"}


def test_equal_tuners_make_equal_files(tmp_path, path, model):
    again = load_tuner(path, model)
    save_tuner(tmp_path / "again.safetensors", again, read_tuner(path)[0])
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_loading_leaves_the_generator_as_it_was(tmp_path, model):
    attachment, spec = fitted(model, "sam-adapter")
    save_tuner(tmp_path / "tuner.safetensors", attachment, spec)
    attachment.detach()
    before = torch.get_rng_state()
    load_tuner(tmp_path / "tuner.safetensors", model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_parameter_in_another_memory_layout_is_saved(tmp_path, model):
    model.module.to(memory_format=torch.channels_last)
    attachment, spec = fitted(model, variant="original")
    save_tuner(tmp_path / "tuner.safetensors", attachment, spec)
    state = read_tuner(tmp_path / "tuner.safetensors")[1]
    assert all(torch.equal(state[name], value) for name, value in attachment.trained().items())


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path, path, model, monkeypatch):
    attachment, before = load_tuner(path, model), path.read_bytes()
    shake(attachment)

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_tuner(path, attachment, read_tuner(path)[0])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_spec_that_counts_others_is_not_written(tmp_path, model):
    attachment, spec = fitted(model)
    for field in ("inserted", "trained"):
        with pytest.raises(ValueError, match="the attachment has"):
            save_tuner(tmp_path / "t.safetensors", attachment, spec.model_copy(update={field: 1}))
    assert not list(tmp_path.iterdir())


def test_a_tuner_of_anyone_is_saved_and_loaded(tmp_path, model, monkeypatch):
    """The file knows nothing of any tuner: here one that a name is given to in this test."""
    monkeypatch.setitem(TUNERS, "renamed", "sam_parser")
    attachment = sam_parser.attach(model.module, sam_parser.Options())
    shake(attachment)
    features = encode(model.module)
    save_tuner(tmp_path / "t.safetensors", attachment, spec_of("renamed", sam_parser.Options(), attachment, model))
    attachment.detach()
    assert read_tuner(tmp_path / "t.safetensors")[0].run_id is None
    load_tuner(tmp_path / "t.safetensors", model)
    assert torch.equal(encode(model.module), features)


def test_a_spec_is_frozen_and_strict():
    assert TunerSpec.model_config["frozen"]
    assert TunerSpec.model_config["extra"] == "forbid"
