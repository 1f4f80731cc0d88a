"""Runs cells, each in a process of its own, and leaves one record each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue

from redfree.bench.identity import identify
from redfree.bench.request import CellRequest
from redfree.errors import UserError
from redfree.measure.memory import ran_out_of_memory
from redfree.progress import track
from redfree.records.provenance import environment, now
from redfree.records.schema import Record, Spec
from redfree.records.store import read_record, record_path, require_writable, write_record

POLICIES = ("only-missing", "always", "never")


@dataclass(frozen=True)
class Job:
    """A cell with its identity and the place of its record."""

    request: CellRequest
    spec: Spec
    path: Path

    @property
    def group(self) -> tuple[str, str, int]:
        """Model, dataset and seed: cells that share a search."""
        return self.request.model, self.request.dataset, self.request.seed

    @property
    def done(self) -> bool:
        """Whether a successful record is there; a failed one counts as missing, so that it is tried again."""
        return self.path.exists() and read_record(self.path).status == "ok"


@dataclass(frozen=True)
class Obstacle:
    """A cell that cannot be identified, for want of its data for instance, and why."""

    request: CellRequest
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job: measured, kept (its record was there), failed, oom or skipped."""

    job: Job
    status: str
    error: str | None = None


def jobs_of(requests: Sequence[CellRequest], results: Path) -> list[Job]:
    """Identifies cells, behind a progress bar: images are read and hashed.

    Raises:
        UserError: the images or the weights of a cell are not here.
    """
    return [_job(request, results) for request in track(requests, total=len(requests), description="identify")]


def survey(requests: Sequence[CellRequest], results: Path) -> list[Job | Obstacle]:
    """Identifies the cells that can be; the others come with the reason, asked for once a dataset and model."""
    found: list[Job | Obstacle] = []
    reasons: dict[tuple[str, str], str] = {}
    for request in track(requests, total=len(requests), description="identify"):
        key = (repr(request.dataset_use), request.model)
        try:
            found.append(Obstacle(request, reasons[key]) if key in reasons else _job(request, results))
        except UserError as error:
            reasons[key] = str(error)
            found.append(Obstacle(request, str(error)))
    return found


def _job(request: CellRequest, results: Path) -> Job:
    spec = identify(request)
    return Job(request, spec, record_path(results, spec))


def run(
    jobs: Sequence[Job],
    results: Path,
    cache: Path,
    policy: str,
    report: Callable[[Outcome], None],
    *,
    parallel: int = 1,
    features: Path | None = None,
) -> list[Outcome]:
    """Measures cells, those of one model, dataset and seed one after the other.

    Args:
        jobs: the cells.
        results: folder of the records.
        cache: folder of the search log.
        policy: only-missing measures what has no successful record, always measures everything anew, never measures
            nothing.
        report: called with each outcome as soon as it is known.
        parallel: cells measured at a time; their seconds are then those of a machine that is busy with the others.
        features: folder where features are kept and found; None encodes every image in every cell.

    Returns:
        The outcomes, as they came. A cell that fails leaves a record that says so and does not stop the others.

    Raises:
        UserError: the results folder cannot be written to, or a record in it cannot be read.
    """
    require_writable(results)
    groups = [list(group) for _, group in groupby(jobs, key=lambda job: job.group)]
    runner = _Runner(cache, policy, features)
    with ThreadPoolExecutor(parallel) as pool:
        for group in groups:
            pool.submit(runner.run_group, group)
        try:
            return [_announced(outcome, report) for outcome in track(runner.outcomes(len(jobs)), len(jobs), "cells")]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise


def _announced(outcome: Outcome, report: Callable[[Outcome], None]) -> Outcome:
    report(outcome)
    return outcome


class _Runner:
    """Runs groups of cells in threads, each cell in a process of its own, until it is stopped."""

    def __init__(self, cache: Path, policy: str, features: Path | None) -> None:
        self._folders = [str(folder) for folder in (cache, features) if folder is not None]
        self._policy = policy
        self._done: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._live: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run_group(self, jobs: Sequence[Job]) -> None:
        """Runs cells one after the other; their outcomes, or what went wrong, come out of `outcomes`."""
        try:
            for job in jobs:
                if self._stopped:
                    return
                self._done.put(self._run_one(job))
        except BaseException as error:  # raised again where the outcomes are read
            self._done.put(error)

    def outcomes(self, count: int) -> Iterator[Outcome]:
        """Yields outcomes as they come."""
        for _ in range(count):
            outcome = self._done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    def stop(self) -> None:
        """Kills what runs; a cell that was stopped leaves no record."""
        self._stopped = True
        for process in list(self._live):
            process.kill()

    def _run_one(self, job: Job) -> Outcome:
        if self._policy != "always" and job.done:
            return Outcome(job, "kept")
        if self._policy == "never":
            return Outcome(job, "skipped")
        for litter in job.path.parent.glob(f".{job.spec.run_id()}.*.part"):
            litter.unlink(missing_ok=True)
        code, complaint = self._spawn(job)
        if code == 0:
            return Outcome(job, "measured")
        memory = ran_out_of_memory(code, complaint)
        error = complaint.strip().splitlines()[-1] if complaint.strip() else f"process ended with code {code}"
        if self._stopped:
            return Outcome(job, "cancelled", error)
        write_record(job.path, _failed_record(job.spec, "oom" if memory else "failed", error))
        return Outcome(job, "oom" if memory else "failed", error)

    def _spawn(self, job: Job) -> tuple[int, str]:
        command = [sys.executable, "-m", "redfree.bench.worker", str(job.path), *self._folders]
        # Set before the process starts: OpenMP reads them once, when torch is imported.
        threads = {name: str(job.request.protocol.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # A session of its own, so that Ctrl-C reaches the suite and not the cell, which would seem to have failed.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
            start_new_session=True,
        )
        self._live.add(process)
        assert process.stdin is not None
        assert process.stderr is not None
        # The pipe stays open: a worker ends itself when its parent, and with it the pipe, is gone.
        with suppress(BrokenPipeError):  # a worker that is gone already says so by its code
            process.stdin.write(f"{job.request.model_dump_json()}\n{job.spec.run_id()}\n")
            process.stdin.flush()
        complaint = process.stderr.read()
        self._live.discard(process)
        return process.wait(), complaint


def _failed_record(spec: Spec, status: str, error: str) -> Record:
    return Record.model_validate(
        {
            "run_id": spec.run_id(),
            "created_at": now(),
            "status": status,
            "error": error,
            "spec": spec,
            "env": environment(),
        }
    )
