"""Whether a suite can run here: data, weights, memory and disk, and how long it would take at most."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from redfree.bench.catalogue import SwapParams
from redfree.bench.cell import CellRequest
from redfree.bench.methods import build_search
from redfree.data.registry import SOURCES, DatasetUse, root_of
from redfree.data.schema import DatasetAdapter
from redfree.errors import UserError
from redfree.files import write_text
from redfree.measure.probe import Probe, probe
from redfree.models.catalogue import MODELS
from redfree.models.checkpoints import checkpoint_of
from redfree.models.weights import find_weights
from redfree.progress import track
from redfree.search.greedy import GreedySearch
from redfree.search.racing import RacingSearch
from redfree.search.shortlist import ShortlistSearch

# Defects of one dataset that are listed before they are only counted.
_LISTED = 5


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
    return [*findings, *_memory(requests, costs), *_time(requests, costs), *_disk(missing, cache, results)]


def _distinct(requests: Sequence[CellRequest], *fields: str) -> list[CellRequest]:
    """The first request of each combination of some fields."""
    first: dict[str, CellRequest] = {}
    for request in requests:
        first.setdefault(request.model_dump_json(include=set(fields)), request)
    return list(first.values())


def _datasets(requests: Sequence[CellRequest], cache: Path, verify: bool) -> Iterator[Finding]:
    for request in _distinct(requests, "dataset", "dataset_options", "dataset_root", "protocol"):
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
    """A hash of the names, sizes and times of all files of a dataset, and of how it is read."""
    root = root_of(use)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    about = dataset.describe()
    return hashlib.sha256(repr((facts, about["revision"], about["prompt_rule"], about["options"])).encode()).hexdigest()


def _weights(model: str) -> Finding:
    try:
        path, _ = find_weights(model)
    except UserError as error:
        return Finding(f"model {model}", False, str(error))
    return Finding(f"model {model}", True, str(path))


def _model_key(request: CellRequest) -> str:
    return request.model_dump_json(include={"model", "options"})


def _probe_all(requests: Sequence[CellRequest]) -> dict[str, Probe | None]:
    models = _distinct(requests, "model", "options")
    probed = track(models, len(models), "time models")
    return {_model_key(one): probe(one.model, one.options, one.protocol.threads) for one in probed}


def _memory(requests: Sequence[CellRequest], costs: dict[str, Probe | None]) -> Iterator[Finding]:
    free = psutil.virtual_memory().available
    for request in _distinct(requests, "model", "options") if costs else []:
        found = costs[_model_key(request)]
        if found is None:
            yield Finding(f"memory of {request.model}", False, "its probe ended early; free memory or leave it out")
            continue
        images = max(_images(cell) for cell in requests if _model_key(cell) == _model_key(request))
        needed = found.peak_rss_bytes + images * found.feature_bytes
        detail = f"about {_gib(needed)} with the features of {images} images, {_gib(free)} are free"
        yield Finding(f"memory of {request.model}", needed < free, detail)


def _images(request: CellRequest) -> int:
    """Images that a cell encodes; 0 for what cannot be counted because the dataset is not here."""
    searches = request.selects_on == "search"
    try:
        test = request.protocol.n_test or _test_size(request)
    except UserError:
        test = 0
    return test + (request.protocol.n_search if searches else 0)


def _test_size(request: CellRequest) -> int:
    return len(request.open_dataset().load("test", None, 0))


def _candidates(request: CellRequest, channels: int) -> int:
    """Maps that the search of a cell scores at most, each on all search images."""
    if request.selects_on is None:
        return 0
    pairs, subsets = channels * (channels - 1), 1 << request.protocol.n_pairs
    if request.method.name != "swap":
        return channels + subsets
    search = build_search(SwapParams.model_validate(request.method.params), request.protocol, request.seed)
    if isinstance(search, GreedySearch):
        return search.budget
    if isinstance(search, ShortlistSearch):
        return search.scored + subsets
    if isinstance(search, RacingSearch):
        # A round keeps one pair in `keep` and scores it on `growth` times as many images: a geometric series.
        share = search.first_images / request.protocol.n_search / (1 - search.growth / search.keep)
        return round(pairs * share) + subsets
    return pairs + subsets


def _seconds(request: CellRequest, found: Probe) -> float:
    guarded = request.method.params.get("guard", "none") != "none"
    searches = request.protocol.folds if guarded else 1
    passes = _candidates(request, MODELS[request.model].channels) * request.protocol.n_search * searches
    return _images(request) * found.encode_seconds + passes * (found.pass_seconds or 0.0)


def _time(requests: Sequence[CellRequest], costs: dict[str, Probe | None]) -> Iterator[Finding]:
    known = [(request, found) for request in requests if (found := costs.get(_model_key(request))) is not None]
    if not known:
        return
    total = sum(_seconds(request, found) for request, found in known)
    detail = f"at most {total / 3600:.1f} h for {len(known)} of {len(requests)} cells, one at a time"
    yield Finding("time", True, f"{detail}; images of missing datasets count as none")


def _disk(missing: Sequence[str], cache: Path, results: Path) -> Iterator[Finding]:
    needed = sum(checkpoint_of(name).bytes or 0 for name in missing)
    for title, folder, bytes_ in (("cache", cache, needed), ("results", results, 0)):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        detail = f"{folder}: {_gib(free)} free, {_gib(bytes_)} for {len(missing)} checkpoints that are not here"
        yield Finding(f"disk of {title}", bytes_ < free, detail if bytes_ else f"{folder}: {_gib(free)} free")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
