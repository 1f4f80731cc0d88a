"""A cell whose tuner is fitted on several devices, here processes on the CPU, from the suite to the record."""

import json
import subprocess
import sys

import pytest

from redfree.records.invariants import violations
from redfree.records.store import read_counts, read_record

SUITE = """
suite: trial
title: Trial
task: segmentation
models: [sam_nano]
datasets: [procedural/camouflaged]
methods:
  - {name: samed, label: one, params: {n_train: 4, fit: {epochs: 2, batch: 2, learning_rate: 0.001}}}
  - {name: samed, label: two, params: {n_train: 4, fit: {epochs: 2, batch: 2, learning_rate: 0.001, devices: 2}}}
seeds: [0]
protocol: {n_search: 4, n_test: 3, n_pairs: 2, folds: 2, threads: 1}
"""


def test_two_processes_leave_the_record_that_one_leaves(tmp_path):
    suite = tmp_path / "trial.yaml"
    suite.write_text(SUITE)
    command = [sys.executable, "-c", "from redfree.cli import main; main()", "run", suite]
    folders = ["--results", tmp_path / "results", "--cache", tmp_path / "cache"]
    subprocess.run([*command, *folders], check=True, capture_output=True)
    records = {}
    for path in (tmp_path / "results").rglob("*.json"):
        record = read_record(path)
        assert violations(record, read_counts(path, record.files["counts"])) == []
        records[record.spec.method.label] = record
    one, two = records["one"], records["two"]
    assert (one.status, two.status) == ("ok", "ok")
    assert two.result.fit.losses == pytest.approx(one.result.fit.losses, abs=1e-5)
    assert two.result.fit.steps == one.result.fit.steps
    assert two.scores[0].value == pytest.approx(one.scores[0].value, abs=1e-3)
    assert two.cost.trainable_params == one.cost.trainable_params
    assert "devices" not in one.spec.method.params["fit"], "ids from before there were devices hold"
    assert two.spec.method.params["fit"]["devices"] == 2
    assert len(list((tmp_path / "cache" / "tuners").glob("*.safetensors"))) == 2
    json.dumps(two.model_dump(mode="json"), allow_nan=False)
