"""Where a record was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = ("redfree", "torch", "torchvision", "segment-anything", "sam2", "timm", "numpy", "scipy", "datasets")


def now() -> str:
    """The current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the source, and whether `redfree/` or `benchmarks/` differ from it; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", ":/redfree", ":/benchmarks")
    return commit, None if status is None else bool(status)


def environment() -> dict[str, Any]:
    """Machine, device, versions, threads and flags, as the record's `env`."""
    commit, dirty = git_state()
    return {
        "machine": {"system": platform.system(), "arch": platform.machine(), "cpu": _cpu_model()},
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": "cpu",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "git_commit": commit,
        "git_dirty": dirty,
    }
