import subprocess

import pytest
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from redfree.errors import UserError
from redfree.measure import tuner_cost
from redfree.measure.tuner_cost import (
    TIMED_LARGE,
    TIMED_SMALL,
    StepCost,
    TunerCounts,
    count_parameters,
    measure_step,
    measure_tuners,
    timed_steps,
)
from redfree.models import weights
from redfree.models.promptable import PromptableModel

MIB = 2**20


@pytest.fixture
def shipped(tmp_path, monkeypatch, tiny_model, tiny_sam):
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    save_file(tiny_sam.state_dict(), tmp_path / "tiny.safetensors")


@pytest.fixture
def one_tuner(monkeypatch):
    monkeypatch.setattr(tuner_cost, "TUNERS", {"samed": "samed"})


def ending(monkeypatch, end):
    """Makes every measuring process end as `end()` says: code, output, complaint; gives the list of their arguments."""
    asked = []

    def run(command, **_):
        asked.append(command[1:])
        return subprocess.CompletedProcess(command, *end())

    monkeypatch.setattr(tuner_cost.subprocess, "run", run)
    return asked


@pytest.mark.usefixtures("shipped")
def test_every_step_after_the_first_is_timed(monkeypatch):
    monkeypatch.setattr(tuner_cost, "_fit", lambda *_: [10.0, 11.0, 14.0])
    assert measure_step("tiny", "samed", 1).seconds == 2


@pytest.mark.usefixtures("shipped")
def test_a_fit_of_the_real_loop_is_measured():
    steps = []
    hook = register_optimizer_step_post_hook(lambda *call: steps.append(call))
    cost = measure_step("tiny", "samed", 1)
    hook.remove()
    assert len(steps) == 1 + TIMED_SMALL
    assert 0 < cost.seconds < 10
    assert cost.peak_rss_bytes > 100 * MIB


@pytest.mark.usefixtures("shipped")
def test_of_a_swap_encoding_alone_is_measured(monkeypatch):
    steps, images, encode = [], [], PromptableModel.encode
    monkeypatch.setattr(PromptableModel, "encode", lambda self, given: images.append(len(given)) or encode(self, given))
    hook = register_optimizer_step_post_hook(lambda *call: steps.append(call))
    cost = measure_step("tiny", "swap", 1)
    hook.remove()
    assert (steps, images) == ([], [1] * (1 + TIMED_SMALL))
    assert cost.seconds > 0


@pytest.mark.usefixtures("shipped", "one_tuner")
def test_methods_take_turns_and_are_compared_within_a_round(monkeypatch):
    says = iter([(1.0, 100), (3.0, 300), (2.0, 120), (4.0, 280)])
    asked = ending(monkeypatch, lambda: (0, '{{"seconds": {}, "peak_rss_bytes": {}}}\n'.format(*next(says)), ""))
    swap, samed = measure_tuners("tiny", 2, 2)
    process = ["-m", "redfree.measure.tuner_cost", "tiny"]
    assert asked == [[*process, "swap", "2"], [*process, "samed", "2"]] * 2
    assert (swap.counts, swap.ratios) == (TunerCounts("swap", 0, 0, 0), (1.0, 1.0))
    assert (samed.model, samed.threads, samed.status) == ("tiny", 2, "ok")
    assert samed.turns == (StepCost(3.0, 300), StepCost(4.0, 280))
    assert samed.ratios == (3.0, 2.0)
    assert (samed.timed, timed_steps("sam_vit_b")) == (TIMED_SMALL, TIMED_LARGE)
    assert samed.counts == count_parameters("tiny", "samed")


@pytest.mark.usefixtures("shipped", "one_tuner")
@pytest.mark.parametrize("end", [(-9, ""), (1, "RuntimeError: can't allocate memory: 9 bytes")], ids=["kill", "torch"])
def test_a_process_without_memory_is_a_row_and_is_not_tried_again(monkeypatch, end):
    encoded = (0, '{"seconds": 1.0, "peak_rss_bytes": 300}\n', "")
    ends = iter([encoded, (end[0], "", end[1]), encoded])
    asked = ending(monkeypatch, lambda: next(ends))
    _, samed = measure_tuners("tiny", 1, 2)
    assert (samed.status, samed.turns, samed.ratios) == ("out of memory", (), ())
    assert samed.counts.inserted > 0
    assert [arguments[3] for arguments in asked] == ["swap", "samed", "swap"]


@pytest.mark.usefixtures("shipped", "one_tuner")
def test_a_process_that_the_system_kills_is_seen(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\n[ "$4" = swap ] || kill -9 $$\necho \'{"seconds": 1.0, "peak_rss_bytes": 300}\'\n')
    script.chmod(0o755)
    monkeypatch.setattr(tuner_cost.sys, "executable", str(script))
    assert [row.status for row in measure_tuners("tiny", 1, 1)] == ["ok", "out of memory"]


@pytest.mark.usefixtures("shipped", "one_tuner")
@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            (1, "Traceback:\n  a line\nValueError: wrong\n"),
            "tiny, swap: the measuring process failed: ValueError: wrong",
        ),
        ((-15, ""), "ended with -15"),
        ((-9, ""), "tiny: encoding one image ran out of memory"),
    ],
)
def test_without_encoding_there_is_nothing_to_compare_with(monkeypatch, end, message):
    ending(monkeypatch, lambda: (end[0], "", end[1]))
    with pytest.raises(ChildProcessError, match=message):
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
