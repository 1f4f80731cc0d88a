"""Tuners, the swap and both together: what each brings, whether they add up, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from redfree.records.statistics import bootstrap_mean_ci95
from redfree.report.frame import Row

SWAP, AND_SWAP = "swap", "+swap"


def combines(frame: pd.DataFrame) -> bool:
    """Whether a suite holds tuners with a swap on top."""
    return bool(frame["label"].astype(str).str.endswith(AND_SWAP).any())


def compare_combos(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarises each tuner of a suite over its seeds, alone and with a swap.

    Args:
        frame: what `load_frame` returned.

    Returns:
        One row for each (model, dataset, tuner): the gain over the unchanged model of tuner, swap and both, what the
        swap adds on the tuned model, and the interaction, which is the gain of both minus the two gains; each with the
        95% bootstrap interval over images of its mean over seeds. All are paired on the seeds and images that every
        part of the difference has. Fractions; None where a part is missing.
    """
    rows = []
    done = frame[frame["status"] == "ok"]
    for (model, dataset), group in done.groupby(["model", "dataset"], sort=False):
        gains = {key: one["image_gain"] for key, one in _by_label_and_seed(group).items()}
        tuners = [label for label in group["label"].unique() if f"{label}{AND_SWAP}" in set(group["label"])]
        for tuner in tuners:
            seeds = [seed for seed in group["seed"].unique() if all((p, seed) in gains for p in _parts(tuner))]
            row = {"model": model, "dataset": dataset, "tuner": tuner, "seeds": len(seeds)}
            rows.append({**row, **_gains(tuner, gains, seeds), **_costs(group, tuner)})
    return pd.DataFrame(rows, dtype=object)


def _parts(tuner: str) -> tuple[str, str, str]:
    return tuner, SWAP, f"{tuner}{AND_SWAP}"


def _by_label_and_seed(group: pd.DataFrame) -> dict[tuple[str, int], Row]:
    gained = group[group["image_gain"].notna()]
    return {(row["label"], row["seed"]): dict(row) for _, row in gained.iterrows()}


def _gains(tuner: str, gains: dict[tuple[str, int], Any], seeds: list[int]) -> Row:
    if not seeds:
        names = ("tuner_gain", "swap_gain", "both_gain", "added_gain", "interaction")
        return {f"{name}{part}": None for name in names for part in ("", "_low", "_high")}
    alone, swap, both = (pd.concat([gains[part, seed] for seed in seeds]) for part in _parts(tuner))
    differences = {
        "tuner_gain": alone,
        "swap_gain": swap,
        "both_gain": both,
        "added_gain": both - alone,
        "interaction": both - alone - swap,
    }
    return {key: value for name, series in differences.items() for key, value in _pooled(name, series).items()}


def _pooled(name: str, gains: pd.Series[float]) -> Row:
    per_image = gains.groupby(level=0, sort=False).mean().to_numpy(np.float64)
    low, high = bootstrap_mean_ci95(np.asarray(per_image, np.float64))
    return {name: float(per_image.mean()), f"{name}_low": low, f"{name}_high": high}


def _costs(group: pd.DataFrame, tuner: str) -> Row:
    alone, both = (group[group["label"] == label] for label in (tuner, f"{tuner}{AND_SWAP}"))
    return {
        "inserted_params": alone["inserted_params"].max(),
        "trained_params": alone["trained_params"].max(),
        "declared_params": alone["declared_params"].max(),
        "fit_seconds": float(alone["fit_seconds"].median()),
        "scoring_seconds": float(both["scoring_seconds"].median()),
        "peak_memory_mib": float(alone["peak_rss_bytes"].max()) / 2**20,
        "artefact_mib": float(alone["artefact_bytes"].max()) / 2**20,
        "guard_accepted": int(both["guard_accepted"].dropna().sum()),
        "guard_judged": int(both["guard_accepted"].notna().sum()),
    }
