"""A tuner fitted for a cell, or found where an equal fit left it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from redfree.bench.catalogue import TunerParams
from redfree.data.schema import split_sha256
from redfree.data.stored import StoredSample
from redfree.errors import UserError
from redfree.files import sha256_of, write_text
from redfree.models.base import Model
from redfree.models.promptable import PromptableModel
from redfree.records import schema
from redfree.tuners.artefact import TunerSpec, load_tuner, save_tuner, spec_of
from redfree.tuners.base import Attachment
from redfree.tuners.catalogue import attach_tuner, tuner_options
from redfree.tuners.fit_options import FitOptions

if TYPE_CHECKING:
    from redfree.tuners.train import FitReport


@dataclass(frozen=True)
class Tuned:
    """A fitted tuner on its model.

    Attributes:
        attachment: the tuner.
        report: how it was fitted, in this process or in an earlier one.
        spec: what its file says of it.
        sha256: hex SHA-256 of its file.
        bytes: size of its file.
    """

    attachment: Attachment
    report: FitReport
    spec: TunerSpec
    sha256: str
    bytes: int

    def record(self) -> schema.Fit:
        """What is recorded of the fit."""
        report = self.report
        return schema.Fit(
            losses=list(report.losses),
            steps=report.steps,
            best_epoch=report.best_epoch,
            declared_params=self.attachment.declared_count,
            artefact_sha256=self.sha256,
        )


def tune(
    tuner: tuple[str, TunerParams], model: Model, samples: Sequence[StoredSample], seed: int, folder: Path | None
) -> Tuned:
    """Fits a tuner to a model, which from then on computes with it.

    Args:
        tuner: its name, and how it is fitted.
        model: the model; its `checkpoint_sha256` becomes that of weights and tuner together.
        samples: the training images.
        seed: seed of what the tuner inserts and of the order of the images.
        folder: where fitted tuners are kept and found, and fits that were stopped; None keeps nothing.

    Raises:
        UserError: the model is a function of the user's, which has no parameters to train; or an option is not valid.
    """
    if not isinstance(model, PromptableModel):
        raise UserError(f"{model.name}: a tuner needs the model itself, not a function; choose one of `list models`")
    if folder is None:
        with TemporaryDirectory() as name:
            return _tune(tuner, model, samples, seed, Path(name))
    return _tune(tuner, model, samples, seed, folder)


def _tune(
    tuner: tuple[str, TunerParams], model: PromptableModel, samples: Sequence[StoredSample], seed: int, folder: Path
) -> Tuned:
    # Accelerate takes seconds to import, which cells without a tuner need not wait for.
    from redfree.tuners.train import FitReport  # noqa: PLC0415

    key = _key(tuner, model, samples, seed)
    path, report_path = folder / f"{key}.safetensors", folder / f"{key}.json"
    if report_path.is_file() and path.is_file():
        kept = json.loads(report_path.read_text("utf-8"))
        attachment, report = load_tuner(path, model), FitReport(**{**kept, "losses": tuple(kept["losses"])})
    else:
        attachment, report = _fit(tuner, model, samples, seed, path)
        save_tuner(path, attachment, _spec(tuner, attachment, model))
        path.with_suffix(".fit").unlink(missing_ok=True)
        write_text(report_path, json.dumps(asdict(report), sort_keys=True) + "\n")
    spec, sha256 = _spec(tuner, attachment, model), sha256_of(path)
    model.checkpoint_sha256 = hashlib.sha256(f"{model.checkpoint_sha256} {sha256}".encode()).hexdigest()
    model.weights_changed()
    return Tuned(attachment, report, spec, sha256, path.stat().st_size)


def _fit(
    tuner: tuple[str, TunerParams], model: PromptableModel, samples: Sequence[StoredSample], seed: int, path: Path
) -> tuple[Attachment, FitReport]:
    from redfree.tuners.train import fit  # noqa: PLC0415

    name, params = tuner
    torch.manual_seed(seed)
    attachment = attach_tuner(name, model.module, tuner_options(name, params.options))
    options = FitOptions(**params.fit.model_dump(), seed=seed)
    return attachment, fit(model, attachment, samples, options, path.with_suffix(".fit"))


def _spec(tuner: tuple[str, TunerParams], attachment: Attachment, model: PromptableModel) -> TunerSpec:
    name, params = tuner
    return spec_of(name, tuner_options(name, params.options), attachment, model)


def _key(tuner: tuple[str, TunerParams], model: Model, samples: Sequence[StoredSample], seed: int) -> str:
    """A hash of all that the fitted values depend on."""
    name, params = tuner
    facts = (name, params.model_dump_json(), model.name, model.checkpoint_sha256, sorted(model.options().items()))
    machine = (torch.__version__, torch.get_num_threads())
    return hashlib.sha256(repr((*facts, split_sha256(samples), seed, *machine)).encode()).hexdigest()[:32]
