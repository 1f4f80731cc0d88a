"""What a cell is asked to measure."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field, JsonValue

from redfree.bench.catalogue import SEARCHING, TunerParams
from redfree.data.prompts import PromptRule
from redfree.data.registry import DatasetUse, open_dataset
from redfree.data.schema import DatasetAdapter
from redfree.errors import UserError
from redfree.records import schema
from redfree.tuners.catalogue import TUNERS
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
    def searched(self) -> tuple[str, dict[str, JsonValue]] | None:
        """What the method searches, swap or zero, and how, also on top of a tuner; None where it searches nothing."""
        if self.method.name not in SEARCHING:
            return None
        params = cast(dict[str, JsonValue], self.method.params.get("swap", self.method.params))
        return self.method.name.rpartition("+")[2], params

    @property
    def selects_on(self) -> str | None:
        """The split that chooses: search or test; None for a method that does not search."""
        return str(self.searched[1].get("select_on", "search")) if self.searched else None

    @property
    def tuner(self) -> tuple[str, TunerParams] | None:
        """The tuner that the method begins with, and how it is fitted; None for a method without one."""
        name = self.method.name.partition("+")[0]
        if name not in TUNERS:
            return None
        params = self.method.params.get("tuner", self.method.params)
        return name, TunerParams.model_validate(params)


def require_measurable(task: str) -> None:
    """Refuses tasks whose metrics and heads redfree does not have yet.

    Raises:
        UserError: the task is not segmentation.
    """
    if task != "segmentation":
        raise UserError(
            f"task {task}: its suites can be planned and checked, but not measured yet; run a segmentation one"
        )
