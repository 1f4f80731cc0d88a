import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from redfree.bench.catalogue import METHOD_PARAMS
from redfree.bench.request import CellRequest
from redfree.bench.run import jobs_of, run
from redfree.errors import UserError
from redfree.records.schema import MethodSpec, Protocol, Record
from redfree.records.store import counts_path, read_counts, read_record, write_record


def request(name="baseline", label=None, n_test=2, n_search=2, **params):
    return CellRequest(
        suite="trial",
        model="sam_nano",
        dataset="procedural/camouflaged",
        seed=0,
        method=MethodSpec(name=name, label=label or name, params=METHOD_PARAMS[name](**params).model_dump()),
        protocol=Protocol(n_search=n_search, n_test=n_test, n_pairs=2, folds=2, threads=1),
    )


@pytest.fixture
def launch(tmp_path):
    """Runs jobs, telling outcomes as they come."""

    def launch(jobs, policy="only-missing"):
        told = []
        outcomes = run(jobs, tmp_path / "results", tmp_path / "cache", policy, told.append)
        assert told == outcomes
        return [outcome.status for outcome in outcomes], outcomes

    return launch


@pytest.fixture
def jobs(tmp_path):
    return jobs_of([request(label=label) for label in ("first", "second")], tmp_path / "results")


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Replaces the worker's interpreter by a shell script, which is given: -m MODULE RECORD CACHE."""

    def worker(script):
        path = tmp_path / "worker.sh"
        path.write_text(f"#!/bin/sh\nread request\nread run_id\necho x >> {tmp_path}/started\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return worker


def test_a_cell_that_fails_leaves_a_record_and_the_others_go_on(launch, tmp_path):
    first, good = jobs_of([request(label="bad"), request(label="good")], tmp_path / "results")
    bad = replace(first, spec=first.spec.model_copy(update={"seed": 99}))
    statuses, outcomes = launch([bad, good])
    assert statuses == ["failed", "measured"]
    record = read_record(bad.path)
    assert (record.status, record.run_id, record.scores) == ("failed", bad.spec.run_id(), [])
    assert record.error == outcomes[0].error
    assert f"planned as {bad.spec.run_id()} and measured as {first.spec.run_id()}" in record.error
    measured = read_record(good.path)
    assert (measured.status, measured.run_id, measured.spec) == ("ok", good.spec.run_id(), good.spec)
    assert len(read_counts(good.path, measured.files["counts"])) == 2
    assert measured.env["threads"] == 1
    assert counts_path(good.path).is_file()
    assert launch([bad, good], "never")[0] == ["skipped", "kept"]


def mark_done(job, status="ok"):
    """Leaves a record of a job as a worker would."""
    record = {"run_id": job.spec.run_id(), "created_at": "now", "status": status, "spec": job.spec, "env": {}}

    write_record(job.path, Record.model_validate(record))


@pytest.mark.parametrize(
    "case",
    [
        ("only-missing", "ok", ["kept", "measured"]),
        ("only-missing", "failed", ["measured", "measured"]),
        ("only-missing", "oom", ["measured", "measured"]),
        ("always", "ok", ["measured", "measured"]),
        ("never", "ok", ["kept", "skipped"]),
        ("never", "failed", ["skipped", "skipped"]),
    ],
)
def test_policies(launch, jobs, worker, tmp_path, case):
    policy, before, statuses = case
    worker("exit 0")
    mark_done(jobs[0], before)
    assert launch(jobs, policy)[0] == statuses
    started = (tmp_path / "started").read_text().count("x") if (tmp_path / "started").exists() else 0
    assert started == statuses.count("measured")


@pytest.mark.parametrize(
    "case",
    [
        ("kill -9 $$", "oom", "process ended with code -9"),
        ("echo 'RuntimeError: CUDA out of memory' >&2; exit 1", "oom", "RuntimeError: CUDA out of memory"),
        ("echo trace >&2; echo 'MemoryError' >&2; exit 1", "oom", "MemoryError"),
        ("echo Traceback >&2; echo 'ValueError: no' >&2; exit 1", "failed", "ValueError: no"),
        ("exit 3", "failed", "process ended with code 3"),
        ("kill -15 $$", "failed", "process ended with code -15"),
    ],
)
def test_how_a_worker_ended_becomes_the_status(launch, jobs, worker, case):
    script, status, error = case
    worker(script)
    statuses, outcomes = launch(jobs)
    assert statuses == [status, status]
    for job, outcome in zip(jobs, outcomes, strict=True):
        record = read_record(job.path)
        assert (record.status, record.error, outcome.error) == (status, error, error)
        assert not job.done


def test_a_worker_that_ends_before_it_reads_does_not_stop_the_others(launch, jobs, tmp_path, monkeypatch):
    script = tmp_path / "gone.sh"
    script.write_text("#!/bin/sh\nexec 0<&-\nexit 7\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    plain = subprocess.Popen

    def slow(*args, **kwargs):
        process = plain(*args, **kwargs)
        if kwargs.get("stdin") is subprocess.PIPE:
            time.sleep(0.3)
        return process

    monkeypatch.setattr(subprocess, "Popen", slow)
    assert launch(jobs)[0] == ["failed", "failed"]
    assert read_record(jobs[0].path).error == "process ended with code 7"


def test_records_lie_under_suite_model_dataset_and_label(jobs, tmp_path):
    folder = tmp_path / "results/trial/sam_nano/procedural-camouflaged/first"
    assert jobs[0].path == folder / f"{jobs[0].spec.run_id()}.json"


def test_results_that_cannot_be_written(jobs, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        run(jobs, tmp_path / "results", tmp_path / "cache", "always", print)


DRIVER = """
import sys
from pathlib import Path
from redfree.bench.request import CellRequest
from redfree.bench.run import jobs_of, run

results = Path(sys.argv[1])
run(jobs_of([CellRequest.model_validate_json(sys.argv[2])], results), results, Path(sys.argv[3]), "always", print)
"""


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain")


def is_worker(process):
    """Whether a child measures a cell; others, such as git, may end while they are looked at."""
    try:
        return "redfree.bench.worker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture
def running(tmp_path):
    """A run in a process of its own, whose only worker is in the middle of a search: (parent, worker)."""
    cell = request("swap", n_search=20, guard="none")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "results"), cell.model_dump_json(), str(tmp_path / "cache")]
    parent = psutil.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    worker = None
    try:
        (worker,) = wait_for(lambda: list(filter(is_worker, parent.children())), 60)
        wait_for(lambda: list((tmp_path / "cache").rglob("*.npz")), 60)
        yield parent, worker
    finally:
        for process in filter(None, (parent, worker)):
            if process.is_running():
                process.kill()
        parent.wait()


def test_a_worker_ends_with_its_parent(running, tmp_path):
    parent, worker = running
    assert worker.is_running()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 5)
    assert not list((tmp_path / "results").rglob("*.json")), "a killed cell leaves no record"


def test_a_killed_worker_becomes_a_record(running, tmp_path):
    parent, worker = running
    worker.kill()
    assert parent.wait(30) == 0
    (path,) = Path(tmp_path / "results").rglob("*.json")
    assert (read_record(path).status, read_record(path).error) == ("oom", "process ended with code -9")


def test_parallel_runs_every_cell_once_and_keeps_the_order_of_a_group(worker, tmp_path):
    requests = [request(label=label).model_copy(update={"seed": seed}) for seed in (0, 1) for label in ("a", "b")]
    jobs = jobs_of(requests, tmp_path / "results")
    worker("sleep 0.2; exit 0")
    outcomes = run(jobs, tmp_path / "results", tmp_path / "cache", "only-missing", lambda _: None, parallel=2)
    assert sorted(o.job.request.title for o in outcomes) == sorted(job.request.title for job in jobs)
    assert (tmp_path / "started").read_text().count("x") == 4
    for seed in (0, 1):
        labels = [o.job.request.method.label for o in outcomes if o.job.request.seed == seed]
        assert labels == ["a", "b"]


def test_an_interrupted_suite_stops_its_cells_and_leaves_no_record(worker, jobs, tmp_path, monkeypatch):
    worker("exec sleep 60")

    def interrupted(_items, _total, _description):
        time.sleep(0.5)
        raise KeyboardInterrupt

    start = time.monotonic()
    monkeypatch.setattr("redfree.bench.run.track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(jobs, tmp_path / "results", tmp_path / "cache", "only-missing", lambda _: None)
    assert time.monotonic() - start < 30
    assert not list((tmp_path / "results").rglob("*.json"))
