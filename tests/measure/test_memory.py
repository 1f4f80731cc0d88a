import subprocess
import sys

import pytest
import torch

from redfree.measure.memory import ran_out_of_memory


def end_of(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", True),
        ("bytes(2**62)", True),
        ("raise ValueError('no memory of it')", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", False),
    ],
)
def test_a_process_without_memory_is_told_from_others(code, expected):
    assert ran_out_of_memory(*end_of(code)) is expected


def test_the_complaint_of_torch_on_the_cpu_is_known():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(1, str(refused.value))
