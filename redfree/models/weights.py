"""Weights files: where they are, safe reading, strict loading."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.files import sha256_of
from redfree.models.catalogue import MODELS
from redfree.models.checkpoints import checkpoint_of, checkpoint_path, checkpoints, verified, weights_folder

WEIGHTS = Path(__file__).parent.parent / "weights"
State = Mapping[str, Tensor]
# Under these keys official files keep their state dict.
_WRAPPERS = ("model", "state_dict")
_SHOWN = 3


def shipped_weights(name: str) -> Path:
    """Path of the weights of a model that ships in the package."""
    return WEIGHTS / f"{name}.safetensors"


def find_weights(name: str, folder: Path | None = None) -> tuple[Path, str | None]:
    """The shipped weights file of a model, or the downloaded one with the SHA-256 that it was checked by.

    Args:
        name: a key of `MODELS`.
        folder: folder of downloaded checkpoints; see `weights_folder`.

    Raises:
        UserError: the model's weights are not here, or not those that were published.
    """
    if MODELS[name].ships:
        return shipped_weights(name), None
    path = checkpoint_path(name, folder or weights_folder())
    if not path.is_file():
        raise UserError(f"{path}: the weights of {name} are not here; run `redfree fetch {name}`, or give --checkpoint")
    return path, verified(path, checkpoint_of(name))


def published_sha256(name: str, folder: Path | None = None) -> str:
    """SHA-256 of the weights that a named model has or will have, read from a file only where none is published.

    Raises:
        UserError: none is published, and the weights are not here.
    """
    if not MODELS[name].ships and (known := checkpoint_of(name).sha256):
        return known
    path, found = find_weights(name, folder)
    return found or sha256_of(path)


def read_state(path: Path) -> State:
    """Reads a state dict from a safetensors file or a PyTorch checkpoint, never running code that it holds.

    A checkpoint may keep its state dict under the key "model" or "state_dict". TorchScript archives hold code and are
    read only where their SHA-256 is that of a checkpoint in the registry.

    Raises:
        UserError: the file is missing, truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give the path of an existing one")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = _read_archive(path) if _is_torchscript(path) else _unpickle(path)
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{path}: truncated or not safetensors ({error}); copy or download it again") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: truncated, or a pickle that holds more than tensors, refused; save its state_dict as safetensors"
        ) from None
    except Exception as error:  # torch's unpickler lets a corrupt file raise nearly anything, KeyError to struct.error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: truncated or not a checkpoint ({reason}); copy or download it again") from None
    return _only_tensors(path, state)


def _unpickle(path: Path) -> object:
    # A mapped file is read as its tensors are copied, so that it does not add to the peak of memory.
    mapped = zipfile.is_zipfile(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on old pickle protocols; what matters here is an error
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_archive(path: Path) -> object:
    trusted = {c.sha256 for c in checkpoints().values() if c.container == "jit"} - {None}
    if sha256_of(path) not in trusted:
        raise UserError(f"{path}: a TorchScript archive that is in no registry, refused; save its state_dict instead")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is phasing out TorchScript, in which OpenAI's files are
        return torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]


def _only_tensors(path: Path, state: object) -> State:
    if isinstance(state, Mapping):
        inner = [state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)]
        state = inner[0] if len(inner) == 1 else state
    if not isinstance(state, Mapping) or any(type(k) is not str or not isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: holds no plain state dict of tensors; save model.state_dict()")
    return state


def load_strictly(module: nn.Module, state: State, path: Path, name: str) -> None:
    """Loads a state dict whose keys and shapes are exactly the module's.

    Raises:
        UserError: they are not; the line counts the keys that are missing, unexpected or of another shape and names the
            first of each.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    reshaped = [
        f"{key} {found[key]} for {wanted[key]}"
        for key in sorted(wanted.keys() & found.keys())
        if wanted[key] != found[key]
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    differences = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in kinds if keys]
    if differences:
        raise UserError(f"{path}: not the architecture of {name}: tensors {', '.join(differences)}")
    module.load_state_dict(state)


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
