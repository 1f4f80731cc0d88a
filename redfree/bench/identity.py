"""The images of a cell, and the identity that they and the request give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from redfree.bench.request import CellRequest
from redfree.data.schema import TASKS, DatasetAdapter, split_sha256
from redfree.data.stored import StoredSample, store_samples
from redfree.errors import UserError
from redfree.models.loading import check_options
from redfree.models.weights import published_sha256
from redfree.progress import track
from redfree.records import schema


@dataclass(frozen=True)
class Splits:
    """The images of a cell.

    Attributes:
        test: images that are scored.
        choosing: images that choose; None for a method that does not search; the test images for the oracle.
        train: images that a tuner is fitted to; None for a method without one.
    """

    test: list[StoredSample]
    choosing: list[StoredSample] | None
    train: list[StoredSample] | None = None


def load_splits(request: CellRequest, dataset: DatasetAdapter) -> Splits:
    """Reads the images of a cell.

    Raises:
        UserError: the dataset has too few, one of them is defective, or a test image is among those that are trained
            on, or among those that choose without the dataset's division saying so.
    """
    protocol = request.protocol

    def read(split: str, count: int | None) -> list[StoredSample]:
        return store_samples(dataset.load(split, count, request.seed), f"read {split}")

    test = read("test", protocol.n_test)
    params = request.tuner[1] if request.tuner else None
    train = read("train", params.n_train) if params and params.train_on == "train" else None
    fits_to_search = params is not None and train is None
    search = read("search", protocol.n_search) if request.selects_on == "search" or fits_to_search else None
    # A division as the paper's authors made it is not disjoint; the record names it among the dataset's options.
    if fits_to_search or not dataset.describe().get("overlap", {}).get("test"):
        _require_disjoint(test, search or [], "search" if request.selects_on == "search" else "train")
    _require_disjoint(test, train or [], "train")
    choosing = {"search": search, "test": test, None: None}[request.selects_on]
    return Splits(test, choosing, search if fits_to_search else train)


def _require_disjoint(test: Sequence[StoredSample], others: Sequence[StoredSample], split: str) -> None:
    known = {sample.image_sha256(): sample.id for sample in others}
    for sample in test:
        if (twin := known.get(sample.image_sha256())) is not None:
            raise UserError(f"test image {sample.id} shows the same as {split} image {twin}; remove one of the two")


def spec_of(request: CellRequest, dataset: DatasetAdapter, splits: Splits, model_sha256: str) -> schema.Spec:
    """The identity of a cell, from the images it reads and the weights it starts from."""
    parts = {"test": splits.test, "choosing": splits.choosing, "train": splits.train}
    facts = {name: (len(part), split_sha256(part)) for name, part in parts.items() if part is not None}
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
    if request.tuner is not None:
        _, params = request.tuner
        count = params.n_train if params.train_on == "train" else request.protocol.n_search
        facts["train"] = _split_facts(_dataset_key(request), params.train_on, count, request.seed)
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
