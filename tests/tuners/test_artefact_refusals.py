"""The one line with which each wrong file of a tuner is refused."""

import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tinyworld import make_model
from tunerworld import fingerprint, same, shake, shaken, tiny_vit, tune

from redfree.errors import UserError
from redfree.models.nano import build_nano
from redfree.models.tokens import TokenModel
from redfree.tuners.artefact import load_tuner, save_tuner, spec_of
from redfree.tuners.catalogue import tuner_options

KEY = "redfree_tuner"


@pytest.fixture
def model(tiny_sam):
    return make_model(tiny_sam, sha="ab" * 32)


@pytest.fixture
def path(tmp_path, model):
    """The file of SAM-PARSER fitted to a model, which is plain again."""
    attachment = tune("sam-parser", model.module)
    shake(attachment, 0.2)
    spec = spec_of("sam-parser", tuner_options("sam-parser", {}), attachment, model)
    save_tuner(tmp_path / "tuner.safetensors", attachment, spec)
    attachment.detach()
    return tmp_path / "tuner.safetensors"


def rewrite(path, state=None, **changes):
    """Writes a file anew with other tensors or another spec, as no `save_tuner` would."""
    with safe_open(path, "pt") as file:
        spec = {**json.loads(file.metadata()[KEY]), **changes}
    save_file(state or load_file(path), path, {KEY: json.dumps(spec)})


def refusal(path, model, mend=True):
    """The one line with which a file is refused, which leaves the model as it is."""
    before = fingerprint(model.module)
    with pytest.raises(UserError) as refused:
        load_tuner(path, model)
    assert same(before, fingerprint(model.module))
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}: ")
    assert "; " in message or not mend
    return message


def test_a_missing_file(tmp_path, model):
    assert "no such tuner file" in refusal(tmp_path / "none.safetensors", model)
    assert "no such tuner file" in refusal(tmp_path, model)


@pytest.mark.parametrize("keep", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file(path, model, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert "truncated or not safetensors" in refusal(path, model)


@pytest.mark.parametrize("junk", [b"\x89PNG\r\n\x1a\n" + bytes(200), b"\x80\x02}q\x00.", b"\xff" * 64])
def test_another_kind_of_file(path, model, junk):
    path.write_bytes(junk)
    assert "truncated or not safetensors" in refusal(path, model)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_without_a_spec(path, model, metadata):
    save_file(load_file(path), path, metadata)
    assert "says not which tuner" in refusal(path, model)


@pytest.mark.parametrize("text", ["{", "", "[" * 10**5, "[1]", "null", "7"], ids=lambda text: text[:4])
def test_a_spec_that_is_no_json_object(path, model, text):
    save_file(load_file(path), path, {KEY: text})
    assert "is no JSON object" in refusal(path, model)


def test_a_newer_format_is_told_from_a_misspelt_field(path, model):
    rewrite(path, format=2, compressed=True)
    assert "format 2 is newer than 1, which this redfree reads; upgrade redfree" in refusal(path, model)


@pytest.mark.parametrize(
    "change", [{"format": 0}, {"format": "2"}, {"variant": "other"}, {"trained": None}, {"surplus": 1}]
)
def test_a_field_that_is_not_valid_is_named(path, model, change):
    rewrite(path, **change)
    assert next(iter(change)) in refusal(path, model, mend=False)


def test_another_model(path, model):
    model.name = "sam_vit_b"
    assert "was fitted on tiny, not on sam_vit_b; load tiny" in refusal(path, model)


def test_other_weights_of_the_same_model(path, model):
    model.checkpoint_sha256 = "cd" * 32
    assert f"was fitted on weights {'ab' * 8} of tiny, not on {'cd' * 8}; give" in refusal(path, model)


def test_a_token_model(path):
    model = TokenModel("tiny", tiny_vit(), "ab" * 32)
    assert "sam-parser is defined on models with a neck" in refusal(path, model)


def test_an_unknown_tuner(path, model):
    rewrite(path, tuner="sam-parsr")
    assert "unknown tuner 'sam-parsr'; did you mean 'sam-parser'?" in refusal(path, model)


def test_an_unknown_option(path, model):
    rewrite(path, options={"rank": 4})
    assert "rank" in refusal(path, model)


def test_fewer_tensors_than_the_spec_counts(path, model):
    state = load_file(path)
    del state["neck.2.singular_values"]
    rewrite(path, state)
    assert "holds 16 parameters where its spec says 32" in refusal(path, model)


def test_tensors_under_other_names(path, model):
    state = load_file(path)
    state["neck.1.singular_values"] = state.pop("neck.2.singular_values")
    rewrite(path, state)
    assert "2 tensors are not those of this tuner on this model, such as neck." in refusal(path, model)


def test_tensors_of_another_shape(path, model):
    state = {name: value.view(4, 4) for name, value in load_file(path).items()}
    rewrite(path, state)
    assert "2 tensors are not those of this tuner on this model, such as neck." in refusal(path, model)


def test_a_model_of_the_name_with_another_architecture(path, tiny_arch):
    wider = make_model(shaken(build_nano(type(tiny_arch)(64, 16, 32, 32, 2, 2, 32))), sha="ab" * 32)
    assert "tensors are not those of this tuner" in refusal(path, wider)
