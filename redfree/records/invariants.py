"""What must hold of every record, whatever was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from redfree.records.schema import Record, Result
from redfree.tasks.object_iou import OBJECT_MIOU, metrics_of, numbered
from redfree.tasks.segmentation import COUNT_NAMES, Counts, image_dice, image_iou

TOLERANCE = 1e-12
TRAINING_FREE = ("baseline", "swap", "zero", "random-swap")
_PROCEDURAL_PIXELS = 128 * 128


def violations(record: Record, counts: pd.DataFrame) -> list[str]:
    """Checks a record and its raw counts.

    Args:
        record: the record.
        counts: its raw counts, one row a draw and image (draw, id, tp, fp, fn, tn); any, such as an empty frame, where
            the record is not ok.

    Returns:
        What is violated, one line each; nothing for a sound record.
    """
    found = list(_identity(record))
    if record.status != "ok":
        return found + list(_failure(record))
    incomplete = [f"status ok, but {text}" for text in _incomplete(record)]
    misshapen = list(_count_shape(record, counts))
    found += incomplete + misshapen
    if not (incomplete or misshapen):
        found += [*_count_values(record, counts), *_scores(record, counts)]
    if record.result is not None:
        found += [*_maps(record.result), *_choice(record, record.result)]
    return found + list(_cost(record))


def _identity(record: Record) -> Iterator[str]:
    if record.run_id != record.spec.run_id():
        yield f"run_id {record.run_id} is not {record.spec.run_id()}, the hash of the spec"


def _failure(record: Record) -> Iterator[str]:
    if not record.error:
        yield f"status {record.status} without an error"
    if record.scores:
        yield f"status {record.status} with scores"


def _incomplete(record: Record) -> Iterator[str]:
    if record.error is not None:
        yield "there is an error"
    for name in ("result", "cost"):
        if getattr(record, name) is None:
            yield f"there is no {name}"
    metrics = metrics_of(record.spec.dataset.name)
    if sorted(score.metric for score in record.scores) != sorted(metric.name for metric in metrics):
        yield "the scores are not one of each metric"


def _count_shape(record: Record, counts: pd.DataFrame) -> Iterator[str]:
    if counts.empty:
        yield "there are no raw counts"
        return
    draws = record.result.draws if record.result is not None else None
    if counts["draw"].nunique() != (1 if draws is None else len(draws)):
        yield f"there are counts of {counts['draw'].nunique()} draws, not of each draw of the result"
    by_draw = [tuple(ids) for _, ids in counts.groupby("draw")["id"]]
    if len(set(by_draw)) > 1 or len(set(by_draw[0])) != len(by_draw[0]):
        yield "the draws do not count the same images, each once"


def _count_values(record: Record, counts: pd.DataFrame) -> Iterator[str]:
    values = counts[list(COUNT_NAMES)]
    pixels = values.sum(axis=1)
    if (values < 0).any(axis=None):
        yield "a count is negative"
    if (pixels <= 0).any():
        yield "the counts of an image sum to no pixels"
    if (pixels.groupby(counts["id"]).nunique() > 1).any():
        yield "the counts of an image sum to different totals in different draws"
    if record.spec.dataset.source.startswith("procedural") and (pixels != _PROCEDURAL_PIXELS).any():
        yield f"the counts of a procedural image do not sum to its {_PROCEDURAL_PIXELS} pixels"


def _by_image(counts: pd.DataFrame) -> Counts:
    draws = counts["draw"].nunique()
    values = counts[list(COUNT_NAMES)].to_numpy(np.int64)
    return values.reshape(draws, -1, len(COUNT_NAMES)).transpose(1, 0, 2)


def _scores(record: Record, counts: pd.DataFrame) -> Iterator[str]:
    by_image = _by_image(counts)
    values = {score.metric: score.value for score in record.scores}
    for iou, dice in (("mIoU", "mDice"), ("dataset_IoU", "dataset_Dice")):
        if values[iou] > values[dice] + TOLERANCE:
            yield f"{iou} is above {dice}"
    if (image_iou(by_image) > image_dice(by_image) + TOLERANCE).any():
        yield "the IoU of an image is above its Dice"
    ids = counts["id"].iloc[: len(by_image)].tolist()
    metrics = metrics_of(record.spec.dataset.name)
    summaries = {m.name: m.summarise(numbered(by_image, ids) if m is OBJECT_MIOU else by_image) for m in metrics}
    for score in record.scores:
        if abs(score.value - summaries[score.metric]) > TOLERANCE:
            yield f"{score.metric} is {score.value!r}, its counts give {summaries[score.metric]!r}"
        if not score.n == len(by_image) == record.spec.dataset.split_sizes.get("test"):
            yield f"{score.metric}: n is {score.n}, but {len(by_image)} images were counted"
        if not score.ci95[0] - TOLERANCE <= score.value <= score.ci95[1] + TOLERANCE:
            yield f"{score.metric} lies outside its interval"


def _maps(result: Result) -> Iterator[str]:
    lists = {"pairs": result.pairs, "searched_pairs": result.searched_pairs or [], "top": result.top or []}
    lists |= {f"draw {number}": draw for number, draw in enumerate(result.draws or [])}
    for name, pairs in lists.items():
        if _repeats(i for i, _ in pairs):
            yield f"{name}: a channel is written twice"
        # The candidates of a deactivation search are (i, -1).
        if any(i == j or i < 0 or j < (-1 if name == "top" else 0) for i, j in pairs):
            yield f"{name}: a pair does not name two different channels"
    if _repeats([*result.zeroed, *(i for i, _ in result.pairs)]):
        yield "zeroed: a channel is written twice"


def _repeats(channels: Iterable[int]) -> bool:
    seen = list(channels)
    return len(set(seen)) != len(seen)


def _choice(record: Record, result: Result) -> Iterator[str]:
    changed = bool(result.pairs or result.zeroed)
    if record.spec.method.name == "baseline" and (changed or result.draws):
        yield "the baseline has pairs"
    if result.guard is not None and not result.guard.accepted:
        if changed:
            yield "the guard rejected, but there are pairs"
    elif result.searched_pairs is not None and result.pairs != result.searched_pairs:
        yield "the pairs are not those that the search chose"
    single, best = result.search_best_single_score, result.search_score
    # Every candidate alone is one of the subsets, so this holds under either semantics.
    if single is not None and best is not None and best < single - TOLERANCE:
        yield "the best subset is worse than the best candidate alone"


def _cost(record: Record) -> Iterator[str]:
    name, cost = record.spec.method.name, record.cost
    if cost is not None and name in TRAINING_FREE and (cost.trainable_params.total or cost.trainable_params.inserted):
        yield f"{name} trains or inserts parameters"
