"""The record: what one cell left behind. Schema version 1."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from redfree.validation import Strict, without_defaults

SCHEMA_VERSION = 1

Fraction = FiniteFloat
Interval = tuple[FiniteFloat, FiniteFloat]


# Fields that came after the first records are written only where they are set: older run ids stay what they are.
_LATER_PROTOCOL_FIELDS = ("prompt_components", "prompt_seed", "box_jitter", "outside_points")


class Protocol(Strict):
    """How a cell is measured; every field is an axis.

    Attributes:
        n_search: images that choose a swap.
        n_test: images that are scored; null for the whole test split.
        n_pairs: N of the Top-N.
        semantics: how several pairs act together.
        prompt: the rule that places prompts, see `redfree.data.prompts.PromptRule`, as the next four.
        prompt_components: what of an object of several parts the rule sees.
        prompt_seed: seed of random points and boxes.
        box_jitter: pixels by which the sides of boxes move at random.
        outside_points: whether points of files may lie off their object.
        folds: folds of the guard.
        batch: maps decoded at a time; null chooses by memory, see `Cost.decode_batch`.
        threads: intra-operation threads of torch.
        dtype: number format of features and of the decoder that test scores come from.
        search_dtype: number format of the decoder during the search.
        decoder: which exact decoder the search uses; auto takes the faster one.
        search_resolution: where masks are compared during the search; test scores are always at the image's own size.
    """

    n_search: int = Field(default=50, ge=1)
    n_test: int | None = Field(default=200, ge=1)
    n_pairs: int = Field(default=10, ge=1, le=16)
    semantics: Literal["simultaneous", "sequential"] = "simultaneous"
    prompt: Literal["distance_transform", "centroid_hull", "random", "file", "box"] = "distance_transform"
    prompt_components: Literal["all", "largest", "each"] = "all"
    prompt_seed: int = Field(default=0, ge=0)
    box_jitter: int = Field(default=0, ge=0)
    outside_points: Literal["refuse", "keep"] = "refuse"
    folds: int = Field(default=5, ge=2)
    batch: int | None = Field(default=None, ge=1)
    threads: int = Field(default=2, ge=1)
    dtype: Literal["float32"] = "float32"
    search_dtype: Literal["float32", "bfloat16"] = "float32"
    decoder: Literal["auto", "shared", "generic"] = "auto"
    search_resolution: Literal["model_input"] = "model_input"

    @model_validator(mode="after")
    def _folds_need_images(self) -> Protocol:
        if self.folds > self.n_search:
            raise ValueError(f"{self.folds} folds cannot be made of {self.n_search} search images; lower folds")
        return self

    @model_serializer(mode="wrap")
    def _keep_run_ids(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), _LATER_PROTOCOL_FIELDS)


class ModelSpec(Strict):
    """Which model: its name, the SHA-256 of its weights, and options."""

    name: str
    checkpoint_sha256: str
    options: dict[str, JsonValue] = Field(default_factory=dict)


class DatasetSpec(Strict):
    """Which images: name, revision, options of reading, and the SHA-256 of the splits that the cell read."""

    name: str
    revision: str | None
    source: str
    split_sizes: dict[str, int]
    split_sha256: dict[str, str]
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _keep_run_ids(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), ("options",))


class MethodSpec(Strict):
    """Which method, with its parameters; the label tells apart variants of one method in tables."""

    name: str
    label: str
    params: dict[str, JsonValue] = Field(default_factory=dict)


class Spec(Strict):
    """Identity of a cell. Its hash is the run id."""

    suite: str
    task: Literal["segmentation", "depth", "classification"]
    protocol: Protocol
    model: ModelSpec
    dataset: DatasetSpec
    method: MethodSpec
    seed: int

    def run_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the spec as canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class PhaseRecord(Strict):
    """Wall seconds and peak memory of one phase of the cell's process.

    Attributes:
        images_read: images whose features were on disk, and whose encoding is therefore not in the seconds.
    """

    name: str
    seconds: FiniteFloat
    peak_rss_bytes: int
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    images_read: int = 0


class Score(Strict):
    """One named metric on one split, a fraction 0..1, with the bootstrap interval over images."""

    metric: str
    definition: str
    split: str
    value: Fraction
    unit: Literal["fraction"] = "fraction"
    n: int
    ci95: Interval
    higher_is_better: bool = True


class TrainableParameters(Strict):
    """Parameters that the method adds, and all that it trains."""

    inserted: int
    total: int


class Cost(Strict):
    """What the method asked for, whoever computed it.

    Attributes:
        trainable_params: parameters inserted and trained in total.
        candidates_scored: maps scored by the search.
        decoder_passes: maps times images scored by search and guard, and 3 for each image of a screen.
        scoring_seconds: time of that scoring, also where another cell had left it in the search log.
        cache_bytes: features kept in memory.
        decode_batch: maps decoded at a time, before any halving; None where nothing was searched.
        fit_seconds: time of fitting a tuner, also where an equal cell had left it; None without a tuner.
        artefact_bytes: size of the file of what was fitted; None without a tuner.
    """

    trainable_params: TrainableParameters
    candidates_scored: int
    decoder_passes: int
    scoring_seconds: FiniteFloat
    cache_bytes: int
    decode_batch: int | None = None
    fit_seconds: FiniteFloat | None = None
    artefact_bytes: int | None = None


class Fit(Strict):
    """How a tuner was fitted.

    Attributes:
        losses: mean loss of each epoch.
        steps: optimiser steps.
        best_epoch: the epoch that was taken, from 1; None for the last one.
        declared_params: parameters that the method trains by its authors' account.
        artefact_sha256: of the file with the fitted values.
    """

    losses: list[FiniteFloat]
    steps: int
    best_epoch: int | None
    declared_params: int
    artefact_sha256: str


class Guard(Strict):
    """The guard's verdict, see `redfree.search.guard.GuardVerdict`."""

    rule: str
    folds: int
    accepted: bool
    gain: FiniteFloat
    standard_error: FiniteFloat
    gain_ci95: Interval


class TraceRecord(Strict):
    """One stage of a search, see `redfree.search.exhaustive.TraceStep`."""

    stage: str
    evaluations: int
    decoder_passes: int
    seconds: FiniteFloat
    best_score: Fraction


class Result(Strict):
    """What was evaluated, and how it was chosen.

    Attributes:
        pairs: the swap that the test scores belong to.
        zeroed: channels set to zero.
        draws: the maps of a random control, each a list of pairs.
        searched_pairs: what the search chose, before the guard.
        searched_zeroed: the same where it chose channels to set to zero.
        top: the Top-N candidates.
        search_score: mean IoU of the search's choice on the search images.
        search_baseline_score: mean IoU of the unchanged model on them.
        search_best_single_score: mean IoU of the best candidate alone.
        guard: the verdict; None without guard.
        trace: the stages of the search.
        fit: how the tuner was fitted; None without one.
    """

    pairs: list[tuple[int, int]]
    zeroed: list[int] = Field(default_factory=list)
    draws: list[list[tuple[int, int]]] | None = None
    searched_pairs: list[tuple[int, int]] | None = None
    searched_zeroed: list[int] | None = None
    top: list[tuple[int, int]] | None = None
    search_score: Fraction | None = None
    search_baseline_score: Fraction | None = None
    search_best_single_score: Fraction | None = None
    guard: Guard | None = None
    trace: list[TraceRecord] = Field(default_factory=list)
    fit: Fit | None = None


class RecordFile(Strict):
    """A file beside the record: its name and SHA-256.

    `counts` holds the raw counts of each image, `pair_scores` (C, C) the mean score of each pair alone on the search
    images, as gzipped NumPy array.
    """

    name: str
    sha256: str


class Record(Strict):
    """One cell."""

    schema_version: Literal[1] = 1
    run_id: str
    created_at: str
    status: Literal["ok", "failed", "oom", "cancelled"]
    error: str | None = None
    spec: Spec
    phases: list[PhaseRecord] = Field(default_factory=list)
    estimate: dict[str, JsonValue] | None = None
    scores: list[Score] = Field(default_factory=list)
    cost: Cost | None = None
    result: Result | None = None
    env: dict[str, Any]
    files: dict[str, RecordFile] = Field(default_factory=dict)
