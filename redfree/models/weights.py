"""Named models with the weights that ship in the package, and strict loading of weights files."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

from redfree.errors import UserError, unknown
from redfree.files import sha256_of
from redfree.models.nano import NANO_ARCHITECTURES, build_nano
from redfree.models.sam import SamModel

WEIGHTS = Path(__file__).parent.parent / "weights"


def shipped_weights(name: str) -> Path:
    """Path of the weights of a model that ships in the package."""
    return WEIGHTS / f"{name}.safetensors"


def load_model(name: str, checkpoint: Path | None = None) -> SamModel:
    """Builds a model by name.

    Args:
        name: a key of `NANO_ARCHITECTURES`.
        checkpoint: a weights file to use instead of the shipped one.

    Raises:
        UserError: the name is unknown, or the weights file is missing, truncated, unsafe or of another architecture.
    """
    if name not in NANO_ARCHITECTURES:
        raise unknown("model", name, NANO_ARCHITECTURES)
    path = checkpoint or shipped_weights(name)
    state, sam = read_state(path), build_nano(NANO_ARCHITECTURES[name])
    _load_strictly(sam, state, path, name)
    return SamModel(name, sam, sha256_of(path))


def load_sam(name: str, checkpoint: str | Path | None = None) -> Sam:
    """The plain `segment_anything` model behind `load_model`, for `SamPredictor` and the user's own code.

    Raises:
        UserError: as `load_model`.
    """
    return load_model(name, Path(checkpoint) if checkpoint else None).sam


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Reads a state dict from a safetensors file or a PyTorch checkpoint, never running code that it holds.

    Raises:
        UserError: the file is missing, truncated, or a pickle with anything but tensors in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give the path of an existing one")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on old pickle protocols; what matters here is an error
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path}: truncated or not safetensors ({error}); copy or download it again") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: truncated, or a pickle that holds more than tensors, refused; save its state_dict as safetensors"
        ) from None
    except Exception as error:  # torch's unpickler lets a corrupt file raise nearly anything, KeyError to struct.error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: truncated or not a checkpoint ({reason}); copy or download it again") from None
    if not isinstance(state, Mapping) or any(type(k) is not str or not isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: holds no plain state dict of tensors; save model.state_dict()")
    return state


def _load_strictly(sam: Sam, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    wanted = {key: tuple(value.shape) for key, value in sam.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    reshaped = sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key])
    differences = [
        f"{len(keys)} {kind} (first {keys[0]})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if differences:
        raise UserError(f"{path}: not the architecture of {name}: tensors " + ", ".join(differences))
    sam.load_state_dict(state)
