"""One cell measured in this process: load, encode, choose, evaluate, record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field, JsonValue

from redfree.bench.methods import METHODS, Choice, Situation
from redfree.data.prompts import PromptRule
from redfree.data.registry import DatasetUse, open_dataset
from redfree.data.schema import TASKS, DatasetAdapter, split_sha256
from redfree.data.stored import LazyImages, StoredSample, store_samples
from redfree.errors import UserError
from redfree.measure.phases import Phase, Stopwatch
from redfree.models.base import Model
from redfree.models.feature_cache import FeatureCache
from redfree.models.loading import check_options, load_model
from redfree.models.weights import published_sha256
from redfree.progress import track
from redfree.records import schema
from redfree.records.provenance import environment, now
from redfree.records.statistics import bootstrap_ci95
from redfree.records.store import counts_path, write_counts, write_pair_scores, write_record
from redfree.search.batching import default_batch
from redfree.search.evaluate import SegmentationEvaluator
from redfree.search.guard import GuardVerdict
from redfree.search.log import SearchLog
from redfree.search.scores import Ledger
from redfree.tasks.object_iou import OBJECT_MIOU, metrics_of, numbered
from redfree.tasks.segmentation import COUNT_NAMES, Counts
from redfree.validation import Strict

Task = Literal["segmentation", "depth", "classification"]


class CellRequest(Strict):
    """What to measure, before data and weights are looked at.

    Attributes:
        suite: name of the results folder.
        task: the task of the dataset.
        model: name of the model.
        options: options of the model that are not at their default.
        dataset: name of the dataset.
        dataset_options: options of the dataset that are not at their default.
        dataset_root: where the dataset lies, as of `DatasetUse`.
        seed: seed of search images, folds and random draws.
        method: the method and its parameters.
        protocol: how it is measured.
    """

    suite: str
    task: Task = "segmentation"
    model: str
    options: dict[str, JsonValue] = Field(default_factory=dict)
    dataset: str
    dataset_options: dict[str, JsonValue] = Field(default_factory=dict)
    dataset_root: str | None = None
    seed: int
    method: schema.MethodSpec
    protocol: schema.Protocol

    @property
    def title(self) -> str:
        """model/dataset/label/seed, the text that `--only` matches."""
        return f"{self.model}/{self.dataset}/{self.method.label}/{self.seed}"

    @property
    def dataset_use(self) -> DatasetUse:
        """The dataset with its options and place."""
        return DatasetUse(self.dataset, self.dataset_options, self.dataset_root)

    @property
    def prompt(self) -> PromptRule:
        """Where the protocol places prompts."""
        protocol = self.protocol
        return PromptRule(
            rule=protocol.prompt,
            components=protocol.prompt_components,
            seed=protocol.prompt_seed,
            jitter=protocol.box_jitter,
            outside=protocol.outside_points,
        )

    def open_dataset(self) -> DatasetAdapter:
        """The adapter of the dataset."""
        return open_dataset(self.dataset_use, self.prompt)

    @property
    def selects_on(self) -> str | None:
        """The split that chooses: search or test; None for a method that does not search."""
        if not METHODS[self.method.name].searches:
            return None
        return str(self.method.params.get("select_on", "search"))


@dataclass(frozen=True)
class Splits:
    """The images of a cell.

    Attributes:
        test: images that are scored.
        choosing: images that choose; None for a method that does not search; the test images for the oracle.
    """

    test: list[StoredSample]
    choosing: list[StoredSample] | None


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
    """

    record: schema.Record
    counts: Counts
    setup: Setup
    choice: Choice


def load_splits(request: CellRequest, dataset: DatasetAdapter) -> Splits:
    """Reads the images of a cell.

    Raises:
        UserError: the dataset has too few, one of them is defective, or an image is in both splits.
    """
    protocol = request.protocol
    test = store_samples(dataset.load("test", protocol.n_test, request.seed), "read test")
    if request.selects_on != "search":
        return Splits(test, test if request.selects_on == "test" else None)
    choosing = store_samples(dataset.load("search", protocol.n_search, request.seed), "read search")
    known = {sample.image_sha256(): sample.id for sample in choosing}
    for sample in test:
        if (twin := known.get(sample.image_sha256())) is not None:
            raise UserError(f"test image {sample.id} shows the same as search image {twin}; remove one of the two")
    return Splits(test, choosing)


def spec_of(request: CellRequest, dataset: DatasetAdapter, splits: Splits, model_sha256: str) -> schema.Spec:
    """The identity of a cell, from the images it reads and the weights it runs on."""
    facts = {"test": (len(splits.test), split_sha256(splits.test))}
    if splits.choosing is not None:
        facts["choosing"] = (len(splits.choosing), split_sha256(splits.choosing))
    return _spec(request, dataset, facts, model_sha256)


def identify(request: CellRequest) -> schema.Spec:
    """The identity of a cell of a registered dataset and a model of the catalogue, without measuring it.

    Raises:
        UserError: no SHA-256 of the model's weights is published, and they are not here.
    """
    facts = {"test": _split_facts(_dataset_key(request), "test", request.protocol.n_test, 0)}
    if request.selects_on == "search":
        facts["choosing"] = _split_facts(_dataset_key(request), "search", request.protocol.n_search, request.seed)
    elif request.selects_on == "test":
        facts["choosing"] = facts["test"]
    return _spec(request, request.open_dataset(), facts, published_sha256(request.model))


def _dataset_key(request: CellRequest) -> str:
    """All of a request that its images depend on, as a request of the baseline."""
    baseline = schema.MethodSpec(name="baseline", label="baseline")
    same = {"suite": "", "model": "", "options": {}, "seed": 0, "method": baseline}
    return request.model_copy(update=same).model_dump_json()


@lru_cache(maxsize=256)
def _split_facts(dataset_key: str, split: str, count: int | None, seed: int) -> tuple[int, str]:
    request = CellRequest.model_validate_json(dataset_key)
    rows, decode = request.open_dataset().load(split, count, seed), TASKS[request.task][1]
    samples = track((decode(row) for row in rows), len(rows), f"read {request.dataset} {split}")
    return len(rows), split_sha256(samples)


def _spec(
    request: CellRequest, dataset: DatasetAdapter, facts: dict[str, tuple[int, str]], model_sha256: str
) -> schema.Spec:
    about, options = dataset.describe(), check_options(request.model, request.options)
    recorded = options.recorded() if options else request.options
    return schema.Spec(
        suite=request.suite,
        task=request.task,
        protocol=request.protocol,
        model=schema.ModelSpec(name=request.model, checkpoint_sha256=model_sha256, options=recorded),
        dataset=schema.DatasetSpec(
            name=about["name"],
            revision=about["revision"],
            source=about["source"],
            split_sizes={name: size for name, (size, _) in facts.items()},
            split_sha256={name: digest for name, (_, digest) in facts.items()},
            options=about.get("options", {}),
        ),
        method=request.method,
        seed=request.seed,
    )


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


def require_measurable(task: str) -> None:
    """Refuses tasks whose metrics and heads redfree does not have yet.

    Raises:
        UserError: the task is not segmentation.
    """
    if task != "segmentation":
        raise UserError(
            f"task {task}: its suites can be planned and checked, but not measured yet; run a segmentation one"
        )


def measure(
    request: CellRequest,
    dataset: DatasetAdapter,
    model_file: Path | None,
    log: SearchLog,
    feature_folder: Path | None = None,
) -> Measurement:
    """Measures one cell in this process.

    Args:
        request: what to measure.
        dataset: the adapter that `request.dataset` names.
        model_file: weights of the model; None takes those that ship or were downloaded.
        log: where scores are kept and found.
        feature_folder: where features are kept and found; None encodes every image and keeps nothing.

    Raises:
        UserError: weights or images are defective.
    """
    require_measurable(request.task)
    torch.set_num_threads(request.protocol.threads)
    stopwatch = Stopwatch()
    with stopwatch.phase("load"):
        model = load_model(request.model, model_file, request.options)
        splits = load_splits(request, dataset)
    with stopwatch.phase("encode"):
        setup = prepare(request, model, splits, log, _feature_cache(request, feature_folder))
    choice = choose(request, setup, stopwatch)
    with stopwatch.phase("evaluate"):
        counts = np.stack([setup.test.count(channel_map) for channel_map in choice.maps])
    spec = spec_of(request, dataset, splits, model.checkpoint_sha256)
    record = schema.Record(
        run_id=spec.run_id(),
        created_at=now(),
        status="ok",
        spec=spec,
        phases=[_phase(phase, setup) for phase in stopwatch.phases],
        scores=scores_of(counts, [sample.id for sample in splits.test], request.dataset),
        cost=_cost(setup, choice),
        result=_result(choice),
        env=environment(),
    )
    return Measurement(record, counts, setup, choice)


def _phase(phase: Phase, setup: Setup) -> schema.PhaseRecord:
    read = setup.images_read if phase.name == "encode" else 0
    return schema.PhaseRecord.model_validate({**asdict(phase), "images_read": read})


def _feature_cache(request: CellRequest, folder: Path | None) -> FeatureCache:
    options = check_options(request.model, request.options)
    return FeatureCache(folder, options.features if options else "float32")


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


def _cost(setup: Setup, choice: Choice) -> schema.Cost:
    trace = choice.searched.trace if choice.searched else ()
    ledger = setup.choosing.ledger if setup.choosing else Ledger()
    evaluators = {id(e): e for e in (setup.test, setup.choosing) if e is not None}.values()
    return schema.Cost(
        trainable_params=schema.TrainableParameters(inserted=0, total=0),
        candidates_scored=sum(step.evaluations for step in trace),
        decoder_passes=ledger.passes,
        scoring_seconds=ledger.seconds,
        cache_bytes=sum(e.features.nbytes for e in evaluators),
        decode_batch=setup.choosing.batch if setup.choosing else None,
    )


def _result(choice: Choice) -> schema.Result:
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
