"""Scores of a model on images, with a tuner and a swap from files on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from redfree.bench.outcome import scores_of
from redfree.channels import ChannelMap, load_swap
from redfree.data.folder import FolderDataset
from redfree.data.registry import DatasetUse, open_dataset, task_of
from redfree.data.schema import DatasetAdapter
from redfree.data.stored import LazyImages, store_samples
from redfree.errors import UserError
from redfree.files import sha256_of
from redfree.models.feature_cache import FeatureCache
from redfree.models.loading import check_options, load_model
from redfree.models.promptable import PromptableModel
from redfree.records.schema import Score
from redfree.search.evaluate import SegmentationEvaluator
from redfree.search.log import SearchLog
from redfree.tuners.artefact import load_tuner


@dataclass(frozen=True)
class EvalOptions:
    """What to score.

    Attributes:
        model: name of the model.
        checkpoint: weights file; None for those that ship or were downloaded.
        model_options: options of the model that are not at their default.
        tuner: a file of what was fitted; None without.
        swap: a `swap.json`; None without.
        data: a folder or manifest, all of whose images are scored.
        dataset: a registered dataset in place of it, whose test split is.
        mask_threshold: masks of `data` hold the object where they are at least this.
        threads: torch threads.
    """

    model: str
    checkpoint: Path | None = None
    model_options: Mapping[str, JsonValue] = field(default_factory=dict)
    tuner: Path | None = None
    swap: Path | None = None
    data: Path | None = None
    dataset: DatasetUse | None = None
    mask_threshold: int | None = None
    threads: int = 2


def evaluate(options: EvalOptions) -> list[Score]:
    """Scores every metric, each with its bootstrap interval over images.

    Raises:
        UserError: images, weights, the tuner or the swap are not usable, or do not belong together.
    """
    torch.set_num_threads(options.threads)
    dataset, split = _images(options)
    model = load_model(options.model, options.checkpoint, options.model_options)
    if options.tuner is not None:
        if not isinstance(model, PromptableModel):
            raise UserError(f"{model.name}: a tuner needs the model itself, not a function; leave out --tuner")
        load_tuner(options.tuner, model)
        model.weights_changed()
    channel_map = _swap(options) if options.swap else ChannelMap(model.channels)
    if channel_map.channels != model.channels:
        raise UserError(
            f"{options.swap}: is for {channel_map.channels} channels, {model.name} has {model.channels}; "
            "give a swap of this model"
        )
    samples = store_samples(dataset.load(split, None, 0), "read images")
    given = check_options(options.model, options.model_options)
    cache = FeatureCache(None, given.features if given else "float32")
    features = cache.encode(model, LazyImages(samples)).features
    counts = SegmentationEvaluator(model, samples, features, SearchLog(None)).count(channel_map)
    return scores_of(np.asarray(counts)[None], [sample.id for sample in samples], dataset.describe()["name"])


def _swap(options: EvalOptions) -> ChannelMap:
    """The swap; one that was searched on a tuned model needs that tuner."""
    assert options.swap is not None
    channel_map = load_swap(options.swap)
    searched_on = json.loads(options.swap.read_text("utf-8")).get("tuner_sha256")
    if searched_on and (options.tuner is None or searched_on != sha256_of(options.tuner)):
        raise UserError(
            f"{options.swap}: was searched on a model with the tuner {searched_on[:16]}; give --tuner with that file"
        )
    return channel_map


def _images(options: EvalOptions) -> tuple[DatasetAdapter, str]:
    if (options.data is None) == (options.dataset is None):
        raise UserError("give --data FOLDER or --dataset NAME, one of them")
    if options.data is not None:
        return FolderDataset(options.data, options.mask_threshold), "all"
    assert options.dataset is not None
    if (task := task_of(options.dataset)) != "segmentation":
        raise UserError(f"--dataset {options.dataset.name} is for {task}; choose one for segmentation")
    return open_dataset(options.dataset), "test"
