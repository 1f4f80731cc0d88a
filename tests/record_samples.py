"""Synthetic records, sound by construction, for the tests of everything that reads records."""

import numpy as np
import pandas as pd

from redfree.records import schema
from redfree.records.store import counts_path, record_path, write_counts, write_record
from redfree.tasks.segmentation import COUNT_NAMES, METRICS

PIXELS = 128 * 128
IMAGES = 6
METHODS = {"swap-unguarded": ("swap", {"guard": "none"}), "oracle": ("swap", {"guard": "none", "select_on": "test"})}
SEARCHED = ("swap", "swap-unguarded", "oracle", "zero")
ENV = {
    "machine": {"system": "Linux", "arch": "x86_64", "cpu": "Test CPU"},
    "cpu_count": 2,
    "device": "cpu",
    "packages": {"torch": "2.14.1"},
    "threads": 1,
    "git_commit": "0123456789abcdef",
    "git_dirty": False,
}


def make_spec(label="swap", *, seed=0, dataset="procedural/medical", suite="demo", source=None, weights="a" * 64):
    name, params = METHODS.get(label, (label, {}))
    sizes = {"test": IMAGES} | ({"choosing": 4} if label in SEARCHED else {})
    return schema.Spec(
        suite=suite,
        task="segmentation",
        protocol=schema.Protocol(n_search=4, n_test=IMAGES, folds=2, threads=1),
        model=schema.ModelSpec(name="sam_nano", checkpoint_sha256=weights),
        dataset=schema.DatasetSpec(
            name=dataset,
            revision="1",
            source=source or "procedural: drawn by redfree, not photographs",
            split_sizes=sizes,
            split_sha256={name: "b" * 64 for name in sizes},
        ),
        method=schema.MethodSpec(name=name, label=label, params=params),
        seed=seed,
    )


def make_counts(shift=0, seed=0, draws=1):
    """Raw counts (draws, images, 4) where a larger shift hits more of the object."""
    rng = np.random.default_rng(seed)
    true = np.full((draws, IMAGES), 4000)
    hits = rng.integers(1500, 2500, (draws, IMAGES)) + shift
    wrong = rng.integers(200, 900, (draws, IMAGES))
    return np.stack([hits, wrong, true - hits, PIXELS - true - wrong], -1)


def counts_frame(counts):
    draws = len(counts)
    table = pd.DataFrame(counts.reshape(-1, 4), columns=list(COUNT_NAMES))
    table.insert(0, "id", [f"{n:04d}" for n in range(IMAGES)] * draws)
    table.insert(0, "draw", np.repeat(np.arange(draws), IMAGES))
    return table


def make_scores(counts):
    by_image = counts.transpose(1, 0, 2)
    values = [(metric, metric.summarise(by_image)) for metric in METRICS]
    return [
        schema.Score(
            metric=m.name, definition=m.definition, split="test", value=v, n=IMAGES, ci95=(v - 0.0625, v + 0.0625)
        )
        for m, v in values
    ]


def make_result(label, draws=1, accepted=True):
    pairs = [(1, 2), (3, 1)]
    if label == "random-swap":
        return schema.Result(pairs=[], draws=[[(d, 9), (d + 1, 8)] for d in range(draws)])
    if label not in SEARCHED:
        return schema.Result(pairs=[])
    guard = schema.Guard(
        rule="one_standard_error", folds=2, accepted=accepted, gain=0.03, standard_error=0.01, gain_ci95=(0.01, 0.05)
    )
    zero = label == "zero"
    return schema.Result(
        pairs=pairs if accepted and not zero else [],
        zeroed=[4] if zero else [],
        searched_pairs=[] if zero else pairs,
        top=[(4, -1), (2, -1)] if zero else [*pairs, (5, 6)],
        search_score=0.75,
        search_baseline_score=0.5,
        search_best_single_score=0.625,
        guard=guard if label == "swap" else None,
    )


def make_record(label="swap", counts=None, accepted=True, peak=2**28, **spec):
    counts = make_counts() if counts is None else counts
    facts = make_spec(label, **spec)
    searched = label in SEARCHED
    return schema.Record(
        run_id=facts.run_id(),
        created_at="2026-01-01T00:00:00+00:00",
        status="ok",
        spec=facts,
        phases=[
            schema.PhaseRecord(
                name=n, seconds=1.5, peak_rss_bytes=p, peak_allocated_bytes=None, peak_reserved_bytes=None
            )
            for n, p in (("encode", peak), ("evaluate", peak // 2))
        ],
        scores=make_scores(counts),
        cost=schema.Cost(
            trainable_params=schema.TrainableParameters(inserted=0, total=0),
            candidates_scored=12 if searched else 0,
            decoder_passes=1200 if searched else 0,
            scoring_seconds=2.5 + facts.seed if searched else 0.0,
            cache_bytes=1024,
        ),
        result=make_result(label, len(counts), accepted),
        env=ENV,
    )


def make_failed(label="swap", status="failed", error="MemoryError: |no| memory", **spec):
    facts = make_spec(label, **spec)
    now = "2026-01-01T00:00:00+00:00"
    return schema.Record(run_id=facts.run_id(), created_at=now, status=status, error=error, spec=facts, env=ENV)


def save(results, record, counts=None):
    """Writes a record, with raw counts where it has some, and returns its path."""
    path = record_path(results, record.spec)
    if counts is not None:
        file = write_counts(counts_path(path), counts_frame(counts))
        record = record.model_copy(update={"files": {"counts": file}})
    write_record(path, record)
    return path
