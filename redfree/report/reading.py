"""Speed and memory of reading as tables, with the machine they were taken on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from redfree.report.measured import write_measured

if TYPE_CHECKING:
    from redfree.measure.reading_speed import ReadingMemory, ReadingSpeed

_TEXT = """\
# Reading samples, beside Pillow alone

Flat triples of 1024 x 1024 pixels (procedural scenes, enlarged; JPEG, PNG mask, point in a text file). Repeat with
`redfree speed --reading`.

- **Pillow alone**: a loop that decodes image and mask and parses the point, and checks nothing.
- **redfree**: the rows of a dataset, read as samples: orientation, kind of mask, sizes and the point checked.

{speeds}

Medians of {rounds} rounds, in each of which both read the same files in turn, in processes that are already there.

Memory of one process, libraries included, while it reads a split sample by sample:

{memory}

Machine: {cpu}, {cores} cores.
"""


def _speed_row(speed: ReadingSpeed) -> dict[str, str]:
    return {
        "reader": speed.reader,
        "processes": str(speed.processes),
        "images/s": f"{speed.images_per_second:.1f}",
        "of Pillow alone": f"{speed.ratio:.2f}",
    }


def _memory_row(memory: ReadingMemory) -> dict[str, str]:
    return {"samples read": f"{memory.images:,}", "resident memory": f"{memory.rss_bytes / 2**20:,.0f} MiB"}


def write_reading(speeds: Sequence[ReadingSpeed], memory: Sequence[ReadingMemory], rounds: int, out: Path) -> str:
    """Writes `reading.json` and `reading.md`; returns the tables.

    Args:
        speeds: throughput of each reader.
        memory: memory after so many samples.
        rounds: timed rounds.
        out: folder.
    """
    tables = {"speeds": [_speed_row(speed) for speed in speeds], "memory": [_memory_row(mark) for mark in memory]}
    found = {"speeds": [asdict(speed) for speed in speeds], "memory": [asdict(mark) for mark in memory]}
    data = {"rounds": rounds, **found}
    return "\n\n".join(write_measured(out, "reading", _TEXT, tables, data, rounds=rounds).values())
