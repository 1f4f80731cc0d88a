"""A tuner fitted for a cell, or found where an equal fit left it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import torch

from redfree.bench.catalogue import TunerParams
from redfree.data.schema import split_sha256
from redfree.data.stored import StoredSample
from redfree.errors import UserError
from redfree.files import sha256_of, write_text
from redfree.measure.phases import Phase
from redfree.models.base import Model
from redfree.models.promptable import PromptableModel
from redfree.records import schema
from redfree.tuners.artefact import TunerSpec, load_tuner, spec_of
from redfree.tuners.base import Attachment
from redfree.tuners.catalogue import tuner_options
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
        processes: what each process of a fit on several devices took, where it was fitted now.
    """

    attachment: Attachment
    report: FitReport
    spec: TunerSpec
    sha256: str
    bytes: int
    processes: tuple[Phase, ...] = ()

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
    tuner: tuple[str, TunerParams],
    model: Model,
    samples: Sequence[StoredSample],
    seed: int,
    folder: Path | None,
    build: Callable[[], Model],
) -> Tuned:
    """Fits a tuner to a model, which from then on computes with it.

    Args:
        tuner: its name, and how it is fitted.
        model: the model; its `checkpoint_sha256` becomes that of weights and tuner together.
        samples: the training images.
        seed: seed of what the tuner inserts and of the order of the images.
        folder: where fitted tuners are kept and found, and fits that were stopped; None keeps nothing.
        build: makes an equal model, for the processes of a fit on several devices.

    Raises:
        UserError: the model is a function of the user's, which has no parameters to train; an option is not valid; or
            there are fewer devices than asked for.
    """
    if not isinstance(model, PromptableModel):
        raise UserError(f"{model.name}: a tuner needs the model itself, not a function; choose one of `list models`")
    with TemporaryDirectory() if folder is None else nullcontext(folder) as kept:
        return _tune(tuner, model, samples, seed, Path(kept), cast(Callable[[], PromptableModel], build))


def _tune(
    tuner: tuple[str, TunerParams],
    model: PromptableModel,
    samples: Sequence[StoredSample],
    seed: int,
    folder: Path,
    build: Callable[[], PromptableModel],
) -> Tuned:
    # Accelerate takes seconds to import, which cells without a tuner need not wait for.
    from redfree.tuners.fit_job import FitJob, report_of, run_job  # noqa: PLC0415

    name, params = tuner
    options, key = tuner_options(name, params.options), _key(tuner, model, samples, seed)
    path, report_path = folder / f"{key}.safetensors", folder / f"{key}.json"
    processes: tuple[Phase, ...] = ()
    if report_path.is_file() and path.is_file():
        attachment, report = load_tuner(path, model), report_of(json.loads(report_path.read_text("utf-8")))
    else:
        fit = FitOptions(**params.fit.model_dump(), seed=seed)
        job = FitJob(build, name, options, samples, fit, path.with_suffix(".fit"), path)
        attachment, report, processes = run_job(job, model)
        write_text(report_path, json.dumps(asdict(report), sort_keys=True) + "\n")
    spec, sha256 = spec_of(name, options, attachment, model), sha256_of(path)
    model.checkpoint_sha256 = hashlib.sha256(f"{model.checkpoint_sha256} {sha256}".encode()).hexdigest()
    model.weights_changed()
    return Tuned(attachment, report, spec, sha256, path.stat().st_size, processes)


def _key(tuner: tuple[str, TunerParams], model: Model, samples: Sequence[StoredSample], seed: int) -> str:
    """A hash of all that the fitted values depend on."""
    name, params = tuner
    facts = (name, params.model_dump_json(), model.name, model.checkpoint_sha256, sorted(model.options().items()))
    machine = (torch.__version__, torch.get_num_threads())
    return hashlib.sha256(repr((*facts, split_sha256(samples), seed, *machine)).encode()).hexdigest()[:32]
