import os

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState, is_initialized
from fitworld import DROPS, Subject, close, make_samples, quick

from redfree.errors import UserError
from redfree.tuners.acceleration import accelerated
from redfree.tuners.fit_options import FitOptions
from redfree.validation import validate


def test_bfloat16_trains_on_the_cpu_and_differs(tiny_sam):
    whole, half = Subject(tiny_sam, "medsam"), Subject(tiny_sam, "medsam")
    one = whole.fit(make_samples(), quick())
    other = half.fit(make_samples(), quick(mixed_precision="bf16"))
    assert other.losses[-1] < other.losses[0]
    assert other.losses == pytest.approx(one.losses, abs=0.02)
    assert other.losses != one.losses
    assert {value.dtype for value in half.model.module.parameters()} == {torch.float32}


def test_float16_is_refused_on_the_cpu(tiny_sam):
    with pytest.raises(
        UserError, match=r"^mixed_precision: fp16 is not for the CPU, where the model is; choose bf16 or no$"
    ):
        Subject(tiny_sam).fit(make_samples(), quick(mixed_precision="fp16"))


def test_a_bare_no_in_yaml_is_no_mixed_precision():
    assert validate(FitOptions, {"mixed_precision": False}, "fit").mixed_precision == "no"
    with pytest.raises(UserError, match="mixed_precision"):
        validate(FitOptions, {"mixed_precision": True}, "fit")


def test_several_devices_want_several_processes(tiny_sam):
    message = r"^devices: 2, but the number of processes is 1; start with: accelerate launch --num_processes 2$"
    with pytest.raises(UserError, match=message):
        Subject(tiny_sam).fit(make_samples(), quick(devices=2))
    assert not is_initialized(), "the next fit may be on one"


def test_fits_leave_neither_the_process_nor_the_model_changed(tiny_sam):
    subject, environment = Subject(tiny_sam), dict(os.environ)
    forwards = {name: part.forward for name, part in subject.model.module.named_modules()}
    for precision in ("bf16", "no", "bf16"):
        subject.fit(make_samples(2), quick(epochs=1, mixed_precision=precision))
    assert not is_initialized()
    assert {name: part.forward for name, part in subject.model.module.named_modules()} == forwards
    assert dict(os.environ) == environment


def test_an_accelerator_of_the_callers_stays(tiny_sam):
    try:
        mine = Accelerator(cpu=True)
        with accelerated(Subject(tiny_sam).model, FitOptions()) as ours:
            assert ours.num_processes == 1
        assert is_initialized()
        assert mine.mixed_precision == "no"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("tuner", [{"name": "medsam"}, {**DROPS, "flavour": "lora"}], ids=["medsam", "sam-cobot"])
def test_two_processes_give_what_one_gives(tiny_sam, tmp_path, tuner):
    """Of an epoch's two batches one holds three samples, which do not divide evenly, and one a single sample."""

    def work(devices):
        subject = Subject(tiny_sam, **tuner)
        report = subject.fit(make_samples(4), quick(batch=3, devices=devices), tmp_path / f"state-{devices}.pt")
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save({"losses": list(report.losses), "state": subject.state()}, tmp_path / f"{devices}-{rank}.pt")

    debug_launcher(work, (2,), num_processes=2)
    work(1)
    alone, *shared = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for one in shared:
        assert one["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert close(one["state"], alone["state"], 1e-4)
    random = torch.load(tmp_path / "state-2.pt")["parts"]["random"]
    assert len(random) == 2
    assert not torch.equal(random[0]["cpu"], random[1]["cpu"]), "dropout differs between processes"
