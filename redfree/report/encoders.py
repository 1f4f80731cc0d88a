"""Time and memory of the image encoders as a table, with the machine they were taken on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from redfree.report.measured import write_measured

if TYPE_CHECKING:
    from redfree.measure.encoder_speed import EncoderSpeed

_TEXT = """\
# Attention of the image encoder, side by side

One image through the encoder in float32, with random weights. Features agree to 1e-5, which the command checks. Repeat
with `redfree speed --encoder`.

- **official**: `segment_anything`'s own, which holds the matrix of all queries by all keys several times over.
- **lean**: ours, which never holds it.

{table}

Medians of {rounds} rounds, in each of which both encode the image in turn. Ratios are only meaningful within a row's
threads. Peak memory is the resident memory of a process of its own that builds the model and encodes one image,
libraries included. Difference is the largest of any feature from the official one. Machine: {cpu}, {cores} cores, torch
{torch}.
"""


def _row(speed: EncoderSpeed) -> dict[str, str]:
    return {
        "encoder of": speed.encoder,
        "threads": str(speed.threads),
        "attention": speed.attention,
        "s an image": f"{speed.seconds:.3g}",
        "faster than official": f"{speed.speed_up:.2f} x",
        "peak memory": f"{speed.peak_rss_bytes / 2**20:.0f} MiB",
        "difference": f"{speed.difference:.0e}" if speed.difference else "0",
    }


def write_encoder_speeds(speeds: Sequence[EncoderSpeed], rounds: int, out: Path) -> str:
    """Writes `encoders.json` and `encoders.md`; returns the table.

    Args:
        speeds: what was measured.
        rounds: timed rounds.
        out: folder.
    """
    tables = {"table": [_row(speed) for speed in speeds]}
    data = {"rounds": rounds, "speeds": [asdict(speed) for speed in speeds]}
    return write_measured(out, "encoders", _TEXT, tables, data, rounds=rounds)["table"]
