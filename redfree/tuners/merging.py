"""A fitted tuner folded into the plain weights of its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import nn

from redfree.errors import UserError
from redfree.files import replace_atomically
from redfree.models.loading import load_module
from redfree.tuners.artefact import load_tuner, read_tuner


@dataclass(frozen=True)
class _Base:
    """The model that a tuner's file was fitted on."""

    name: str
    checkpoint_sha256: str
    module: nn.Module


def write_merged(tuner: Path, out: Path, checkpoint: Path | None = None) -> None:
    """Writes the weights of the plain model that computes what the tuned one does, to 1e-5.

    Args:
        tuner: a file of `redfree.tuners.artefact.save_tuner`.
        out: the safetensors file.
        checkpoint: the weights that it was fitted on; None for those that ship or were downloaded.

    Raises:
        UserError: the file is no tuner, was fitted on other weights, or what it inserts cannot be folded.
    """
    spec, _ = read_tuner(tuner)
    module, sha256 = load_module(spec.model, checkpoint)
    attachment = load_tuner(tuner, _Base(spec.model, sha256, module))
    try:
        attachment.merge()
    except UserError as error:
        raise UserError(f"{tuner}: {error}; use it with --tuner") from None
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    with replace_atomically(out) as file:
        file.write(save(state))
