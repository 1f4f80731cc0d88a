"""Records of a suite as one data frame, each with its gain over the baseline on the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redfree.errors import UserError
from redfree.models.catalogue import MODELS
from redfree.records.schema import ModelSpec, Record
from redfree.records.statistics import bootstrap_mean_ci95
from redfree.records.store import find_records, read_counts, read_record
from redfree.tasks.segmentation import COUNT_NAMES, METRICS, image_iou
from redfree.tuners.catalogue import TUNERS

Row = dict[str, Any]

LABEL_ORDER = (
    "baseline",
    "swap",
    "swap-unguarded",
    "exhaustive",
    "exhaustive-unguarded",
    "greedy",
    "shortlist",
    "racing",
    "zero",
    "random-swap",
    "oracle",
    *(label for tuner in TUNERS for label in (tuner, f"{tuner}+swap", f"{tuner}+swap-unguarded")),
)
# Columns that hold more than one value, which the CSV leaves out.
NESTED = ("iou", "image_gain", "top", "trace")
_GAIN = ("gain", "gain_low", "gain_high", "verdict", "image_gain")
_SEARCH = (
    "pairs",
    "zeroed",
    "search_score",
    "search_gain",
    "search_passes",
    "search_seconds",
    "top",
    "trace",
    "guard_accepted",
    "guard_gain",
    "guard_gain_low",
    "guard_gain_high",
)
_COST = ("candidates_scored", "decoder_passes", "scoring_seconds", "cache_bytes", "fit_seconds", "artefact_bytes")


def load_frame(results: Path, suite: str) -> pd.DataFrame:
    """Reads the records of a suite.

    Args:
        results: folder of the records.
        suite: name of the suite.

    Returns:
        One row a record, ordered by model, dataset, method and seed. `iou` is the IoU of each test image by its id,
        averaged over the draws of a random control; `gain` and its interval are paired with the baseline of the same
        model, seed and test images, and None where there is none. Missing values are None.

    Raises:
        UserError: there are no records, one is defective, or two stand for the same cell of the leaderboard.
    """
    records = [(path, read_record(path)) for path in find_records(results, suite)]
    if not records:
        raise UserError(f"no records of suite {suite} in {results}; run `redfree run {suite}` first")
    rows = sorted((_row(path, record) for path, record in records), key=_position)
    _require_distinct(rows, results / suite)
    baselines = {_images_key(row): row for row in rows if row["method"] == "baseline" and row["status"] == "ok"}
    for row in rows:
        row.update(_gain(row, baselines.get(_images_key(row))))
    return pd.DataFrame(rows, dtype=object)


def model_label(model: ModelSpec) -> str:
    """Name of a model, with the options that are not at their default."""
    entry = MODELS.get(model.name)
    usual = entry.options().recorded() if entry else {}
    unusual = [f"{name}={value}" for name, value in sorted(model.options.items()) if usual.get(name) != value]
    return f"{model.name} ({', '.join(unusual)})" if unusual else model.name


def _position(row: Row) -> tuple[str, str, int, str, int]:
    label = row["label"]
    rank = LABEL_ORDER.index(label) if label in LABEL_ORDER else len(LABEL_ORDER)
    return row["model"], row["dataset"], rank, label, row["seed"]


def _require_distinct(rows: list[Row], folder: Path) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        cell = (row["model"], row["dataset"], row["label"], row["seed"])
        if cell in seen:
            title = "/".join(str(part) for part in cell)
            raise UserError(
                f"{folder}: {seen[cell]} and {row['run_id']} both are {title}, measured under different protocol, "
                "weights or images; remove one"
            )
        seen[cell] = row["run_id"]


def _images_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "checkpoint_sha256", "dataset", "test_sha256", "seed"))


def _row(path: Path, record: Record) -> Row:
    return {
        **_identity(record),
        **_scores(record),
        **_search(record),
        **_cost(record),
        **_machine(record),
        "iou": _image_ious(path, record) if record.status == "ok" else None,
    }


def _identity(record: Record) -> Row:
    spec = record.spec
    return {
        "run_id": record.run_id,
        "status": record.status,
        "error": record.error,
        "suite": spec.suite,
        "model": model_label(spec.model),
        "checkpoint_sha256": spec.model.checkpoint_sha256,
        "dataset": spec.dataset.name,
        "revision": spec.dataset.revision,
        "source": spec.dataset.source,
        "n_test": spec.dataset.split_sizes.get("test"),
        "n_choosing": spec.dataset.split_sizes.get("choosing"),
        "test_sha256": spec.dataset.split_sha256.get("test"),
        "method": spec.method.name,
        "label": spec.method.label,
        "params": json.dumps(spec.method.params, sort_keys=True),
        "strategy": spec.method.params.get("strategy") if spec.method.name == "swap" else None,
        "protocol": spec.protocol.model_dump_json(),
        "seed": spec.seed,
    }


def _scores(record: Record) -> Row:
    scores = {score.metric: score for score in record.scores if score.split == "test"}
    row: Row = {}
    for metric in METRICS:
        score = scores.get(metric.name)
        row[metric.name] = score.value if score else None
        row[f"{metric.name}_low"], row[f"{metric.name}_high"] = score.ci95 if score else (None, None)
    return row


def _search(record: Record) -> Row:
    result = record.result
    row: Row = dict.fromkeys(_SEARCH)
    if result is None:
        return row
    maps = [result.pairs] if result.draws is None else result.draws
    row["pairs"] = float(np.mean([len(pairs) for pairs in maps]))
    row["zeroed"] = len(result.zeroed)
    if result.search_score is not None and result.search_baseline_score is not None:
        row["search_score"], row["top"], row["trace"] = result.search_score, result.top, result.trace
        row["search_gain"] = result.search_score - result.search_baseline_score
        row["search_passes"] = sum(step.decoder_passes for step in result.trace)
        row["search_seconds"] = sum(step.seconds for step in result.trace)
    if result.guard is not None:
        row["guard_accepted"], row["guard_gain"] = result.guard.accepted, result.guard.gain
        row["guard_gain_low"], row["guard_gain_high"] = result.guard.gain_ci95
    return row


def _cost(record: Record) -> Row:
    cost, phases = record.cost, record.phases
    fit = record.result.fit if record.result else None
    return {
        **{name: getattr(cost, name) if cost else None for name in _COST},
        "inserted_params": cost.trainable_params.inserted if cost else None,
        "trained_params": cost.trainable_params.total if cost else None,
        "declared_params": fit.declared_params if fit else None,
        "seconds": sum(phase.seconds for phase in phases) if phases else None,
        "peak_rss_bytes": max((phase.peak_rss_bytes for phase in phases), default=None),
        "guarded_seconds": sum(p.seconds for p in phases if p.name in ("search", "guard")) if phases else None,
    }


def _machine(record: Record) -> Row:
    env = record.env
    return {
        "cpu": env.get("machine", {}).get("cpu"),
        "cpu_count": env.get("cpu_count"),
        "device": env.get("device"),
        "threads": env.get("threads"),
        "torch": env.get("packages", {}).get("torch"),
        "git_commit": env.get("git_commit"),
        "git_dirty": env.get("git_dirty"),
    }


def _image_ious(path: Path, record: Record) -> pd.Series[float]:
    if "counts" not in record.files:
        raise UserError(f"{path}: names no per-image counts; remove the record and measure the cell again")
    counts = read_counts(path, record.files["counts"])
    ious = pd.Series(image_iou(counts[list(COUNT_NAMES)].to_numpy(np.int64)), index=pd.Index(counts["id"]))
    return ious.groupby(level=0, sort=False).mean()


def _gain(row: Row, baseline: Row | None) -> Row:
    if baseline is None or row["iou"] is None or row["method"] == "baseline":
        return dict.fromkeys(_GAIN)
    image_gain = row["iou"] - baseline["iou"].reindex(row["iou"].index)
    values = image_gain.to_numpy(np.float64)
    low, high = bootstrap_mean_ci95(values)
    verdict = _verdict(low, high) if values.any() else "same"
    return dict(zip(_GAIN, (float(values.mean()), low, high, verdict, image_gain), strict=True))


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"
