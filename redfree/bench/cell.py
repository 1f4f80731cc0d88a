"""One cell measured in this process: load, fit, encode, choose, evaluate, record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from redfree.bench.identity import Splits, load_splits, spec_of
from redfree.bench.methods import METHODS, Choice, Situation
from redfree.bench.outcome import cost_of, phase_of, result_of, scores_of
from redfree.bench.request import CellRequest, require_measurable
from redfree.bench.tuning import Tuned, tune
from redfree.data.schema import DatasetAdapter
from redfree.data.stored import LazyImages, StoredSample
from redfree.measure.phases import Stopwatch
from redfree.models.base import Model
from redfree.models.feature_cache import FeatureCache
from redfree.models.loading import check_options, load_model
from redfree.records import schema
from redfree.records.provenance import environment, now
from redfree.records.store import counts_path, write_counts, write_pair_scores, write_record
from redfree.search.batching import default_batch
from redfree.search.evaluate import SegmentationEvaluator
from redfree.search.log import SearchLog
from redfree.tasks.segmentation import COUNT_NAMES, Counts


@dataclass(frozen=True)
class Setup:
    """A cell's model and its evaluators on the two splits.

    Attributes:
        model: the model.
        test: scores the test images.
        choosing: scores the images that choose; None for a method that does not search.
        images_read: images whose features were on disk, and so are not in the seconds of the encode phase.
    """

    model: Model
    test: SegmentationEvaluator
    choosing: SegmentationEvaluator | None
    images_read: int = 0


@dataclass(frozen=True)
class Measurement:
    """A finished cell.

    Attributes:
        record: what is kept of it.
        counts: raw counts (draws, images, 4) of the test images.
        setup: model and evaluators.
        choice: what the method decided.
        tuned: the fitted tuner that is on the model; None for a method without one.
    """

    record: schema.Record
    counts: Counts
    setup: Setup
    choice: Choice
    tuned: Tuned | None = None


def prepare(request: CellRequest, model: Model, splits: Splits, log: SearchLog, features: FeatureCache) -> Setup:
    """Encodes the images of a cell, each once."""
    protocol, read = request.protocol, 0

    def evaluator(samples: Sequence[StoredSample]) -> SegmentationEvaluator:
        nonlocal read
        encoding = features.encode(model, LazyImages(samples))
        read += encoding.read
        batch = protocol.batch or default_batch(encoding.features.maps)
        decoder, dtype = protocol.decoder, protocol.search_dtype
        return SegmentationEvaluator(model, samples, encoding.features, log, batch, decoder, dtype)

    test = evaluator(splits.test)
    if splits.choosing is None:
        return Setup(model, test, None, read)
    choosing = test if splits.choosing is splits.test else evaluator(splits.choosing)
    return Setup(model, test, choosing, read)


def choose(request: CellRequest, setup: Setup, stopwatch: Stopwatch) -> Choice:
    """Lets the method decide; it sees the choosing images and no others."""
    situation = Situation(setup.model.channels, setup.choosing, request.protocol, request.seed, stopwatch)
    method = METHODS[request.method.name]
    return method.choose(situation, method.params.model_validate(request.method.params))


def measure(
    request: CellRequest,
    dataset: DatasetAdapter,
    model_file: Path | None,
    log: SearchLog,
    *,
    feature_folder: Path | None = None,
    tuner_folder: Path | None = None,
) -> Measurement:
    """Measures one cell in this process.

    Args:
        request: what to measure.
        dataset: the adapter that `request.dataset` names.
        model_file: weights of the model; None takes those that ship or were downloaded.
        log: where scores are kept and found.
        feature_folder: where features are kept and found; None encodes every image and keeps nothing.
        tuner_folder: where fitted tuners are kept and found, and fits that were stopped; None keeps nothing.

    Raises:
        UserError: weights or images are defective.
    """
    require_measurable(request.task)
    torch.set_num_threads(request.protocol.threads)
    stopwatch = Stopwatch()
    with stopwatch.phase("load"):
        model = load_model(request.model, model_file, request.options)
        splits = load_splits(request, dataset)
    spec = spec_of(request, dataset, splits, model.checkpoint_sha256)
    build = partial(load_model, request.model, model_file, request.options)
    tuned = _tune(request, model, splits, stopwatch, tuner_folder, build)
    with stopwatch.phase("encode"):
        setup = prepare(request, model, splits, log, _feature_cache(request, feature_folder))
    choice = choose(request, setup, stopwatch)
    with stopwatch.phase("evaluate"):
        counts = np.stack([setup.test.count(channel_map) for channel_map in choice.maps])
    record = schema.Record(
        run_id=spec.run_id(),
        created_at=now(),
        status="ok",
        spec=spec,
        phases=[phase_of(phase, setup.images_read) for phase in stopwatch.phases],
        scores=scores_of(counts, [sample.id for sample in splits.test], request.dataset),
        cost=cost_of(setup.test, setup.choosing, choice, tuned),
        result=result_of(choice, tuned),
        env=environment(),
    )
    return Measurement(record, counts, setup, choice, tuned)


def _tune(
    request: CellRequest,
    model: Model,
    splits: Splits,
    stopwatch: Stopwatch,
    folder: Path | None,
    build: Callable[[], Model],
) -> Tuned | None:
    if request.tuner is None or splits.train is None:
        return None
    with stopwatch.phase("fit") as elsewhere:
        tuned = tune(request.tuner, model, splits.train, request.seed, folder, build)
        elsewhere.extend(tuned.processes)
    return tuned


def _feature_cache(request: CellRequest, folder: Path | None) -> FeatureCache:
    options = check_options(request.model, request.options)
    return FeatureCache(folder, options.features if options else "float32")


def counts_table(measurement: Measurement) -> pd.DataFrame:
    """Raw counts of a measurement, one row a draw and image."""
    draws, images, _ = measurement.counts.shape
    table = pd.DataFrame(measurement.counts.reshape(-1, 4), columns=list(COUNT_NAMES))
    table.insert(0, "id", [sample.id for sample in measurement.setup.test.samples] * draws)
    table.insert(0, "draw", np.repeat(np.arange(draws), images))
    return table


def write_measurement(path: Path, measurement: Measurement) -> None:
    """Writes the raw counts of a measurement and the scores of all pairs, then its record, which names them."""
    files = {"counts": write_counts(counts_path(path), counts_table(measurement))}
    found = measurement.choice.searched
    if found is not None and found.pair_scores is not None:
        files["pair_scores"] = write_pair_scores(path, found.pair_scores)
    write_record(path, measurement.record.model_copy(update={"files": files}))
