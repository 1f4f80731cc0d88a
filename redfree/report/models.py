"""The models by name, as a table; imports no torch."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from redfree.models.catalogue import MODELS, ModelEntry
from redfree.models.checkpoints import checkpoint_of

HEADINGS = ("model", "family", "parameters", "channels", "checkpoint", "licence", "here")


def models_table(folder: Path) -> str:
    """Every model with its checkpoint, and whether the weights are here.

    Args:
        folder: folder of downloaded checkpoints.
    """
    rows = [_row(name, entry, folder) for name, entry in MODELS.items()]
    return tabulate(rows, HEADINGS, tablefmt="simple", colalign=("left", "left", "right", "right", "left", "left"))


def _row(name: str, entry: ModelEntry, folder: Path) -> tuple[str, str, str, int, str, str, str]:
    size = f"{entry.parameters:,}" if entry.parameters else "not counted"
    if entry.ships:
        return name, entry.family, size, entry.channels, "ships with redfree", "Apache-2.0", "yes"
    checkpoint = checkpoint_of(name)
    path = folder / checkpoint.filename
    here = path.is_file() and checkpoint.bytes in (None, path.stat().st_size)
    return name, entry.family, size, entry.channels, checkpoint.filename, checkpoint.licence, "yes" if here else "no"
