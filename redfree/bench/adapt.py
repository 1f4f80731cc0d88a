"""The practitioner's command: is there a swap that helps on these images, and can it be trusted?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from redfree.bench.catalogue import SwapParams
from redfree.bench.cell import Measurement, measure, write_measurement
from redfree.bench.request import CellRequest
from redfree.channels import ChannelMap
from redfree.data.folder import FolderDataset
from redfree.data.registry import DatasetUse, open_dataset, task_of
from redfree.data.schema import DatasetAdapter
from redfree.errors import UserError
from redfree.models.checkpoints import FEATURES
from redfree.models.loading import check_options
from redfree.records.schema import MethodSpec, Protocol
from redfree.records.statistics import bootstrap_mean_ci95
from redfree.records.store import require_writable
from redfree.search.log import SearchLog
from redfree.tasks.segmentation import Counts, image_iou

MIN_IMAGES = 4


@dataclass(frozen=True)
class AdaptOptions:
    """What the user asked for.

    Attributes:
        model: name of the model.
        checkpoint: weights file; None for those that ship or were downloaded.
        model_options: options of the model that are not at their default.
        data: folder or manifest that is split by seed; None where `search` and `test` are given.
        search: folder or manifest of the images that choose.
        test: folder or manifest of the images that are scored.
        dataset: a registered dataset in place of `data`; it has splits of its own.
        out: folder of what is written.
        n_search: images that choose; None takes 50, or half of a folder of fewer than 100.
        n_pairs: N of the Top-N.
        folds: folds of the guard.
        guard: one_standard_error, k_fold, split_half or none.
        strategy: greedy, shortlist, racing or exhaustive.
        mask_threshold: masks hold the object where they are at least this; None reads two-valued masks.
        seed: seed of split and folds.
        threads: torch threads.
        feature_cache: whether features are kept on disk, beside the search log.
        method: swap, the name of a tuner, or TUNER+swap.
        fit: how a tuner is trained, as far as it is not as of `redfree.tuners.fit_options.FitParams`.
        tuner_options: options of the tuner that are not at their default.
    """

    model: str
    out: Path
    checkpoint: Path | None = None
    model_options: Mapping[str, JsonValue] = field(default_factory=dict)
    dataset: DatasetUse | None = None
    data: Path | None = None
    search: Path | None = None
    test: Path | None = None
    n_search: int | None = None
    n_pairs: int = 10
    folds: int = 5
    guard: str = "one_standard_error"
    strategy: str = "greedy"
    mask_threshold: int | None = None
    seed: int = 0
    threads: int = 2
    feature_cache: bool = True
    method: str = "swap"
    fit: Mapping[str, JsonValue] = field(default_factory=dict)
    tuner_options: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` found.

    Attributes:
        measurement: the cell of the swap.
        before: raw counts of the unchanged model on the test images, (images, 4).
        searched: the same with what the search chose, whether or not the guard accepted it.
    """

    measurement: Measurement
    before: Counts
    searched: Counts

    @property
    def after(self) -> Counts:
        """Raw counts of what is handed to the user, (images, 4)."""
        return np.asarray(self.measurement.counts[0])

    def gain(self, counts: Counts) -> tuple[float, tuple[float, float]]:
        """Mean per-image IoU gain of some counts over the unchanged model, with its 95% interval."""
        return paired_gain(counts, self.before)


def paired_gain(counts: Counts, base: Counts) -> tuple[float, tuple[float, float]]:
    """Mean per-image IoU gain of some counts (images, 4) over others of the same images, with its 95% interval."""
    gains: NDArray[np.float64] = image_iou(counts) - image_iou(base)
    return float(gains.mean()), bootstrap_mean_ci95(gains)


class _TwoFolders:
    """Search and test images from two places, as one dataset."""

    def __init__(self, search: Path, test: Path, mask_threshold: int | None) -> None:
        self._parts = {"search": FolderDataset(search, mask_threshold), "test": FolderDataset(test, mask_threshold)}
        pointed = {part.root: part.describe()["prompt_rule"] == "file" for part in self._parts.values()}
        if len(set(pointed.values())) > 1:
            without, given = sorted(pointed, key=pointed.__getitem__)
            raise UserError(f"{without}: has no points, but {given} has; give points in both or in neither")

    def __len__(self) -> int:
        return len(self._parts["search"])

    def load(self, split: str, count: int | None, seed: int) -> datasets.Dataset:
        return self._parts[split].load("all", count, seed)

    def describe(self) -> dict[str, Any]:
        about = {split: part.describe() for split, part in self._parts.items()}
        return {**about["test"], "name": f"{about['search']['name']}+{about['test']['name']}"}

    def verify(self) -> list[str]:
        return [defect for part in self._parts.values() for defect in part.verify()]


def _open(options: AdaptOptions) -> tuple[DatasetAdapter, int, int]:
    """The dataset with the sizes of its search and test split."""
    if options.dataset is not None:
        return _open_registered(options, options.dataset)
    if options.data is None:
        if options.search is None or options.test is None:
            raise UserError("give --data FOLDER, or both --search FOLDER and --test FOLDER")
        pair = _TwoFolders(options.search, options.test, options.mask_threshold)
        n_test = len(FolderDataset(options.test, options.mask_threshold))
        return pair, options.n_search or min(50, len(pair)), n_test
    if options.search is not None or options.test is not None:
        raise UserError("give --data FOLDER, or --search FOLDER and --test FOLDER, not both")
    total = len(FolderDataset(options.data, options.mask_threshold))
    n_search = options.n_search or min(50, total // 2)
    if total < MIN_IMAGES or n_search >= total:
        raise UserError(
            f"{options.data}: has {total} images, {n_search} search images asked for; "
            f"at least {MIN_IMAGES} images are needed, and --n-search must leave some to test on"
        )
    return FolderDataset(options.data, options.mask_threshold, n_search), n_search, total - n_search


def _open_registered(options: AdaptOptions, use: DatasetUse) -> tuple[DatasetAdapter, int, int]:
    if options.data or options.search or options.test:
        raise UserError("give --dataset, or folders with --data, --search and --test, not both")
    if (task := task_of(use)) != "segmentation":
        raise UserError(f"--dataset {use.name} is for {task}; choose one for segmentation")
    dataset = open_dataset(use)
    n_search, n_test = (len(dataset.load(split, None, options.seed)) for split in ("search", "test"))
    return dataset, options.n_search or min(50, n_search), n_test


@dataclass(frozen=True)
class Task:
    """The images of `adapt`, and what is asked of them."""

    options: AdaptOptions
    dataset: DatasetAdapter
    n_search: int
    n_test: int

    def measure(self, cache: Path, method: str, params: Mapping[str, JsonValue]) -> Measurement:
        """Measures one method on the images."""
        spec = MethodSpec(name=method, label=method, params=dict(params))
        features = cache / FEATURES if self.options.feature_cache else None
        log, tuners = SearchLog(cache / "scores"), cache / "tuners"
        request, checkpoint = _request(self, spec), self.options.checkpoint
        return measure(request, self.dataset, checkpoint, log, feature_folder=features, tuner_folder=tuners)


def _request(task: Task, method: MethodSpec) -> CellRequest:
    options, n_search = task.options, task.n_search
    if options.folds > n_search:
        raise UserError(f"--folds {options.folds} is more than the {n_search} search images; lower it")
    about = task.dataset.describe()
    protocol = {
        "n_search": n_search,
        "n_test": task.n_test,
        "n_pairs": options.n_pairs,
        "folds": options.folds,
        "threads": options.threads,
        "prompt": about["prompt_rule"],
    }
    return CellRequest(
        suite="adapt",
        model=options.model,
        options=dict(options.model_options),
        dataset=about["name"],
        seed=options.seed,
        method=method,
        protocol=Protocol.model_validate(protocol),
    )


def swap_params(options: AdaptOptions) -> dict[str, JsonValue]:
    """Parameters of the swap that is asked for."""
    params = SwapParams.model_validate({"guard": options.guard, "strategy": options.strategy})
    return dict(params.model_dump(mode="json"))


def prepare_task(options: AdaptOptions, cache: Path) -> Task:
    """Opens the images and checks that what will be written can be.

    Raises:
        UserError: a folder, an option of the model or the dataset is not usable.
    """
    if options.method == "swap" and (options.fit or options.tuner_options):
        raise UserError("--fit and --tuner-option belong to a tuner; name one with --method, such as samed+swap")
    require_writable(options.out)
    require_writable(cache)
    check_options(options.model, options.model_options)
    return Task(options, *_open(options))


def adapt(options: AdaptOptions, cache: Path) -> Adaptation:
    """Searches a swap on the user's images and scores it on images that had no part in choosing it.

    Nothing is written but features and the search log, from which a killed search goes on.

    Raises:
        UserError: an image, mask, point, option or weights file is not usable; the message names it and the mend.
    """
    return adapt_swap(prepare_task(options, cache), cache)


def adapt_swap(task: Task, cache: Path) -> Adaptation:
    """As `adapt`, on images that are open."""
    measurement = task.measure(cache, "swap", swap_params(task.options))
    test, found = measurement.setup.test, measurement.choice.searched
    assert found is not None
    return Adaptation(
        measurement, test.count(ChannelMap(measurement.setup.model.channels)), test.count(found.channel_map)
    )


def write_swap(measurement: Measurement, path: Path) -> None:
    """Writes the map that is used, which the guard let through, with where it comes from."""
    record = measurement.record
    assert record.result is not None
    fit = record.result.fit
    measurement.choice.maps[0].save(
        path,
        model=record.spec.model.name,
        checkpoint_sha256=record.spec.model.checkpoint_sha256,
        model_options=record.spec.model.options,
        tuner_sha256=fit.artefact_sha256 if fit else None,
        run_id=record.run_id,
        searched_pairs=record.result.searched_pairs,
        guard=json.loads(record.result.guard.model_dump_json()) if record.result.guard else None,
    )


def write_adaptation(adaptation: Adaptation, out: Path) -> None:
    """Writes the swap, the record and its raw counts."""
    write_measurement(out / "record.json", adaptation.measurement)
    write_swap(adaptation.measurement, out / "swap.json")
