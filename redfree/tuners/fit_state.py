"""The state of a fit on disk, from which a killed one goes on to the same weights."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redfree.data.stored import AnySegmentationSample
from redfree.errors import UserError
from redfree.files import replace_atomically
from redfree.models.promptable import PromptableModel
from redfree.tuners.base import Attachment

# To be raised with any change of the file or of what a step computes.
_FORMAT = 1


@dataclass
class Best:
    """The best epoch on held-out samples so far.

    Attributes:
        epoch: its number, from 1.
        iou: mean IoU after it.
        state: what was trained, as it was then.
    """

    epoch: int
    iou: float
    state: dict[str, Tensor]


@dataclass
class Progress:
    """How far a fit is.

    Attributes:
        losses: of each step so far.
        seconds: spent on them, in this process and in earlier ones.
        best: None where no samples are held out.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best: Best | None = None

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return len(self.losses)


def fit_key(
    model: PromptableModel, attachment: Attachment, samples: Sequence[AnySegmentationSample], options: dict[str, Any]
) -> str:
    """Hex SHA-256 of what determines the result of a fit, but for the values that inserted parameters start from."""
    trained = [(name, tuple(value.shape)) for name, value in attachment.trained().items()]
    weights = (model.name, model.checkpoint_sha256, sorted(model.options().items()), model.encoding)
    fingerprints = [sample.fingerprint() for sample in samples]
    digest = hashlib.sha256(repr((_FORMAT, weights, sorted(options.items()), trained, fingerprints)).encode())
    for value in attachment.originals.values():
        digest.update(np.ascontiguousarray(value.cpu().numpy()).data)
    return digest.hexdigest()


def save_fit(path: Path, key: str, progress: Progress, parts: dict[str, Any]) -> None:
    """Writes the state of a fit atomically.

    Args:
        path: the file.
        key: of `fit_key`.
        progress: how far it is.
        parts: the rest, by name: tensors and plain data.
    """
    best = None if progress.best is None else vars(progress.best)
    with replace_atomically(path) as file:
        torch.save({"key": key, "progress": {**vars(progress), "best": best}, "parts": parts}, file)


def read_fit(path: Path, key: str) -> tuple[Progress, dict[str, Any]]:
    """Reads what `save_fit` wrote.

    Raises:
        UserError: the file is damaged, or is of another fit.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found, progress, parts = state["key"], dict(state["progress"]), state["parts"]
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is no state of a fit, or a damaged one; remove it") from None
    if found != key:
        raise UserError(f"{path}: is the state of another fit; remove it, or name another file")
    best = progress.pop("best")
    return Progress(**progress, best=None if best is None else Best(**best)), parts
