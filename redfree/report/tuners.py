"""Parameters, time and memory of the tuners as tables, beside the published parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from redfree.report.measured import write_measured

if TYPE_CHECKING:
    from redfree.measure.tuner_cost import TunerCost, TunerCounts

# Thousands of trainable parameters on SAM ViT-B, as Table 4 of arXiv 2504.08915 prints them.
PUBLISHED: Mapping[str, str] = {
    "decoder-only": "4,057",
    "encoder-only": "89,670",
    "medsam": "93,735",
    "samed": "147",
    "sam-parser": "0.5",
}
# Why a published count is not ours, by the parameters of the official `segment_anything` model.
REASONS: Mapping[str, str] = {
    "decoder-only": "the whole decoder is ours; theirs fits leaving out its token embeddings (1,280), an inference",
    "medsam": "theirs is all of SAM; MedSAM freezes the prompt encoder (6,220)",
}

_TEXT = """\
# What tuners cost

Training on one image of 1024 x 1024 with a mask, batch 1, float32, by the loop that fits every tuner, default options,
beside what a swap needs. Repeat with {command}.

{costs}

- **inserted**: parameters that the tuner adds. **authors train**: what it trains as its authors do (`variant:
  original`), with or without a gradient. **moved**: what the optimiser moves here, with the default options.
- **s a step**: forward, backward and optimiser. Where training leaves the features as they are, the image is encoded
  once, before the steps that are timed. Of `swap`: one image encoded without a gradient, which its search does once an
  image, where a tuner that changes the encoder does it again in every epoch; the search's own work on the decoder is in
  [decoders.md](decoders.md).
- **x encoding**: s a step divided by that of `swap` in the same round, median over rounds, and all rounds' range.
- **peak memory**: largest resident memory of a process of its own that builds the model and trains, libraries included.
- **status**: a process that the machine had no memory for is `out of memory`.

Weights are those of the package where they ship with it, else random. {rounds} rounds, in each of which every row has
its turn in a process of its own: a step that warms up, then steps that are timed, {timed}; s a step is the median over
rounds of the medians of turns. Training uses the packages' own attention, encoding redfree's lean one. Machine: {cpu},
{cores} cores, torch {torch}.

## Parameters on SAM ViT-B, beside the published ones

Ours are counted on the official model without weights. *Published* are the thousands of Table 4 of arXiv 2504.08915,
which counts what is inserted for some methods and all that trains for others; a count agrees where ours, cut off at the
digits printed, is the same.

{counts}
"""


def _cost_row(cost: TunerCost) -> dict[str, str]:
    counts = cost.counts
    return {
        "model": cost.model,
        "threads": str(cost.threads),
        "method": counts.tuner,
        "inserted": f"{counts.inserted:,}",
        "authors train": f"{counts.declared:,}",
        "moved": f"{counts.moved:,}",
        **_step_cells(cost),
        "status": cost.status,
    }


def _step_cells(cost: TunerCost) -> dict[str, str]:
    if not cost.turns:
        return dict.fromkeys(("s a step", "x encoding", "peak memory"), "-")
    ratio, low, high = median(cost.ratios), min(cost.ratios), max(cost.ratios)
    return {
        "s a step": f"{median(turn.seconds for turn in cost.turns):.3g}",
        "x encoding": f"{ratio:.2f} ({low:.2f} to {high:.2f})",
        "peak memory": f"{max(turn.peak_rss_bytes for turn in cost.turns) / 2**20:,.0f} MiB",
    }


def _count_row(counts: TunerCounts) -> dict[str, str]:
    return {
        "tuner": counts.tuner,
        "inserted (ours)": f"{counts.inserted:,}",
        "original (ours)": f"{counts.declared:,}",
        "published, thousands": PUBLISHED.get(counts.tuner, "-"),
        "equal": agreement(counts),
    }


def agreement(counts: TunerCounts) -> str:
    """Which of our counts is the published one, or why none is; a dash where none is published."""
    published = PUBLISHED.get(counts.tuner)
    if published is None:
        return "-"
    for name, count in (("inserted", counts.inserted), ("original", counts.declared)):
        if _cut_off(count, published) == published:
            return f"yes: {name}"
    return f"no: {REASONS.get(counts.tuner, 'not known why')}"


def _cut_off(count: int, published: str) -> str:
    """A count in thousands with as many decimals as the published one, truncated as the paper does."""
    decimals = len(published.partition(".")[2])
    return f"{math.floor(count * 10**decimals / 1000) / 10**decimals:,.{decimals}f}"


def write_tuner_costs(costs: Sequence[TunerCost], counts: Sequence[TunerCounts], rounds: int, out: Path) -> str:
    """Writes `tuners.json` and `tuners.md`; returns the table of costs.

    Args:
        costs: what was measured.
        counts: parameters on SAM ViT-B.
        rounds: turns of each method.
        out: folder.
    """
    models, threads = (dict.fromkeys(column) for column in zip(*((c.model, c.threads) for c in costs), strict=True))
    given = " ".join([*(f"--tuners {name}" for name in models), *(f"--threads {count}" for count in threads)])
    tables = {"costs": [_cost_row(cost) for cost in costs], "counts": [_count_row(each) for each in counts]}
    data = {
        "rounds": rounds,
        "costs": [{**asdict(cost), "status": cost.status} for cost in costs],
        "vit_b": [asdict(each) for each in counts],
    }
    timed = ", ".join(dict.fromkeys(f"{cost.timed} of {cost.model}" for cost in costs))
    facts = {"command": f"`redfree speed {given} --rounds {rounds}`", "rounds": rounds, "timed": timed}
    return write_measured(out, "tuners", _TEXT, tables, data, **facts)["costs"]
