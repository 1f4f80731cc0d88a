"""What a measured cell leaves in its record: scores, costs and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from redfree.bench.methods import Choice
from redfree.bench.tuning import Tuned
from redfree.measure.phases import Phase
from redfree.records import schema
from redfree.records.statistics import bootstrap_ci95
from redfree.search.evaluate import SegmentationEvaluator
from redfree.search.guard import GuardVerdict
from redfree.search.scores import Ledger
from redfree.tasks.object_iou import OBJECT_MIOU, metrics_of, numbered
from redfree.tasks.segmentation import Counts


def phase_of(phase: Phase, images_read: int) -> schema.PhaseRecord:
    """A phase as it is recorded; images whose features were on disk belong to the encode phase."""
    read = images_read if phase.name == "encode" else 0
    return schema.PhaseRecord.model_validate({**asdict(phase), "images_read": read})


def scores_of(counts: Counts, ids: Sequence[str], dataset: str) -> list[schema.Score]:
    """Every metric of the test split with its bootstrap interval over images.

    Args:
        counts: (draws, images, 4).
        ids: of the images.
        dataset: name of the dataset.
    """
    by_image = counts.transpose(1, 0, 2)
    values = {metric: numbered(by_image, ids) if metric is OBJECT_MIOU else by_image for metric in metrics_of(dataset)}
    return [
        schema.Score(
            metric=metric.name,
            definition=metric.definition,
            split="test",
            value=metric.summarise(of_metric),
            n=len(of_metric),
            ci95=bootstrap_ci95(of_metric, metric.summarise),
        )
        for metric, of_metric in values.items()
    ]


def cost_of(
    test: SegmentationEvaluator, choosing: SegmentationEvaluator | None, choice: Choice, tuned: Tuned | None
) -> schema.Cost:
    """What the method asked for."""
    trace = choice.searched.trace if choice.searched else ()
    ledger = choosing.ledger if choosing else Ledger()
    evaluators = {id(e): e for e in (test, choosing) if e is not None}.values()
    return schema.Cost(
        trainable_params=_trained(tuned),
        candidates_scored=sum(step.evaluations for step in trace),
        decoder_passes=ledger.passes,
        scoring_seconds=ledger.seconds,
        cache_bytes=sum(e.features.nbytes for e in evaluators),
        decode_batch=choosing.batch if choosing else None,
        fit_seconds=tuned.report.seconds if tuned else None,
        artefact_bytes=tuned.bytes if tuned else None,
    )


def _trained(tuned: Tuned | None) -> schema.TrainableParameters:
    if tuned is None:
        return schema.TrainableParameters(inserted=0, total=0)
    attachment = tuned.attachment
    return schema.TrainableParameters(inserted=attachment.inserted_count, total=attachment.trained_count)


def result_of(choice: Choice, tuned: Tuned | None) -> schema.Result:
    """What was evaluated, and how it was chosen and fitted."""
    result = _maps(choice)
    return result.model_copy(update={"fit": tuned.record()}) if tuned else result


def _maps(choice: Choice) -> schema.Result:
    first, found, guard = choice.maps[0], choice.searched, choice.guard
    result = schema.Result(pairs=list(first.pairs), zeroed=list(first.zeroed))
    if len(choice.maps) > 1:
        result = schema.Result(pairs=[], draws=[list(m.pairs) for m in choice.maps])
    if found is None:
        return result
    updates = {
        "searched_pairs": list(found.channel_map.pairs),
        "searched_zeroed": list(found.channel_map.zeroed),
        "top": list(found.top),
        "search_score": found.search_score,
        "search_baseline_score": found.baseline_score,
        "search_best_single_score": found.best_single_score,
        "trace": [schema.TraceRecord.model_validate(asdict(step)) for step in found.trace],
        "guard": _guard(guard) if guard else None,
    }
    return result.model_copy(update=updates)


def _guard(verdict: GuardVerdict) -> schema.Guard:
    return schema.Guard.model_validate({name: getattr(verdict, name) for name in schema.Guard.model_fields})
