import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from tinyworld import make_evaluator, make_model, make_sample

from redfree.channels import ChannelMap
from redfree.search import evaluate
from redfree.search.exhaustive import ExhaustiveSearch
from redfree.search.log import SearchLog
from redfree.search.scores import index_matrix


class Killed(BaseException):
    pass


class CountingModel:
    """A model that counts the maps it decodes, by image, and dies when its allowance is used up."""

    def __init__(self, model, allowance=10**9):
        self._model, self.allowance, self.decoded = model, allowance, 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def map_decoder(self, features, tokens):
        return self._counted(self._model.map_decoder(features, tokens))

    def swap_decoder(self, features, tokens):
        return self._counted(self._model.swap_decoder(features, tokens))

    def _counted(self, decode):
        def counted(index):
            if self.decoded + len(index) > self.allowance:
                raise Killed
            self.decoded += len(index)
            return decode(index)

        return counted


@pytest.fixture
def samples():
    return [make_sample(seed) for seed in range(3)]


SEARCH = ExhaustiveSearch(3)
IDENTITY, CANDIDATES, SUBSETS = 3, 3 * 16 * 15, 3 * (2**3 - 1 - 3)
TOTAL = IDENTITY + CANDIDATES + SUBSETS


# The allowance ends within: the identity, the first image's candidates, the second's, the subsets.
@pytest.mark.parametrize(
    "case",
    [
        (1, 2, 2),
        (1, 100, IDENTITY),
        (1, IDENTITY + 240 + 100, IDENTITY + 240),
        (1, IDENTITY + CANDIDATES + 7, IDENTITY + CANDIDATES + 4),
        (4096, 2, 0),
        (4096, 100, IDENTITY),
        (4096, IDENTITY + 240 + 100, IDENTITY),
        (4096, IDENTITY + CANDIDATES + 7, IDENTITY + CANDIDATES),
        (2 * 240, IDENTITY + 2 * 240 + 100, IDENTITY + 2 * 240),
    ],
)
def test_an_interrupted_search_goes_on_where_it_was(tiny_sam, samples, tmp_path, monkeypatch, case):
    unit_passes, allowance, kept = case
    monkeypatch.setattr(evaluate, "_UNIT_PASSES", unit_passes)
    model = make_model(tiny_sam)
    expected = SEARCH(make_evaluator(model, samples), range(3))
    first, second, third = (CountingModel(model, allowance), CountingModel(model), CountingModel(model))
    with pytest.raises(Killed):
        SEARCH(make_evaluator(first, samples, tmp_path), range(3))
    resumed = SEARCH(make_evaluator(second, samples, tmp_path), range(3))
    assert second.decoded == TOTAL - kept
    again = SEARCH(make_evaluator(third, samples, tmp_path), range(3))
    assert third.decoded == 0
    for found in (resumed, again):
        assert (found.channel_map, found.top) == (expected.channel_map, expected.top)
        assert (found.search_score, found.baseline_score) == (expected.search_score, expected.baseline_score)
    assert [step.seconds for step in again.trace] == [step.seconds for step in resumed.trace]
    assert min(step.seconds for step in again.trace) > 0


def test_a_search_without_some_images_shares_the_candidates_that_fill_a_unit(tiny_sam, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_UNIT_PASSES", 256)
    model = CountingModel(make_model(tiny_sam))
    evaluator = make_evaluator(model, samples, tmp_path)
    SEARCH(evaluator, range(3))
    before = model.decoded
    assert before == TOTAL
    SEARCH(evaluator, [0, 2])
    assert model.decoded - before <= 2 * (1 + 4), "only the identity and subsets may be new"


def decoded_anew(folder, model, sample, batch=64, maps=((3, 4),), **options):
    counting = CountingModel(model)
    evaluator = make_evaluator(counting, [sample], folder, batch, **options)
    evaluator.score(index_matrix([ChannelMap(16, maps)]))
    return counting.decoded


def test_different_questions_never_share(tiny_sam, samples, tmp_path):
    model, sample = make_model(tiny_sam), samples[0]
    assert decoded_anew(tmp_path, model, sample) == 1
    assert decoded_anew(tmp_path, model, sample) == 0
    assert decoded_anew(tmp_path, make_model(tiny_sam, "1" * 64), sample) == 1
    assert decoded_anew(tmp_path, model, samples[1]) == 1
    assert decoded_anew(tmp_path, model, make_sample(0, labels=(1, 0))) == 1
    assert decoded_anew(tmp_path, model, sample, batch=32) == 1
    assert decoded_anew(tmp_path, model, sample, decoder="shared") == 1
    assert decoded_anew(tmp_path, model, sample, dtype="bfloat16") == 1
    assert decoded_anew(tmp_path, model, sample, maps=((3, 5),)) == 1
    torch.set_num_threads(2)
    try:
        assert decoded_anew(tmp_path, model, sample) == 1
    finally:
        torch.set_num_threads(1)
    assert decoded_anew(tmp_path, model, sample) == 0


def test_no_folder_keeps_nothing(tiny_sam, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [decoded_anew(None, make_model(tiny_sam), samples[0]) for _ in range(2)] == [1, 1]
    assert list(tmp_path.iterdir()) == []


def test_a_computation_that_raises_leaves_nothing(tmp_path):
    def fail():
        raise Killed

    log = SearchLog(tmp_path)
    with pytest.raises(Killed):
        log.unit(("key",), fail)
    assert not list(tmp_path.rglob("*.npz"))
    scores, seconds = log.unit(("key",), lambda: (np.array([0.5]), 2.0))
    assert (scores.tolist(), seconds) == ([0.5], 2.0)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".npz"]


def test_threads_that_share_a_log_compute_once(tmp_path):
    computed, seen = [], []

    def compute():
        computed.append(1)
        time.sleep(0.2)
        return np.array([0.25]), 1.0

    threads = [
        threading.Thread(target=lambda: seen.append(SearchLog(tmp_path).unit(("key",), compute)[0].tolist()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert computed == [1]
    assert seen == [[0.25]] * 6


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from redfree.search.log import SearchLog
from redfree.search.scores import index_matrix

def compute():
    with open(sys.argv[2], "a") as file:
        file.write("x")
    time.sleep(1)
    return np.array([0.125]), 1.0

print("ready", flush=True)
sys.stdin.readline()
print(SearchLog(Path(sys.argv[1])).unit(("key",), compute)[0].tolist())
"""


def test_processes_that_share_a_log_compute_once(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path / "log"), str(tmp_path / "computed")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.communicate(timeout=30)[0] for process in processes] == ["[0.125]\n"] * 2
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "computed").read_text() == "x"
