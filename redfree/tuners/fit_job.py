"""A fit from the start, on one device, or on several with a process for each, which takes its share of every batch."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dill
import torch
from accelerate.utils import patch_environment
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from redfree.data.stored import AnySegmentationSample
from redfree.errors import UserError
from redfree.measure.phases import Phase, Stopwatch
from redfree.models.promptable import PromptableModel
from redfree.tuners.artefact import load_tuner, save_tuner, spec_of
from redfree.tuners.base import Attachment, TunerOptions
from redfree.tuners.catalogue import attach_tuner
from redfree.tuners.fit_options import FitOptions
from redfree.tuners.train import FitReport, fit

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class FitJob:
    """A fit from the start: everything that a fresh process needs.

    Attributes:
        build: makes the model, without a tuner.
        tuner: name of the tuner.
        options: its own options.
        samples: training samples.
        fit: how it is trained.
        state: where the state of a fit is kept, from which a killed one goes on.
        file: what was learnt, as of `redfree.tuners.artefact.save_tuner`.
    """

    build: Callable[[], PromptableModel]
    tuner: str
    options: TunerOptions
    samples: Sequence[AnySegmentationSample]
    fit: FitOptions
    state: Path
    file: Path

    def run(self, model: PromptableModel) -> tuple[Attachment, FitReport]:
        """Fits the tuner, whose start the fit's seed draws, in this process, as one of `fit.devices`."""
        torch.manual_seed(self.fit.seed)
        attachment = attach_tuner(self.tuner, model.module, self.options)
        return attachment, fit(model, attachment, self.samples, self.fit, self.state)

    def save(self, model: PromptableModel, attachment: Attachment) -> None:
        """Writes what was learnt, after which the state of the fit is of no more use."""
        save_tuner(self.file, attachment, spec_of(self.tuner, self.options, attachment, model))
        self.state.unlink(missing_ok=True)


def run_job(job: FitJob, model: PromptableModel) -> tuple[Attachment, FitReport, tuple[Phase, ...]]:
    """Fits a tuner to a model, which from then on computes with it, and writes its file.

    Processes on the CPU share torch's threads, and end with this one. CUDA has not been tried: the development machine
    has none.

    Args:
        job: the fit.
        model: what `job.build` makes.

    Returns:
        The tuner on the model, the report, and what each process took where the fit had processes of its own.

    Raises:
        UserError: as `redfree.tuners.train.fit`; or the machine has fewer devices than asked for.
        MemoryError: the system killed a process, which it does for want of memory.
    """
    if job.fit.devices == 1:
        attachment, report = job.run(model)
        job.save(model, attachment)
        return attachment, report, ()
    if model.device.type == "cuda" and job.fit.devices > (found := torch.cuda.device_count()):
        raise UserError(f"devices: {job.fit.devices}, but this machine has {found}; lower it")
    report, phases = _run_in_processes(job, max(1, torch.get_num_threads() // job.fit.devices))
    return load_tuner(job.file, model), report, phases


def _run_in_processes(job: FitJob, threads: int) -> tuple[FitReport, tuple[Phase, ...]]:
    with TemporaryDirectory() as folder:
        given = (dill.dumps(job), _free_port(), folder)
        # Read when torch is imported. Its warning of unused parameters is of a prompt encoder that some prompts leave.
        quiet = {"omp_num_threads": threads, "mkl_num_threads": threads, "torch_cpp_log_level": "ERROR"}
        try:
            with patch_environment(**quiet):
                spawn(_work, given, nprocs=job.fit.devices)  # type: ignore[no-untyped-call]
        except ProcessExitedException as error:
            if error.signal_name == signal.SIGKILL.name:
                raise MemoryError(f"process {error.error_index} of the fit was killed") from None
            raise
        except ProcessRaisedException:
            for refusal in sorted(Path(folder).glob("*.refusal")):
                raise UserError(refusal.read_text("utf-8")) from None
            raise
        found = [json.loads(_said(folder, rank).read_text("utf-8")) for rank in range(job.fit.devices)]
    return report_of(found[0]["report"]), tuple(Phase(**one["phase"]) for one in found)


def report_of(data: dict[str, Any]) -> FitReport:
    """The report that `dataclasses.asdict` and JSON made plain."""
    return FitReport(**{**data, "losses": tuple(data["losses"])})


def _work(rank: int, pickled: bytes, port: int, folder: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job: FitJob = dill.loads(pickled)
    _take_place(rank, job.fit.devices, port)
    stopwatch = Stopwatch()
    # One process alone shows how far the fit is.
    with redirect_stderr(io.StringIO()) if rank else nullcontext():
        try:
            with stopwatch.phase("fit"):
                model = job.build()
                attachment, report = job.run(model)
        except UserError as error:
            Path(folder, f"{rank}.refusal").write_text(str(error), "utf-8")
            raise
    if not rank:
        job.save(model, attachment)
    said = {"report": asdict(report), "phase": asdict(stopwatch.phases[0])}
    _said(folder, rank).write_text(json.dumps(said), "utf-8")


def _end_with_parent() -> None:
    # Torch sends SIGINT, which is ignored where a shell started the parent in the background.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _take_place(rank: int, processes: int, port: int) -> None:
    """Tells Accelerate which of the processes this is."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": _HOST, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())


def _said(folder: str, rank: int) -> Path:
    return Path(folder, f"{rank}.json")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((_HOST, 0))
        return int(listener.getsockname()[1])
