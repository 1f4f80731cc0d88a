"""The search log: scores and screens on disk, one file a piece of work, found by what they were computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from redfree.files import replace_atomically
from redfree.progress import track

Unit = tuple[NDArray[np.float64], float]
Work = TypeVar("Work")


@dataclass(frozen=True)
class SearchLog:
    """A folder of scores shared by every cell and process that needs them.

    Attributes:
        folder: where the scores lie; None keeps nothing.
    """

    folder: Path | None = None

    def unit(self, key: tuple[str, ...], compute: Callable[[], Unit]) -> Unit:
        """Reads the result of one piece of work, or computes and keeps it.

        Args:
            key: everything that determines it.
            compute: gives the result and the seconds it took.
        """
        if self.folder is None:
            return compute()
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        path = self.folder / digest[:2] / f"{digest}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    self._write(path, compute())
        with np.load(path, allow_pickle=False) as stored:
            return stored["scores"], float(stored["seconds"])

    @staticmethod
    def _write(path: Path, unit: Unit) -> None:
        with replace_atomically(path) as file:
            np.savez(file, scores=unit[0], seconds=np.float64(unit[1]))
        path.with_suffix(".lock").unlink(missing_ok=True)

    @staticmethod
    def track(units: Sequence[Work], label: str) -> Iterator[Work]:
        """Yields pieces of work behind a progress bar."""
        return track(units, total=len(units), description=label)
