"""Parameters, time and memory of the tuners as tables, beside the published parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from redfree.files import write_text
from redfree.records.provenance import environment, now

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

Training on one image of 1024 x 1024 with a mask, batch 1, float32, by the loop that fits every tuner, default options.
Repeat with {command}.

{costs}

- **inserted**: parameters that the tuner adds. **authors train**: what it trains as its authors do (`variant:
  original`), with or without a gradient. **moved**: what the optimiser moves here, with the default options.
- **s a step**: forward, backward and optimiser, median of {steps} steps after one that warms up. Where training leaves
  the features as they are, the image is encoded once, before the steps that are timed.
- **peak memory**: resident memory of a process of its own that builds the model and trains, libraries included.
- **status**: a process that the machine had no memory for is `out of memory`.

Weights are those of the package where they ship with it, else random. Every tuner has a process of its own, one after
the other, not interleaved: times of different rows were taken minutes apart, and other work on the machine in between
would fall on some of them alone. Machine: {cpu}, {cores} cores, torch {torch}.

## Parameters on SAM ViT-B, beside the published ones

Ours are counted on the official model without weights. *Published* are the thousands of Table 4 of arXiv 2504.08915,
which counts what is inserted for some methods and all that trains for others; a count agrees where ours, cut off at the
digits printed, is the same.

{counts}
"""


def _cost_row(cost: TunerCost) -> dict[str, str]:
    counts, step = cost.counts, cost.step
    return {
        "model": cost.model,
        "threads": str(cost.threads),
        "tuner": counts.tuner,
        "inserted": f"{counts.inserted:,}",
        "authors train": f"{counts.declared:,}",
        "moved": f"{counts.moved:,}",
        "s a step": f"{step.seconds:.3g}" if step else "-",
        "peak memory": f"{step.peak_rss_bytes / 2**20:,.0f} MiB" if step else "-",
        "status": cost.status,
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


def write_tuner_costs(costs: Sequence[TunerCost], counts: Sequence[TunerCounts], steps: int, out: Path) -> str:
    """Writes `tuners.json` and `tuners.md`; returns the table of costs.

    Args:
        costs: what was measured.
        counts: parameters on SAM ViT-B.
        steps: timed steps.
        out: folder.
    """
    env = environment()
    rows = [_cost_row(cost) for cost in costs], [_count_row(each) for each in counts]
    table, beside = (pd.DataFrame(each).to_markdown(index=False, disable_numparse=True) for each in rows)
    chosen = [(f"--tuners {cost.model}", f"--threads {cost.threads}") for cost in costs]
    given = " ".join(dict.fromkeys(word for words in zip(*chosen, strict=True) for word in words))
    facts = {"cpu": env["machine"]["cpu"], "cores": env["cpu_count"], "torch": env["packages"]["torch"]}
    command = f"`redfree speed {given} --rounds {steps}`"
    write_text(out / "tuners.md", _TEXT.format(command=command, costs=table, counts=beside, steps=steps, **facts))
    data = {
        "created_at": now(),
        "env": env,
        "steps": steps,
        "costs": [{**asdict(cost), "status": cost.status} for cost in costs],
        "vit_b": [asdict(each) for each in counts],
    }
    write_text(out / "tuners.json", json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return str(table)
