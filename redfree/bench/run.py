"""Runs cells, each in a process of its own, and leaves one record each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redfree.bench.cell import CellRequest, identify
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
    def done(self) -> bool:
        """Whether a successful record is there; a failed one counts as missing, so that it is tried again."""
        return self.path.exists() and read_record(self.path).status == "ok"


@dataclass(frozen=True)
class Outcome:
    """What became of a job: measured, kept (its record was there), failed, oom or skipped."""

    job: Job
    status: str
    error: str | None = None


def jobs_of(requests: Sequence[CellRequest], results: Path) -> list[Job]:
    """Identifies cells, behind a progress bar: images are drawn and hashed."""
    jobs = []
    for request in track(requests, total=len(requests), description="identify"):
        spec = identify(request)
        jobs.append(Job(request, spec, record_path(results, spec)))
    return jobs


def run(
    jobs: Sequence[Job], results: Path, cache: Path, policy: str, report: Callable[[Outcome], None]
) -> list[Outcome]:
    """Measures cells one after the other.

    Args:
        jobs: the cells.
        results: folder of the records.
        cache: folder of the search log.
        policy: only-missing measures what has no successful record, always measures everything anew, never measures
            nothing.
        report: called with each outcome as soon as it is known.

    Returns:
        The outcomes, in the order of the jobs. A cell that fails leaves a record that says so and does not stop the
        others.

    Raises:
        UserError: the results folder cannot be written to.
    """
    require_writable(results)
    outcomes = []
    for job in track(jobs, total=len(jobs), description="cells"):
        outcome = _run_one(job, cache, policy)
        report(outcome)
        outcomes.append(outcome)
    return outcomes


def _run_one(job: Job, cache: Path, policy: str) -> Outcome:
    if policy != "always" and job.done:
        return Outcome(job, "kept")
    if policy == "never":
        return Outcome(job, "skipped")
    for litter in job.path.parent.glob(f".{job.spec.run_id()}.*.part"):
        litter.unlink(missing_ok=True)
    code, complaint = _spawn(job, cache)
    if code == 0:
        return Outcome(job, "measured")
    status = (
        "oom" if code == -signal.SIGKILL or "MemoryError" in complaint or "out of memory" in complaint else "failed"
    )
    error = complaint.strip().splitlines()[-1] if complaint.strip() else f"process ended with code {code}"
    write_record(job.path, _failed_record(job.spec, status, error))
    return Outcome(job, status, error)


def _spawn(job: Job, cache: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "redfree.bench.worker", str(job.path), str(cache)]
    # Set before the process starts: OpenMP reads them once, when torch is imported.
    threads = {name: str(job.request.protocol.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    request = f"{job.request.model_dump_json()}\n{job.spec.run_id()}\n"
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **threads}
    )
    try:
        # The pipe stays open: a worker ends itself when its parent, and with it the pipe, is gone.
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # a worker that is gone already says so by its code
            process.stdin.write(request)
            process.stdin.flush()
        complaint = process.stderr.read()
        return process.wait(), complaint
    except BaseException:
        process.kill()
        process.wait()
        raise


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
