"""Differences from the official code as a table, with the machine they were taken on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from redfree.report.measured import write_measured

if TYPE_CHECKING:
    from redfree.measure.exactness import Exactness

_TEXT = """\
# How far from the official code

Largest absolute difference over a portrait and a panorama of noise and, for models that take prompts, one point, three
points and a box, in float32. Random weights stand in for official ones that were not here: the architecture is the
official one, the masks mean nothing. Repeat with `redfree exactness`.

{table}

Machine: {cpu}, torch {torch}.
"""


def write_exactness(found: Sequence[Exactness], out: Path) -> str:
    """Writes `exactness.json` and `exactness.md`; returns the table.

    Args:
        found: what was measured.
        out: folder.
    """
    rows = [
        {
            "model": row.model,
            "weights": row.weights,
            "compared": row.comparison,
            "difference": f"{row.difference:.0e}" if row.difference else "0",
            "largest value": f"{row.largest:.3g}",
        }
        for row in found
    ]
    data = {"found": [asdict(row) for row in found]}
    return write_measured(out, "exactness", _TEXT, {"table": rows}, data)["table"]
