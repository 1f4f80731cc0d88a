import subprocess

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import SGD
from torch.optim.optimizer import register_optimizer_step_post_hook

from redfree.errors import UserError
from redfree.measure import tuner_cost
from redfree.measure.tuner_cost import StepCost, TunerCounts, count_parameters, measure_step, measure_tuners
from redfree.models import weights

MIB = 2**20


@pytest.fixture
def shipped(tmp_path, monkeypatch, tiny_model, tiny_sam):
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    save_file(tiny_sam.state_dict(), tmp_path / "tiny.safetensors")


@pytest.fixture
def one_tuner(monkeypatch):
    monkeypatch.setattr(tuner_cost, "TUNERS", {"samed": "samed"})


def ending(monkeypatch, returncode, stdout="", stderr=""):
    """Makes every measuring process end in one way; gives the list of their arguments."""
    asked = []

    def run(command, **_):
        asked.append(command[1:])
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)

    monkeypatch.setattr(tuner_cost.subprocess, "run", run)
    return asked


def test_every_step_after_the_first_is_timed(monkeypatch):
    ends, asked = iter([10.0, 11.0, 14.0, 16.0]), []

    def steps(*call):
        asked.append(call)
        optimiser = SGD([nn.Parameter(torch.zeros(1))], 0.1)
        with monkeypatch.context() as patched:
            patched.setattr(tuner_cost.time, "perf_counter", lambda: next(ends))
            for _ in range(4):
                optimiser.step()

    monkeypatch.setattr(tuner_cost, "_fit", steps)
    assert measure_step("tiny", "samed", 1, 3).seconds == 2
    assert asked == [("tiny", "samed", 4)]


@pytest.mark.usefixtures("shipped")
def test_a_fit_of_the_real_loop_is_measured():
    steps = []
    hook = register_optimizer_step_post_hook(lambda *call: steps.append(call))
    cost = measure_step("tiny", "samed", 1, 2)
    hook.remove()
    assert len(steps) == 3
    assert 0 < cost.seconds < 10
    assert cost.peak_rss_bytes > 100 * MIB


@pytest.mark.usefixtures("shipped", "one_tuner")
def test_a_row_holds_what_the_process_said(monkeypatch):
    asked = ending(monkeypatch, 0, '{"seconds": 1.5, "peak_rss_bytes": 300}\n')
    (row,) = measure_tuners("tiny", 2, 3)
    assert asked == [["-m", "redfree.measure.tuner_cost", "tiny", "samed", "2", "3"]]
    assert (row.model, row.threads, row.status, row.step) == ("tiny", 2, "ok", StepCost(1.5, 300))
    assert row.counts == count_parameters("tiny", "samed")


@pytest.mark.usefixtures("shipped", "one_tuner")
@pytest.mark.parametrize("end", ["kill -9 $$", 'echo "RuntimeError: can\'t allocate memory: 9 bytes" >&2; exit 1'])
def test_a_process_without_memory_is_a_row(monkeypatch, tmp_path, end):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{end}\n")
    script.chmod(0o755)
    monkeypatch.setattr(tuner_cost.sys, "executable", str(script))
    (row,) = measure_tuners("tiny", 1, 1)
    assert (row.status, row.step) == ("out of memory", None)
    assert row.counts.inserted > 0


@pytest.mark.usefixtures("shipped", "one_tuner")
def test_a_process_that_fails_otherwise_is_named(monkeypatch):
    ending(monkeypatch, 1, "", "Traceback:\n  a line\nValueError: wrong\n")
    with pytest.raises(ChildProcessError, match="tiny, samed: the measuring process failed: ValueError: wrong"):
        measure_tuners("tiny", 1, 1)
    ending(monkeypatch, -15)
    with pytest.raises(ChildProcessError, match="ended with -15"):
        measure_tuners("tiny", 1, 1)


@pytest.mark.parametrize(
    ("model", "tuner", "inserted", "declared", "moved"),
    [
        ("sam_vit_b", "samed", 147_456, 4_212_016, 147_456),
        ("sam_vit_b", "decoder-only", 0, 4_058_340, 3_506_304),
        ("sam_vit_b", "medsam", 0, 93_729_252, 93_729_252 - 419_424 - 132_612),
    ],
)
def test_counts_are_those_of_the_methods(model, tuner, inserted, declared, moved):
    assert count_parameters(model, tuner) == TunerCounts(tuner, inserted, declared, moved)


def test_sam_2_is_counted_too():
    assert count_parameters("sam2_nano", "samed").inserted > 0


def test_an_unknown_tuner_is_refused():
    with pytest.raises(UserError, match="unknown tuner 'samd'; did you mean 'samed'"):
        count_parameters("sam_nano", "samd")


def test_the_object_is_an_ellipse_under_the_prompt():
    sample = tuner_cost._sample()
    assert sample.image.shape == (1024, 1024, 3)
    assert sample.mask.sum() == pytest.approx(3.14159 * 256 * 1024 / 6, rel=0.01)
    ((x, y),) = sample.prompt.points
    assert sample.mask[int(y), int(x)]
