"""Speed and memory of reading as tables, with the machine they were taken on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from redfree.files import write_text
from redfree.records.provenance import environment, now

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
    env = environment()
    tables = [
        pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
        for rows in ([_speed_row(speed) for speed in speeds], [_memory_row(mark) for mark in memory])
    ]
    facts = {"cpu": env["machine"]["cpu"], "cores": env["cpu_count"], "rounds": rounds}
    write_text(out / "reading.md", _TEXT.format(speeds=tables[0], memory=tables[1], **facts))
    found = {"speeds": [asdict(speed) for speed in speeds], "memory": [asdict(mark) for mark in memory]}
    data = {"created_at": now(), "env": env, "rounds": rounds, **found}
    write_text(out / "reading.json", json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return "\n\n".join(tables)
