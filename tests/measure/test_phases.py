import threading
import time

import numpy as np
import pytest

from redfree.measure import phases
from redfree.measure.phases import Phase, Stopwatch

MIB = 2**20


@pytest.fixture(params=["kernel", "sampled"])
def stopwatch(request, monkeypatch):
    if request.param == "sampled":

        def refuse(*_):
            raise OSError

        monkeypatch.setattr(phases.Path, "write_text", refuse)
    return Stopwatch()


def test_a_large_allocation_shows_in_its_own_phase_only(stopwatch):
    with stopwatch.phase("load"):
        pass
    with stopwatch.phase("search"):
        block = np.ones(200 * MIB, np.uint8)
        time.sleep(0.1)
        del block
    with stopwatch.phase("evaluate"):
        time.sleep(0.05)
    before, large, after = stopwatch.phases
    assert [phase.name for phase in stopwatch.phases] == ["load", "search", "evaluate"]
    assert large.peak_rss_bytes - before.peak_rss_bytes >= 195 * MIB
    assert large.peak_rss_bytes - after.peak_rss_bytes >= 150 * MIB
    assert before.peak_rss_bytes > 10 * MIB


def test_seconds_are_wall_time(stopwatch):
    with stopwatch.phase("load"):
        time.sleep(0.2)
    assert 0.2 <= stopwatch.phases[0].seconds < 2


def test_nothing_is_kept_where_the_block_raises(stopwatch):
    threads = threading.active_count()
    with pytest.raises(KeyError), stopwatch.phase("load"):
        raise KeyError
    assert stopwatch.phases == []
    deadline = time.monotonic() + 2
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads, "a sampling thread is left behind"
    with stopwatch.phase("encode"):
        pass
    assert [phase.name for phase in stopwatch.phases] == ["encode"]


def test_peaks_of_other_processes_that_worked_for_the_block_count(stopwatch):
    with stopwatch.phase("fit") as elsewhere:
        elsewhere.append(Phase("fit", 5.0, 2**50, 300, None))
        elsewhere.append(Phase("fit", 9.0, 2**20, 200, 400))
    (phase,) = stopwatch.phases
    assert phase.seconds < 5
    assert (phase.peak_rss_bytes, phase.peak_allocated_bytes, phase.peak_reserved_bytes) == (2**50, 300, 400)
