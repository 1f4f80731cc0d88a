"""A fit in processes of its own against the same fit in one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from fitworld import close, make_samples, quick, same
from tinyworld import make_model
from torch.multiprocessing.spawn import ProcessRaisedException

from redfree.data.schema import Sample
from redfree.errors import UserError
from redfree.measure.memory import ran_out_of_memory
from redfree.models.nano import build_nano
from redfree.tuners.artefact import read_tuner
from redfree.tuners.catalogue import tuner_options
from redfree.tuners.fit_job import FitJob, run_job


@pytest.fixture
def job(tmp_path, tiny_arch):
    """Makes the job of fitting a tuner to five samples, in a folder of its own."""

    def build():
        torch.manual_seed(3)
        return make_model(build_nano(tiny_arch).eval())

    def job(name, tuner="samed", options=None, samples=None, **fit):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        given = samples or make_samples()
        return FitJob(
            build,
            tuner,
            tuner_options(tuner, options or {}),
            given,
            quick(**fit),
            folder / "a.fit",
            folder / "a.safetensors",
        )

    return job


def ran(job):
    """The fitted values, the report and the phases of a job."""
    model = job.build()
    attachment, report, phases = run_job(job, model)
    spec, state = read_tuner(job.file)
    assert same(state, attachment.state()), "the model has what the file has"
    assert (spec.tuner, spec.model) == (job.tuner, "tiny")
    assert [path.name for path in job.file.parent.iterdir()] == [job.file.name], "no state is left"
    return state, report, phases


@pytest.mark.parametrize(
    ("tuner", "options"), [("samed", {"variant": "original"}), ("decoder-only", {})], ids=["samed", "decoder-only"]
)
def test_two_processes_fit_what_one_fits(job, tuner, options):
    alone, report, phases = ran(job("one", tuner, options))
    assert phases == ()
    shared, together, (first, second) = ran(job("two", tuner, options, devices=2))
    assert close(shared, alone, 1e-4)
    assert together.losses == pytest.approx(report.losses, abs=1e-5)
    assert (together.steps, together.trained_count) == (report.steps, report.trained_count)
    assert min(first.peak_rss_bytes, second.peak_rss_bytes) > 2**26
    assert min(first.seconds, second.seconds) > 0


def test_the_start_is_drawn_by_the_seed(job):
    one, other, again = (ran(job(name, seed=seed, epochs=1))[0] for name, seed in (("a", 1), ("b", 2), ("c", 1)))
    assert same(one, again)
    assert not close(one, other, 1e-3)


@dataclass(frozen=True)
class Perishable:
    """A sample of which the image can be read only a few times while a file exists."""

    sample: Sample
    mine: Path
    reads: list[int]

    @property
    def image(self):
        self.reads.append(1)
        if self.mine.exists() and len(self.reads) > 2:
            raise OSError("the disk is gone")
        return self.sample.image

    def __getattr__(self, name):
        if name.startswith("__") or name == "sample":
            raise AttributeError(name)
        return getattr(self.sample, name)


def test_a_fit_whose_processes_died_goes_on(job, tmp_path):
    def samples(name):
        return [Perishable(sample, tmp_path / name, []) for sample in make_samples()]

    whole, report, _ = ran(job("whole", devices=2, samples=samples("none")))
    (tmp_path / "mine").touch()
    died = job("died", devices=2, samples=samples("mine"))
    with pytest.raises(ProcessRaisedException, match="the disk is gone"):
        run_job(died, died.build())
    assert [path.name for path in died.state.parent.iterdir()] == [died.state.name]
    (tmp_path / "mine").unlink()
    resumed, after, _ = ran(died)
    assert same(resumed, whole)
    assert after.losses == report.losses


PARENT = """
import sys
from functools import partial
from pathlib import Path
from fitworld import make_samples, quick
from redfree.tuners.fit_job import FitJob, run_job
from redfree.tuners.samed import Options

def build(folder):
    import os
    from redfree.models.nano import NanoArchitecture, build_nano
    from tinyworld import make_model

    (folder / f"{os.getpid()}.pid").touch()
    return make_model(build_nano(NanoArchitecture(64, 16, 16, 32, 2, 2, 32)).eval())

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    fit = quick(devices=2, epochs=100000, save_every=1)
    paths = folder / "a.fit", folder / "a.safetensors"
    run_job(FitJob(partial(build, folder), "samed", Options(), make_samples(), fit, *paths), build(folder))
"""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Also where that one ignores SIGINT, as whatever a shell starts in the background does."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ignoring = ["env", "--ignore-signal=INT", sys.executable, script, tmp_path]
    parent = subprocess.Popen(ignoring, env=paths, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "a.fit").exists())
    finally:
        parent.kill()
        parent.wait()
    started = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(started) == 3, "the parent builds a model too"
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in started))


def wait_for(happens, seconds=60):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_a_process_refuses_is_one_line(job):
    asked = job("steep", devices=2, learning_rate=1e30)
    with pytest.raises(UserError, match=r"^the loss is not finite after step \d+; lower learning_rate, now 1e\+30$"):
        run_job(asked, asked.build())
    assert not asked.file.exists()


def test_a_process_that_the_system_kills_ran_out_of_memory(job):
    asked = job("killed", devices=2)
    killing = replace(asked, build=lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(MemoryError, match=r"^process \d of the fit was killed$"):
        run_job(killing, asked.build())


def test_a_process_whose_device_is_full_ran_out_of_memory(job):
    def build():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    asked = job("full", devices=2)
    with pytest.raises(ProcessRaisedException) as caught:
        run_job(replace(asked, build=build), asked.build())
    assert ran_out_of_memory(1, str(caught.value))


def test_more_devices_than_there_are(job):
    model = SimpleNamespace(device=torch.device("cuda"))
    found = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"^devices: {found + 2}, but this machine has {found}; lower it$"):
        run_job(job("many", devices=found + 2), model)
