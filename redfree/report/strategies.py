"""Searches side by side: what each found, for how much, against the exhaustive search on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from redfree.records.statistics import bootstrap_mean_ci95
from redfree.report.frame import Row

TRUTH = "exhaustive"


def searches(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of unguarded searches on the search split, which are what strategies are compared on."""
    params = frame["params"].astype(str)
    honest = params.str.contains('"guard": "none"') & params.str.contains('"select_on": "search"')
    return frame[honest & frame["strategy"].notna() & (frame["status"] == "ok")]


def compares_strategies(frame: pd.DataFrame) -> bool:
    """Whether a suite holds searches of several strategies."""
    return searches(frame)["strategy"].nunique() > 1


def compare_strategies(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarises the searches of a suite over their seeds.

    Args:
        frame: what `load_frame` returned.

    Returns:
        One row for each (model, dataset, label) of an unguarded search; fractions, None where missing. What is said in
        relation to the exhaustive search (`passes_ratio`, `score_difference`, `top_overlap`, `test_difference` with its
        paired interval) is of the seeds that were searched exhaustively.
    """
    found = searches(frame)
    rows = []
    for (model, dataset, label), group in found.groupby(["model", "dataset", "label"], sort=False):
        same = found[(found["model"] == model) & (found["dataset"] == dataset) & (found["strategy"] == TRUTH)]
        truth = {row["seed"]: row for _, row in same.iterrows()}
        rows.append({"model": model, "dataset": dataset, "label": label, **_own(group), **_against(group, truth)})
    return pd.DataFrame(rows, dtype=object)


def _own(group: pd.DataFrame) -> Row:
    return {
        "strategy": group["strategy"].iloc[0],
        "seeds": len(group),
        "search_score": float(group["search_score"].mean()),
        "search_gain": float(group["search_gain"].mean()),
        "test_score": float(group["mIoU"].mean()),
        "candidates_scored": float(group["candidates_scored"].mean()),
        "search_passes": float(group["search_passes"].mean()),
        "search_seconds": float(group["search_seconds"].median()),
        "peak_memory_mib": float(group["peak_rss_bytes"].max()) / 2**20,
    }


def _against(group: pd.DataFrame, truth: dict[int, pd.Series[Any]]) -> Row:
    names = ("passes_ratio", "score_difference", "top_overlap", "test_difference", "test_low", "test_high")
    pairs = [(row, truth[row["seed"]]) for _, row in group.iterrows() if row["seed"] in truth]
    if not pairs or group["strategy"].iloc[0] == TRUTH:
        return {**dict.fromkeys(names), "compared_seeds": len(pairs)}
    images = pd.concat([own["iou"] - best["iou"].reindex(own["iou"].index) for own, best in pairs])
    differences = images.groupby(level=0, sort=False).mean().to_numpy(np.float64)
    values = (
        float(np.mean([best["search_passes"] / own["search_passes"] for own, best in pairs])),
        float(np.mean([own["search_score"] - best["search_score"] for own, best in pairs])),
        float(np.mean([_overlap(own["top"], best["top"]) for own, best in pairs])),
        float(differences.mean()),
        *bootstrap_mean_ci95(differences),
    )
    return {**dict(zip(names, values, strict=True)), "compared_seeds": len(pairs)}


def _overlap(ours: list[tuple[int, int]], best: list[tuple[int, int]]) -> int:
    return len({tuple(pair) for pair in ours} & {tuple(pair) for pair in best})
