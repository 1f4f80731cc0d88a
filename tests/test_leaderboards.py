"""The records and leaderboards of this repository."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from redfree.records.invariants import violations
from redfree.records.store import find_records, read_counts, read_record
from redfree.report.table import load_frame, write_leaderboard

ROOT = Path(__file__).parents[1]
RESULTS, LEADERBOARDS, BENCHMARKS = ROOT / "results", ROOT / "leaderboards", ROOT / "benchmarks"
SUITES = sorted(folder.name for folder in RESULTS.iterdir() if folder.is_dir()) if RESULTS.is_dir() else []


@pytest.mark.parametrize("suite", SUITES)
def test_every_record_holds_its_invariants(suite):
    broken = {}
    for path in find_records(RESULTS, suite):
        record = read_record(path)
        counts = read_counts(path, record.files["counts"]) if record.status == "ok" else pd.DataFrame()
        found = violations(record, counts)
        if found:
            broken[path.name] = found
    assert broken == {}


@pytest.mark.parametrize("suite", SUITES)
def test_the_leaderboard_is_not_stale(suite, tmp_path):
    suites = (yaml.safe_load(path.read_text("utf-8")) for path in sorted(BENCHMARKS.glob("*.yaml")))
    title = next(found["title"] for found in suites if found.get("suite") == suite)
    for made in write_leaderboard(load_frame(RESULTS, suite), suite, title, tmp_path):
        kept = LEADERBOARDS / made.name
        assert kept.is_file(), f"leaderboards/{made.name} is missing; run `redfree table {suite}`"
        assert kept.read_bytes() == made.read_bytes(), f"leaderboards/{made.name} is stale; run `redfree table {suite}`"
