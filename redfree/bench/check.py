"""Whether a suite can run here: data, weights, memory and disk, and how long it would take at most."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from redfree.bench.catalogue import SwapParams, TunerParams
from redfree.bench.methods import build_search
from redfree.bench.request import CellRequest
from redfree.data.registry import SOURCES, DatasetUse, root_of
from redfree.data.schema import DatasetAdapter
from redfree.errors import UserError
from redfree.files import write_text
from redfree.measure.probe import Probe, probe
from redfree.models.catalogue import MODELS
from redfree.models.checkpoints import checkpoint_of, weights_folder
from redfree.models.weights import find_weights
from redfree.progress import track
from redfree.search.greedy import GreedySearch
from redfree.search.racing import RacingSearch
from redfree.search.shortlist import ShortlistSearch

# Defects of one dataset that are listed before they are only counted.
_LISTED = 5
# A training step of an image takes at most so many times its encoding, see leaderboards/tuners.md.
STEP_TO_ENCODING = 8.0
# What cells of the same images have in common.
_DATASET_FIELDS = ("task", "dataset", "dataset_options", "dataset_root", "protocol")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: dataset, model or resource.
        ready: whether the suite can run as far as this goes.
        detail: what was found, and the mend where it is not ready.
    """

    subject: str
    ready: bool
    detail: str


def check(requests: Sequence[CellRequest], cache: Path, results: Path, *, verify: bool, probes: bool) -> list[Finding]:
    """Looks at everything that the cells of a suite need.

    Args:
        requests: the cells.
        cache: folder where features, downloads, and the names of datasets that were found sound are kept.
        results: folder of the records.
        verify: whether every file of the datasets is read; a dataset that did not change since is not read again.
        probes: whether every model is timed on random weights.

    Returns:
        What was found: datasets, models, then resources.
    """
    findings = list(_datasets(requests, cache, verify))
    weights = {name: _weights(name) for name in dict.fromkeys(request.model for request in requests)}
    findings += weights.values()
    missing = [name for name, finding in weights.items() if not finding.ready]
    costs = _probe_all(requests) if probes else {}
    images = _images(requests) if probes else {}
    estimates = [*_memory(requests, costs, images), *_time(requests, costs, images)]
    return [*findings, *estimates, *_disk(missing, cache, results)]


def _distinct(requests: Sequence[CellRequest], *fields: str) -> list[CellRequest]:
    """The first request of each combination of some fields, one that searches before one that does not."""
    first: dict[str, CellRequest] = {}
    for request in sorted(requests, key=lambda request: request.selects_on != "search"):
        first.setdefault(_key(request, *fields), request)
    return [first[key] for key in dict.fromkeys(_key(request, *fields) for request in requests)]


def _key(request: CellRequest, *fields: str) -> str:
    return request.model_dump_json(include=set(fields))


def _datasets(requests: Sequence[CellRequest], cache: Path, verify: bool) -> Iterator[Finding]:
    for request in _distinct(requests, *_DATASET_FIELDS):
        subject = f"dataset {request.dataset}"
        try:
            dataset = request.open_dataset()
            sizes = _split_sizes(request, dataset)
            defects = _defects(request.dataset_use, dataset, cache) if verify else []
        except UserError as error:
            yield Finding(subject, False, str(error))
            continue
        read = "every file read" if verify else "files not read"
        yield Finding(subject, not defects, f"{sizes}; {read}, {len(defects)} defects")
        yield from (Finding(subject, False, defect) for defect in defects[:_LISTED])


def _split_sizes(request: CellRequest, dataset: DatasetAdapter) -> str:
    test = len(dataset.load("test", request.protocol.n_test, 0))
    if request.selects_on != "search":
        return f"{test} test samples"
    search = len(dataset.load("search", request.protocol.n_search, request.seed))
    return f"{search} search and {test} test samples"


def _defects(use: DatasetUse, dataset: DatasetAdapter, cache: Path) -> list[str]:
    """The defects of a dataset, none where it was sound before and its files have not changed."""
    if use.name not in SOURCES:
        return dataset.verify()
    state = _state(use, dataset)
    note = cache / "verified" / f"{state}.json"
    if note.is_file():
        return []
    defects = dataset.verify()
    if not defects:
        write_text(note, json.dumps({"dataset": use.name, "options": dict(use.options)}, sort_keys=True) + "\n")
    return defects


def _state(use: DatasetUse, dataset: DatasetAdapter) -> str:
    """A hash of the names, sizes and times of all files of a dataset, and of how it is read and divided."""
    other = use.options.get("search_from")
    roots = [root_of(use), *([root_of(DatasetUse(other))] if other else [])]
    files = [path for root in roots for path in (sorted(root.rglob("*")) if root.is_dir() else [root])]
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    return hashlib.sha256(repr((facts, dataset.describe())).encode()).hexdigest()


def _weights(model: str) -> Finding:
    try:
        path, _ = find_weights(model)
    except UserError as error:
        return Finding(f"model {model}", False, str(error))
    return Finding(f"model {model}", True, str(path))


def _model_key(request: CellRequest) -> str:
    return _key(request, "model", "options")


def _probe_all(requests: Sequence[CellRequest]) -> dict[str, Probe | None]:
    models = _distinct(requests, "model", "options")
    probed = track(models, len(models), "time models")
    return {_model_key(one): probe(one.model, one.options, one.protocol.threads) for one in probed}


def _memory(
    requests: Sequence[CellRequest], costs: dict[str, Probe | None], images: dict[str, int]
) -> Iterator[Finding]:
    free = psutil.virtual_memory().available
    for request in _distinct(requests, "model", "options") if costs else []:
        found = costs[_model_key(request)]
        if found is None:
            yield Finding(f"memory of {request.model}", False, "its probe ended early; free memory or leave it out")
            continue
        most = max(_encoded(cell, images) for cell in requests if _model_key(cell) == _model_key(request))
        needed = found.peak_rss_bytes + most * found.feature_bytes
        detail = f"about {_gib(needed)} with the features of {most} images, {_gib(free)} are free"
        if any(cell.tuner and _model_key(cell) == _model_key(request) for cell in requests):
            detail += "; training takes more, see leaderboards/tuners.md"
        yield Finding(f"memory of {request.model}", needed < free, detail)


def _images(requests: Sequence[CellRequest]) -> dict[str, int]:
    """Test images of each dataset; 0 where they cannot be counted because the dataset is not here."""
    return {_key(request, *_DATASET_FIELDS): _test_size(request) for request in _distinct(requests, *_DATASET_FIELDS)}


def _test_size(request: CellRequest) -> int:
    return request.protocol.n_test or _split_size(request, "test")


def _split_size(request: CellRequest, split: str) -> int:
    """Images of a whole split; 0 where the dataset is not here."""
    try:
        return len(request.open_dataset().load(split, None, 0))
    except UserError:
        return 0


def _encoded(request: CellRequest, images: dict[str, int]) -> int:
    """Images that a cell encodes."""
    searched = request.protocol.n_search if request.selects_on == "search" else 0
    return images[_key(request, *_DATASET_FIELDS)] + searched


def _candidates(request: CellRequest, channels: int) -> int:
    """Maps that the search of a cell scores at most, each on all search images."""
    if request.searched is None:
        return 0
    name, params = request.searched
    pairs, subsets = channels * (channels - 1), 1 << request.protocol.n_pairs
    if name != "swap":
        return channels + subsets
    search = build_search(SwapParams.model_validate(params), request.protocol, request.seed)
    if isinstance(search, GreedySearch):
        return search.budget
    if isinstance(search, ShortlistSearch):
        return search.scored + subsets
    if isinstance(search, RacingSearch):
        # A round keeps one pair in `keep` and scores it on `growth` times as many images: a geometric series.
        share = search.first_images / request.protocol.n_search / (1 - search.growth / search.keep)
        return round(pairs * share) + subsets
    return pairs + subsets


def _seconds(request: CellRequest, found: Probe, images: dict[str, int]) -> float:
    guarded = request.searched is not None and request.searched[1].get("guard", "none") != "none"
    searches = request.protocol.folds if guarded else 1
    passes = _candidates(request, MODELS[request.model].channels) * request.protocol.n_search * searches
    return _encoded(request, images) * found.encode_seconds + passes * (found.pass_seconds or 0.0)


def _fit_seconds(known: Sequence[tuple[CellRequest, Probe]]) -> float:
    """Time of every fit, which a tuner shares with the swap on top of it."""
    fits, sizes = dict[str, float](), dict[str, int]()
    for request, found in known:
        if request.tuner is None:
            continue
        name, params = request.tuner
        images = _key(request, *_DATASET_FIELDS) + params.model_dump_json(include={"n_train", "train_on"})
        sizes[images] = sizes[images] if images in sizes else _train_size(request, params)
        fit = f"{_model_key(request)} {images} {request.seed} {name} {params.model_dump_json()}"
        fits[fit] = params.fit.epochs * sizes[images] * STEP_TO_ENCODING * found.encode_seconds
    return sum(fits.values())


def _train_size(request: CellRequest, params: TunerParams) -> int:
    if params.train_on == "search":
        return request.protocol.n_search
    return params.n_train or _split_size(request, "train")


def _time(requests: Sequence[CellRequest], costs: dict[str, Probe | None], images: dict[str, int]) -> Iterator[Finding]:
    known = [(request, found) for request in requests if (found := costs.get(_model_key(request))) is not None]
    if not known:
        return
    total = sum(_seconds(request, found, images) for request, found in known) + _fit_seconds(known)
    detail = f"at most {total / 3600:.1f} h for {len(known)} of {len(requests)} cells, one at a time"
    yield Finding("time", True, f"{detail}; where n_test or n_train is null, images that are not here count as none")


def _disk(missing: Sequence[str], cache: Path, results: Path) -> Iterator[Finding]:
    needed = sum(checkpoint_of(name).bytes or 0 for name in missing)
    for title, folder, bytes_ in (("weights", weights_folder(), needed), ("cache", cache, 0), ("results", results, 0)):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        detail = f"{folder}: {_gib(free)} free, {_gib(bytes_)} for {len(missing)} checkpoints that are not here"
        yield Finding(f"disk of {title}", bytes_ < free, detail if bytes_ else f"{folder}: {_gib(free)} free")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
