"""Timings of the decoders as a table, with the machine they were taken on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from redfree.report.measured import write_measured

if TYPE_CHECKING:
    from redfree.measure.decoder_speed import DecoderSpeed

_TEXT = """\
# Decoders of the search, side by side

Time of one candidate (one random pair on one image), scored as IoU at the model's full input size. Random weights and
features; every decoder gives the same scores, which the command checks. Repeat with `redfree speed`.

- **official**: `SamPredictor.predict`, one candidate at a time, a full-size mask: the authors' way.
- **generic**: our batched decoder, single-mask output only, IoU without full-size masks.
- **shared**: the same, computing once what the candidates of an image share; its set-up for an image is included.

{table}

A round scores {candidates} candidates with each decoder in turn; medians of {rounds} rounds. Ratios are only meaningful
within a row's threads. Machine: {cpu}, {cores} cores, torch {torch}.
"""


def write_decoder_speeds(speeds: Sequence[DecoderSpeed], candidates: int, rounds: int, out: Path) -> str:
    """Writes `decoders.json` and `decoders.md`; returns the table.

    Args:
        speeds: what was measured.
        candidates: candidates a round.
        rounds: timed rounds.
        out: folder.
    """
    rows = [
        {
            "decoder of": speed.shape,
            "threads": str(speed.threads),
            "decoder": speed.decoder,
            "ms a candidate": f"{speed.milliseconds:.2f}",
            "faster than official": f"{speed.speed_up:.2f} x",
        }
        for speed in speeds
    ]
    data = {"candidates": candidates, "rounds": rounds, "speeds": [asdict(speed) for speed in speeds]}
    facts = {"candidates": candidates, "rounds": rounds}
    return write_measured(out, "decoders", _TEXT, {"table": rows}, data, **facts)["table"]
