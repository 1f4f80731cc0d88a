"""Seconds and peak memory of the phases of one cell."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Phase:
    """What one phase took.

    Memory is that of the process, or of the largest one where others worked for it, on several devices.

    Attributes:
        name: load, encode, search, guard, fit or evaluate.
        seconds: wall time.
        peak_rss_bytes: highest resident memory during the phase.
        peak_allocated_bytes: highest memory of tensors on the CUDA device, None without one.
        peak_reserved_bytes: highest memory held by the CUDA caching allocator, None without one.
    """

    name: str
    seconds: float
    peak_rss_bytes: int
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None

    def with_peaks_of(self, others: Sequence[Phase]) -> Phase:
        """The same with the largest peaks of this phase and others."""
        every = (self, *others)
        resident = max(phase.peak_rss_bytes for phase in every)
        allocated = _largest(phase.peak_allocated_bytes for phase in every)
        reserved = _largest(phase.peak_reserved_bytes for phase in every)
        return Phase(self.name, self.seconds, resident, allocated, reserved)


def _largest(peaks: Iterable[int | None]) -> int | None:
    return max((peak for peak in peaks if peak is not None), default=None)


class _PeakResident:
    """Peak resident memory between construction and `read`: the kernel's own mark on Linux, else sampled."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def read(self) -> int:
        if self._sampler is None:
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024
        self._stop.set()
        self._sampler.join()
        return max(self._peak, self._process.memory_info().rss)


@dataclass
class Stopwatch:
    """Collects the phases of a cell, in order."""

    phases: list[Phase] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[list[Phase]]:
        """Measures the block as one phase; nothing is kept where the block raises.

        The block is given a list, to which it adds the phases of other processes that worked for it.
        """
        elsewhere = list[Phase]()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        peak, start = _PeakResident(), time.perf_counter()
        try:
            yield elsewhere
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        finally:
            resident = peak.read()
        allocated = torch.cuda.max_memory_allocated() if cuda else None
        reserved = torch.cuda.max_memory_reserved() if cuda else None
        self.phases.append(Phase(name, seconds, resident, allocated, reserved).with_peaks_of(elsewhere))
