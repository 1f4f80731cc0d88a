import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from redfree.errors import UserError
from redfree.files import sha256_of
from redfree.models import weights
from redfree.models.checkpoints import checkpoint_of
from redfree.models.loading import load_model
from redfree.models.nano import NANO_ARCHITECTURES, build_nano
from redfree.models.weights import read_state, shipped_weights

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def state():
    return {key: value.clone() for key, value in build_nano(NANO_ARCHITECTURES["tiny"]).state_dict().items()}


def refusal(path, name="tiny"):
    """The one line with which the file is refused."""
    with pytest.raises(UserError) as refused:
        load_model(name, path)
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    return message


def truncate(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def test_safetensors_and_pytorch_files_load_the_same_model(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": state}, tmp_path / "model.pt")
    torch.save({"state_dict": state, "meta": {"epoch": 3}}, tmp_path / "mmcv.pth")
    for name in ("a.safetensors", "a.pth", "old.pth", "model.pt", "mmcv.pth"):
        model = load_model("tiny", tmp_path / name)
        loaded = model.sam.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
        assert (model.name, model.checkpoint_sha256) == ("tiny", sha256_of(tmp_path / name))


def test_the_shipped_weights_are_the_default():
    assert load_model("sam_nano").checkpoint_sha256 == sha256_of(shipped_weights("sam_nano"))


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="unknown model 'sam_nanoo'; did you mean 'sam_nano'"):
        load_model("sam_nanoo")


def test_a_missing_file(tmp_path, monkeypatch):
    assert "no such weights file" in refusal(tmp_path / "none.safetensors")
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match=r"tiny.safetensors: no such weights file"):
        load_model("tiny")


@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.99])
def test_truncated_safetensors(tmp_path, state, keep):
    path = tmp_path / "cut.safetensors"
    save_file(state, path)
    truncate(path, keep)
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0, 0.001, 0.01, 0.5, 0.99])
def test_a_truncated_pytorch_file(tmp_path, state, keep, new):
    path = tmp_path / "cut.pth"
    torch.save(state, path, _use_new_zipfile_serialization=new)
    truncate(path, keep)
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("junk", [b"\x89PNG\r\n\x1a\n" + bytes(200), b"<html>404</html>\n", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_kind_of_file(tmp_path, junk, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(junk)
    assert refusal(path)


class Creates:
    """Creates a file when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, state, save):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    save({**state, "extra": Creates(marker)}, path)
    assert "refused" in refusal(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert marker.exists(), "the pickle must be one that does harm where it is trusted"


@pytest.mark.parametrize("value", [{"epoch": 3}, [1, 2], 5, {"model": {"w": torch.zeros(1), "epoch": 3}}])
def test_a_file_without_a_state_dict(tmp_path, value):
    path = tmp_path / "other.pth"
    torch.save(value, path)
    assert "holds no plain state dict" in refusal(path)


def test_tensors_under_names_that_are_no_text(tmp_path):
    path = tmp_path / "numbered.pth"
    torch.save({0: torch.zeros(1), "a": torch.zeros(1)}, path)
    assert refusal(path)


def test_another_architecture_says_which_tensors_differ(tmp_path, state):
    path = tmp_path / "other.safetensors"
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.mask_tokens.weight"] = torch.zeros(3, 16)
    save_file({**state, "surplus.a": torch.zeros(1), "surplus.b": torch.zeros(1)}, path)
    message = refusal(path)
    assert "1 missing (mask_decoder.iou_token.weight)" in message
    assert "2 unexpected (surplus.a, surplus.b)" in message
    assert "1 of another shape (mask_decoder.mask_tokens.weight (3, 16) for (4, 16))" in message


def test_long_differences_are_counted_and_begin_with_the_first(tmp_path, state):
    save_file({key: value for key, value in state.items() if "iou" not in key}, tmp_path / "a.safetensors")
    assert re.search(r"7 missing \(mask_decoder.iou[^,]*, [^,]*, [^,]*, ...\)", refusal(tmp_path / "a.safetensors"))


def test_a_torchscript_archive_of_unknown_origin_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    assert "a TorchScript archive that is in no registry, refused" in refusal(tmp_path / "a.pt")


def test_a_torchscript_archive_of_the_registry_is_read(tmp_path, monkeypatch):
    layer = torch.nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(layer).save(tmp_path / "a.pt")
    known = checkpoint_of("clip_vit_b16").model_copy(update={"sha256": sha256_of(tmp_path / "a.pt")})
    monkeypatch.setattr(weights, "checkpoints", lambda: {"clip_vit_b16": known})
    assert torch.equal(read_state(tmp_path / "a.pt")["weight"], layer.weight)


def test_the_weights_of_another_model_are_refused():
    assert "not the architecture of tiny" in refusal(shipped_weights("sam_nano"))


def test_read_state_gives_the_tensors_of_a_file(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    assert read_state(tmp_path / "a.safetensors").keys() == state.keys()


@pytest.mark.parametrize("error", [KeyError("x"), IndexError(), AssertionError("a\nb")])
def test_whatever_a_corrupt_file_makes_torch_raise_is_one_line(tmp_path, monkeypatch, error):
    def load(*_args, **_kwargs):
        raise error

    path = tmp_path / "corrupt.pth"
    path.touch()
    monkeypatch.setattr(torch, "load", load)
    assert "truncated" in refusal(path)
