"""Dataset adapters by name; an adapter's module is imported only when it is opened."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redfree.data.about import about_of, data_folder
from redfree.data.division import DivisionOptions
from redfree.data.indexed import IndexedDataset
from redfree.data.procedural import ProceduralDataset
from redfree.data.prompts import DEFAULT_RULE, PromptRule
from redfree.data.schema import DatasetAdapter
from redfree.data.search_from import SearchedElsewhere
from redfree.errors import UserError, unknown
from redfree.validation import validate

_ADAPTERS = "redfree.data.adapters."
DOMAINS = ("natural", "medical", "camouflaged")
SOURCES: Mapping[str, str] = {
    "coco2017": "coco2017:Coco2017",
    "voc2012": "voc2012:Voc2012",
    "perseg": "perseg:PerSeg",
    "isic2016": "isic2016:Isic2016",
    "busi": "busi:Busi",
    "kvasir-seg": "kvasir_seg:KvasirSeg",
    "camo": "camo:Camo",
    "cod10k": "cod10k:Cod10k",
    "chameleon": "chameleon:Chameleon",
    "ade20k": "ade20k:Ade20k",
    "cityscapes": "cityscapes:Cityscapes",
    "nyuv2": "nyuv2:Nyuv2",
    "kitti": "kitti:Kitti",
    "cifar10": "cifar:Cifar10",
    "cifar100": "cifar:Cifar100",
    "digits": "digits:Digits",
    "imagenet-1k": "imagenet:ImageNetValidation",
    "folder": "folder:Folder",
    "image-folder": "image_folder:ImageFolder",
    "huggingface": "huggingface:HuggingFace",
}
# Sources of the user's own images: their name in records ends with that of the folder, or of the dataset of the hub.
GENERIC = frozenset({"folder", "image-folder", "huggingface"})
DATASETS = (*(f"procedural/{domain}" for domain in DOMAINS), *SOURCES)


@dataclass(frozen=True)
class DatasetUse:
    """A dataset with all that decides what its samples are.

    Attributes:
        name: a name of `DATASETS`.
        options: of its source and its division that are not at their default; `search_from` names the dataset whose
            training images stand in for those of a dataset that has none.
        root: folder of the dataset, absolute or below the data folder; None for the folder of its name there.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    root: str | None = None


def open_dataset(
    use: DatasetUse | str, prompt: PromptRule = DEFAULT_RULE, data_root: Path | None = None
) -> DatasetAdapter:
    """Builds the adapter of a dataset; nothing of it is read before it is asked for.

    Args:
        use: the dataset.
        prompt: where prompts are placed.
        data_root: the data folder; None for REDFREE_DATA, or "datasets" in the cache.

    Raises:
        UserError: there is no such dataset or option, or a generic one has no root.
    """
    use = DatasetUse(use) if isinstance(use, str) else use
    if use.name not in DATASETS:
        raise unknown("dataset", use.name, DATASETS)
    if use.name in SOURCES:
        return _indexed(use, prompt, data_root)
    if use.options or use.root:
        raise UserError(f"dataset {use.name}: is drawn, so it has neither options nor a root; remove them")
    return ProceduralDataset(use.name.removeprefix("procedural/"), prompt)


def check_options(use: DatasetUse) -> None:
    """Checks the options of a dataset without looking for its files.

    Raises:
        UserError: the dataset, or an option of it, is unknown, or a value is not valid.
    """
    if use.name in SOURCES:
        _parsed(use)
    else:
        open_dataset(use)
    other = use.options.get("search_from")
    if other is not None and (task := about_of(other).task) != task_of(use):
        raise UserError(
            f"dataset {use.name}: options: search_from: {other} is for {task}, {use.name} for {task_of(use)}; "
            "name one of the same task"
        )


def task_of(use: DatasetUse) -> str:
    """The task of a dataset whose options were checked: segmentation, depth or classification."""
    return _task(use.name, _parsed(use)[0] if use.name in SOURCES else None)


def _task(name: str, options: object) -> str:
    """What the options of a source say of its task, or else what its facts do."""
    return str(getattr(options, "task", None) or about_of(name).task)


def root_of(use: DatasetUse, data_root: Path | None = None) -> Path:
    """The folder where a dataset of `SOURCES` is looked for.

    Raises:
        UserError: the dataset is a generic one without a root.
    """
    if use.root is None and use.name in GENERIC and use.options.get("path", "parquet") == "parquet":
        raise UserError(f"dataset {use.name}: field root is missing; name the folder of the images")
    return data_folder(data_root) / (use.root or use.name)


def _source_class(name: str) -> Any:  # noqa: ANN401 - a class with a constructor of its own options
    module, _, attribute = SOURCES[name].partition(":")
    return getattr(importlib.import_module(_ADAPTERS + module), attribute)


def _parsed(use: DatasetUse) -> tuple[Any, Any, str | None]:
    """Options of the source, of the division, and the dataset to search on."""
    options = dict(use.options)
    search_from = options.pop("search_from", None)
    where = f"dataset {use.name}: options"
    if search_from is not None and search_from not in (known := [name for name in SOURCES if name not in GENERIC]):
        raise UserError(f"{where}: search_from: {unknown('dataset', str(search_from), known)}")
    division = {name: options.pop(name) for name in DivisionOptions.model_fields if name in options}
    source = validate(_source_class(use.name).Options, options, where)
    return source, validate(DivisionOptions, division, where), search_from


def _own_name(use: DatasetUse, root: Path) -> str:
    path = str(use.options.get("path", "parquet"))
    return root.name.removesuffix(".jsonl") if path == "parquet" else path


def _indexed(use: DatasetUse, prompt: PromptRule, data_root: Path | None) -> DatasetAdapter:
    options, division, search_from = _parsed(use)
    root = root_of(use, data_root)
    name = f"{use.name}/{_own_name(use, root)}" if use.name in GENERIC else use.name
    source = _source_class(use.name)(root, options)
    recorded = options.model_dump(mode="json")
    about = about_of(use.name).model_copy(update={"task": _task(use.name, options)})
    found = IndexedDataset(name, about, source, division, prompt, recorded)
    if search_from is None:
        return found
    other = open_dataset(DatasetUse(search_from), prompt, data_root)
    return SearchedElsewhere(found, other)
