"""What a tuner learnt as a file: its tensors as safetensors, and what they belong to as their metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import Field, JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.files import replace_atomically
from redfree.tuners.base import Attachment, TunerOptions
from redfree.tuners.catalogue import attach_tuner, tuner_options
from redfree.validation import Strict, validate

FORMAT: Literal[1] = 1
_KEY = "redfree_tuner"


class Base(Protocol):
    """What a file must know of the model beneath a tuner; every model of redfree has it."""

    @property
    def name(self) -> str:
        """Name under which records list the model."""
        ...

    @property
    def checkpoint_sha256(self) -> str:
        """Hex SHA-256 of the file of its untuned weights."""
        ...

    @property
    def module(self) -> nn.Module:
        """The live model."""
        ...


class TunerSpec(Strict):
    """What a tuner's tensors belong to.

    Attributes:
        tuner: name of the tuner.
        options: its own options, all of them.
        variant: what trains beside what is inserted, see `TunerOptions`.
        model: name of the model.
        checkpoint_sha256: hex SHA-256 of the file of the model's untuned weights.
        run_id: the cell that fitted it; null for a fit outside of any suite.
        inserted: number of parameters that the tuner adds.
        trained: number of parameters that were trained, which are those in the file.
        format: version of the file's layout.
    """

    tuner: str
    options: dict[str, JsonValue]
    variant: Literal["paper", "original"]
    model: str
    checkpoint_sha256: str
    run_id: str | None = None
    inserted: int = Field(ge=0)
    trained: int = Field(ge=0)
    format: Literal[1] = FORMAT


def spec_of(
    tuner: str, options: TunerOptions, attachment: Attachment, base: Base, run_id: str | None = None
) -> TunerSpec:
    """The spec of a tuner that is attached to a model."""
    return TunerSpec(
        tuner=tuner,
        options=options.model_dump(mode="json", exclude={"variant"}),
        variant=options.variant,
        model=base.name,
        checkpoint_sha256=base.checkpoint_sha256,
        run_id=run_id,
        inserted=attachment.inserted_count,
        trained=attachment.trained_count,
    )


def save_tuner(path: Path, attachment: Attachment, spec: TunerSpec) -> None:
    """Writes what an attached tuner learnt, atomically; equal tensors and specs make equal files.

    Raises:
        ValueError: the spec counts other parameters than the attachment has.
        OSError: the file cannot be written.
    """
    counts = (attachment.inserted_count, attachment.trained_count)
    if counts != (spec.inserted, spec.trained):
        raise ValueError(f"the spec counts {(spec.inserted, spec.trained)} parameters, the attachment has {counts}")
    state = {name: value.contiguous() for name, value in attachment.state().items()}
    about = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    with replace_atomically(path) as file:
        file.write(save(state, {_KEY: about}))


def read_tuner(path: Path) -> tuple[TunerSpec, dict[str, Tensor]]:
    """Reads a file of `save_tuner`: its spec, and its tensors by name, on the CPU.

    Raises:
        UserError: the file is missing, truncated, of another kind or of a newer format, or its tensors are not as many
            as its spec says.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such tuner file; give the path of an existing one")
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not safetensors ({error}); copy it again") from None
    spec = _parse(path, about)
    found = sum(value.numel() for value in state.values())
    if found != spec.trained:
        raise UserError(f"{path}: holds {found} parameters where its spec says {spec.trained}; copy it again")
    return spec, state


def _parse(path: Path, about: str | None) -> TunerSpec:
    if about is None:
        raise UserError(f"{path}: says not which tuner its tensors belong to; give a file that redfree wrote for one")
    try:
        data = json.loads(about)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{path}: the spec of its tuner is no JSON object; copy it again")
    written = data.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise UserError(f"{path}: format {written} is newer than {FORMAT}, which this redfree reads; upgrade redfree")
    return validate(TunerSpec, data, str(path))


def load_tuner(path: Path, base: Base) -> Attachment:
    """Attaches the tuner of a file to the model that it was fitted on, with what it learnt.

    Torch's random generator is left as it was, and so is the model where the file is refused. A `PromptableModel` that
    decoded before is to be told by its `weights_changed`.

    Raises:
        UserError: as `read_tuner`; or the tuner was fitted on another model or other weights, is unknown here, or its
            tensors do not fit.
    """
    spec, state = read_tuner(path)
    if spec.model != base.name:
        raise UserError(f"{path}: was fitted on {spec.model}, not on {base.name}; load {spec.model}")
    if spec.checkpoint_sha256 != base.checkpoint_sha256:
        wanted, found = spec.checkpoint_sha256[:16], base.checkpoint_sha256[:16]
        raise UserError(
            f"{path}: was fitted on weights {wanted} of {spec.model}, not on {found}; give their checkpoint"
        )
    try:
        return _attached(spec, state, base.module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _attached(spec: TunerSpec, state: dict[str, Tensor], module: nn.Module) -> Attachment:
    options = tuner_options(spec.tuner, {**spec.options, "variant": spec.variant})
    with torch.random.fork_rng(devices=[]):
        attachment = attach_tuner(spec.tuner, module, options)
    try:
        attachment.load(state)
    except UserError as error:
        attachment.detach()
        raise UserError(f"{error}; fit it anew") from None
    return attachment
