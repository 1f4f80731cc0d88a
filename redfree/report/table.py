"""Records -> leaderboard: one row a method over all seeds, written as Markdown and CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redfree.files import write_text
from redfree.records.statistics import bootstrap_mean_ci95
from redfree.report.frame import NESTED, Row, load_frame
from redfree.report.markdown import percent, render, with_interval
from redfree.tasks.segmentation import METRICS

__all__ = ["leaderboard", "load_frame", "main_figures", "write_leaderboard"]

HONEST, ORACLE = "swap-unguarded", "oracle"


def leaderboard(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarises records over their seeds.

    Args:
        frame: what `load_frame` returned.

    Returns:
        One row for each (model, dataset, label), in the order of the frame; fractions, unrounded, None where missing.
        `gain` is the mean over images of the per-image gain averaged over seeds, and its interval the bootstrap of
        that mean; `leakage` is the oracle's gain minus that of the unguarded swap on the seeds that both have.
    """
    groups = frame.groupby(["model", "dataset", "label"], sort=False)
    rows = [_summary(group) for _, group in groups]
    honest = {(row["model"], row["dataset"]): row["gain_by_seed"] for row in rows if row["label"] == HONEST}
    for row in rows:
        other = honest.get((row["model"], row["dataset"]), {}) if row["label"] == ORACLE else {}
        row["leakage"] = _mean(gain - other[seed] for seed, gain in row["gain_by_seed"].items() if seed in other)
    return pd.DataFrame(rows, dtype=object)


def _summary(group: pd.DataFrame) -> Row:
    first, verdicts = group.iloc[0], Counter(group["verdict"].dropna())
    judged = group["guard_accepted"].dropna()
    scored = dict(zip(group["seed"], group["gain"], strict=True))
    peak, seconds = _present(group["peak_rss_bytes"]), _present(group["scoring_seconds"])
    return {
        **{name: first[name] for name in ("model", "dataset", "label")},
        "seeds": len(group),
        "status": _status(group["status"]),
        **{metric.name: _mean(_present(group[metric.name])) for metric in METRICS},
        **_pooled_gain(group["image_gain"]),
        "gain_by_seed": {seed: gain for seed, gain in scored.items() if gain is not None},
        "seeds_better": verdicts["better"],
        "seeds_worse": verdicts["worse"],
        "search_gain": _mean(_present(group["search_gain"])),
        "guard_accepted": sum(judged) if len(judged) else None,
        "guard_judged": len(judged) if len(judged) else None,
        "pairs": _mean(p + z for p, z in zip(_present(group["pairs"]), _present(group["zeroed"]), strict=True)),
        "decoder_passes": _mean(_present(group["decoder_passes"])),
        "scoring_seconds": float(np.median(seconds)) if seconds else None,
        "peak_memory_mib": max(peak) / 2**20 if peak else None,
        "inserted_params": max(_present(group["inserted_params"]), default=None),
        "trained_params": max(_present(group["trained_params"]), default=None),
    }


def _present(column: pd.Series[Any]) -> list[Any]:
    return column.dropna().tolist()


def _mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return float(np.mean(kept)) if kept else None


def _status(column: pd.Series[Any]) -> str:
    counts = Counter(column)
    known = ("ok", "failed", "oom", "cancelled")
    return ", ".join(f"{counts[status]} {status}" for status in known if counts[status])


def _pooled_gain(image_gains: pd.Series[Any]) -> Row:
    present = _present(image_gains)
    if not present:
        return dict.fromkeys(("gain", "gain_low", "gain_high"))
    per_image = pd.concat(present).groupby(level=0, sort=False).mean().to_numpy(np.float64)
    low, high = bootstrap_mean_ci95(per_image)
    return {"gain": float(per_image.mean()), "gain_low": low, "gain_high": high}


def write_leaderboard(frame: pd.DataFrame, suite: str, title: str, out: Path) -> list[Path]:
    """Writes `<suite>.md`, for people, and `<suite>.csv`, one row a record with every figure unrounded.

    Args:
        frame: what `load_frame` returned.
        suite: name of the suite.
        title: heading of the leaderboard.
        out: folder of the leaderboards.

    Returns:
        The files; equal records give equal bytes.
    """
    markdown, table = out / f"{suite}.md", out / f"{suite}.csv"
    write_text(markdown, render(title, frame, leaderboard(frame)))
    write_text(table, frame.drop(columns=list(NESTED)).to_csv(index=False, lineterminator="\n"))
    return [markdown, table]


def main_figures(board: pd.DataFrame) -> str:
    """Score and gain of every method of a leaderboard, as a table for the terminal."""
    rows = [
        {
            "dataset": row["dataset"],
            "method": row["label"],
            "records": row["status"],
            "mIoU %": percent(row["mIoU"]),
            "gain [95% interval]": with_interval(row["gain"], row["gain_low"], row["gain_high"]),
        }
        for _, row in board.iterrows()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, tablefmt="simple", disable_numparse=True)
