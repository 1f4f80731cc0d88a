"""Suite files -> cells."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from mmengine.config import Config
from pydantic import Field, JsonValue, field_validator

from redfree.bench.catalogue import METHOD_PARAMS
from redfree.bench.request import CellRequest, Task
from redfree.data.registry import DatasetUse, check_options, task_of
from redfree.errors import UserError, unknown
from redfree.models.catalogue import MODELS
from redfree.records.schema import MethodSpec, Protocol
from redfree.validation import Strict, validate

BENCHMARKS = Path("benchmarks")


class MethodEntry(Strict):
    """A method of a suite, with a label where it is not the method's own name."""

    name: str
    label: str | None = None
    params: dict[str, JsonValue] = Field(default_factory=dict)


class ModelUse(Strict):
    """A model of a suite, with its options where they are not at their default."""

    name: str
    options: dict[str, JsonValue] = Field(default_factory=dict)


class DatasetEntry(Strict):
    """A dataset of a suite.

    Attributes:
        name: a name of `redfree list datasets`.
        options: options that are not at their default.
        root: its folder, absolute or below the data folder; null for the folder of its name there.
        protocol: fields of the protocol that differ for this dataset, such as n_test.
    """

    name: str
    options: dict[str, JsonValue] = Field(default_factory=dict)
    root: str | None = None
    protocol: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def use(self) -> DatasetUse:
        """The dataset with its options and place."""
        return DatasetUse(self.name, self.options, self.root)


class Suite(Strict):
    """What to run: the product of models, datasets, methods and seeds.

    Attributes:
        suite: name of the results folder.
        title: heading of the leaderboard.
        task: the task of every dataset.
        models: names of models, or a name with options.
        datasets: names of datasets, or a name with options.
        methods: methods with their parameters.
        seeds: seeds of search images, folds and random draws.
        protocol: how every cell is measured.
    """

    suite: str
    title: str
    task: Task
    models: list[ModelUse] = Field(min_length=1)
    datasets: list[DatasetEntry] = Field(min_length=1)
    methods: list[MethodEntry] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    protocol: Protocol = Protocol()

    @field_validator("models", "datasets", mode="before")
    @classmethod
    def _names_suffice(cls, uses: object) -> object:
        return [{"name": use} if isinstance(use, str) else use for use in uses] if isinstance(uses, list) else uses


def find_suite(name: str) -> Path:
    """Path of a suite, by its name in `benchmarks/` or by its own path.

    Raises:
        UserError: there is none; the nearest name is given.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else BENCHMARKS / f"{name}.yaml"
    if not path.is_file():
        raise unknown("suite", name, [p.stem for p in BENCHMARKS.glob("*.yaml")])
    return path


def load_suite(name: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """Reads and checks a suite, `_base_` files included.

    Args:
        name: name in `benchmarks/` or path.
        overrides: dotted fields to change, such as {"protocol.n_search": 20}.

    Raises:
        UserError: the suite, a field, model, dataset or method is unknown, or a value is not valid.
    """
    path = find_suite(name)
    try:
        config = Config.fromfile(str(path))
        config.merge_from_dict(dict(overrides or {}))
    except Exception as error:  # mmengine lets malformed files and overrides raise nearly anything
        raise UserError(f"{path}: not a suite ({' '.join(str(error).split())})") from None
    suite = validate(Suite, config.to_dict(), str(path))
    for model in suite.models:
        _check_model(model, suite.task, f"{path}: models")
    for dataset in suite.datasets:
        _check_dataset(dataset, suite, str(path))
    return suite


def _check_dataset(dataset: DatasetEntry, suite: Suite, path: str) -> None:
    try:
        check_options(dataset.use)
    except UserError as error:
        raise UserError(f"{path}: datasets: {error}") from None
    if (task := task_of(dataset.use)) != suite.task:
        raise UserError(
            f"{path}: datasets: {dataset.name} is for {task}, the suite for {suite.task}; remove one of them"
        )
    _protocol(suite, dataset, path)


def _protocol(suite: Suite, dataset: DatasetEntry, where: str) -> Protocol:
    """The suite's protocol with what differs for one dataset."""
    if not dataset.protocol:
        return suite.protocol
    fields = {**suite.protocol.model_dump(mode="json"), **dataset.protocol}
    return validate(Protocol, fields, f"{where}: protocol of {dataset.name}")


def _check_model(model: ModelUse, task: str, where: str) -> None:
    known = [name for name, entry in MODELS.items() if entry.promptable == (task == "segmentation")]
    if model.name not in known:
        raise UserError(f"{where}: {unknown('model', model.name, known)}")
    validate(MODELS[model.name].options, model.options, f"{where}: options of {model.name}")


def _method_spec(entry: MethodEntry, where: str) -> MethodSpec:
    if entry.name not in METHOD_PARAMS:
        raise UserError(f"{where}: methods: {unknown('method', entry.name, METHOD_PARAMS)}")
    label = entry.label or entry.name
    params = validate(METHOD_PARAMS[entry.name], dict(entry.params), f"{where}: method {label}: params")
    return MethodSpec(name=entry.name, label=label, params=params.model_dump(mode="json"))


def plan(suite: Suite, only: str | None = None, shard: tuple[int, int] = (1, 1)) -> list[CellRequest]:
    """Expands a suite into cells, all methods of one model, dataset and seed next to each other.

    Args:
        suite: what to run.
        only: keep cells whose title contains this text.
        shard: (i, n) keeps the i-th of n parts, counted from 1; a part holds whole (model, dataset, seed) groups so
            that a shared search is done by one machine.

    Raises:
        UserError: a method is unknown, or nothing is left.
    """
    methods = [_method_spec(entry, f"suite {suite.suite}") for entry in suite.methods]
    # Datasets change fastest: groups measured at the same time then share no images, for which they would wait.
    everything = [(m, d, s) for s, m, d in product(suite.seeds, suite.models, suite.datasets)]
    groups = everything[shard[0] - 1 :: shard[1]]
    if not groups:
        raise UserError(f"shard {shard[0]}/{shard[1]} is empty: the suite has {len(everything)} groups to divide")
    cells = [
        CellRequest(
            suite=suite.suite,
            model=model.name,
            options=model.options,
            task=suite.task,
            dataset=dataset.name,
            dataset_options=dataset.options,
            dataset_root=dataset.root,
            seed=seed,
            method=method,
            protocol=_protocol(suite, dataset, f"suite {suite.suite}"),
        )
        for (model, dataset, seed), method in product(groups, methods)
    ]
    kept = [cell for cell in cells if only is None or only in cell.title]
    if not kept:
        raise UserError(f"--only {only!r} matches none of {len(cells)} cells; `redfree plan` lists them")
    return kept
