"""Tuners, the swap and both together: what each brings, whether they add up, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from redfree.records.statistics import bootstrap_mean_ci95
from redfree.report.frame import Row

SWAP, AND_SWAP, UNGUARDED = "swap", "+swap", "-unguarded"


def combines(frame: pd.DataFrame) -> bool:
    """Whether a suite holds tuners with a swap on top."""
    return bool(frame["label"].astype(str).str.endswith(AND_SWAP).any())


def compare_combos(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarises each tuner of a suite over its seeds, alone and with a swap.

    Args:
        frame: what `load_frame` returned.

    Returns:
        One row for each (model, dataset, tuner): the gain over the unchanged model of tuner, swap and both, what the
        swap adds on the tuned model, with the guard and always used, and the interaction, which is the gain of both
        minus the two gains; each with the 95% bootstrap interval over images of its mean over seeds. All are paired on
        the seeds and images that every part of the difference has. Fractions; None where a part is missing.
    """
    rows = []
    done = frame[frame["status"] == "ok"]
    for (model, dataset), group in done.groupby(["model", "dataset"], sort=False):
        gains = {key: one["image_gain"] for key, one in _by_label_and_seed(group).items()}
        for tuner in _combined(group):
            seeds = [seed for seed in group["seed"].unique() if all((p, seed) in gains for p in _parts(tuner))]
            row = {"model": model, "dataset": dataset, "tuner": tuner, "seeds": len(seeds)}
            rows.append({**row, **_gains(tuner, gains, seeds), **_unguarded(tuner, gains), **_guard(group, tuner)})
    return pd.DataFrame(rows, dtype=object)


def cost_combos(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarises what the swap and each tuner of a suite cost, over the seeds.

    Args:
        frame: what `load_frame` returned.

    Returns:
        One row for each (model, dataset, method): the swap alone where there is one, then every tuner that also has a
        swap on top. Parameters, seconds of the fit and of the search, peak memory and size on disk; None where a method
        has none, or nothing of it was measured.
    """
    rows = []
    done = frame[frame["status"] == "ok"]
    for (model, dataset), group in done.groupby(["model", "dataset"], sort=False):
        for method in [*({SWAP} & set(group["label"])), *_combined(group)]:
            rows.append({"model": model, "dataset": dataset, "method": method, **_costs(group, method)})
    return pd.DataFrame(rows, dtype=object)


def _combined(group: pd.DataFrame) -> list[str]:
    """The tuners that are there with a swap on top too."""
    labels = list(dict.fromkeys(group["label"]))
    return [label for label in labels if f"{label}{AND_SWAP}" in labels]


def _parts(tuner: str) -> tuple[str, str, str]:
    return tuner, SWAP, f"{tuner}{AND_SWAP}"


def _by_label_and_seed(group: pd.DataFrame) -> dict[tuple[str, int], Row]:
    gained = group[group["image_gain"].notna()]
    return {(row["label"], row["seed"]): dict(row) for _, row in gained.iterrows()}


def _gains(tuner: str, gains: dict[tuple[str, int], Any], seeds: list[int]) -> Row:
    if not seeds:
        names = ("tuner_gain", "swap_gain", "both_gain", "added_gain", "interaction")
        return {key: value for name in names for key, value in _missing(name).items()}
    alone, swap, both = (pd.concat([gains[part, seed] for seed in seeds]) for part in _parts(tuner))
    differences = {
        "tuner_gain": alone,
        "swap_gain": swap,
        "both_gain": both,
        "added_gain": both - alone,
        "interaction": both - alone - swap,
    }
    return {key: value for name, series in differences.items() for key, value in _pooled(name, series).items()}


def _unguarded(tuner: str, gains: dict[tuple[str, int], Any]) -> Row:
    """What the swap adds on the tuned model where it is always used."""
    label = f"{tuner}{AND_SWAP}{UNGUARDED}"
    added = [
        both - gains[tuner, seed] for (one, seed), both in gains.items() if one == label and (tuner, seed) in gains
    ]
    return _pooled("unguarded", pd.concat(added)) if added else _missing("unguarded")


def _missing(name: str) -> Row:
    return {f"{name}{part}": None for part in ("", "_low", "_high")}


def _pooled(name: str, gains: pd.Series[float]) -> Row:
    per_image = gains.groupby(level=0, sort=False).mean().to_numpy(np.float64)
    low, high = bootstrap_mean_ci95(np.asarray(per_image, np.float64))
    return {name: float(per_image.mean()), f"{name}_low": low, f"{name}_high": high}


def _guard(group: pd.DataFrame, tuner: str) -> Row:
    judged = group[group["label"] == f"{tuner}{AND_SWAP}"]["guard_accepted"].dropna()
    return {"guard_accepted": int(judged.sum()), "guard_judged": len(judged)}


def _costs(group: pd.DataFrame, method: str) -> Row:
    searching = method if method == SWAP else f"{method}{AND_SWAP}"
    alone, searched = (group[group["label"] == label] for label in (method, searching))
    return {
        **{name: _largest(alone[name]) for name in ("inserted_params", "trained_params", "declared_params")},
        "fit_seconds": _median(alone["fit_seconds"]),
        "scoring_seconds": _median(searched["scoring_seconds"]),
        "peak_memory_mib": _mebibytes(_largest(alone["peak_rss_bytes"])),
        "search_peak_memory_mib": _mebibytes(_largest(searched["peak_rss_bytes"])),
        "artefact_mib": _mebibytes(_largest(alone["artefact_bytes"])),
    }


def _largest(column: pd.Series[Any]) -> int | None:
    known = column.dropna()
    return int(known.max()) if len(known) else None


def _median(column: pd.Series[Any]) -> float | None:
    known = column.dropna()
    return float(known.median()) if len(known) else None


def _mebibytes(count: int | None) -> float | None:
    return None if count is None else count / 2**20
