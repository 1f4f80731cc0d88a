"""Where and in which precision a fit runs, by Hugging Face Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from redfree.errors import UserError
from redfree.models.promptable import PromptableModel
from redfree.tuners.fit_options import FitOptions


@contextmanager
def accelerated(model: PromptableModel, options: FitOptions) -> Iterator[Accelerator]:
    """Gives an accelerator on the model's device, or, for several devices, moves the model to that of this process.

    Raises:
        UserError: the CPU has no such precision, or the number of processes is not that of devices.
    """
    devices, on_cpu = options.devices, model.device.type == "cpu"
    if on_cpu and options.mixed_precision == "fp16":
        raise UserError("mixed_precision: fp16 is not for the CPU, where the model is; choose bf16 or no")
    ours = not is_initialized()
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a point prompt leaves those of boxes alone
    try:
        accelerator = Accelerator(
            mixed_precision=options.mixed_precision, cpu=on_cpu, device_placement=False, kwargs_handlers=[unused]
        )
        if (found := accelerator.num_processes) != devices:
            start = f"start with: accelerate launch --num_processes {devices}"
            raise UserError(f"devices: {devices}, but the number of processes is {found}; {start}")
        if devices > 1:
            model.module.to(accelerator.device)
        yield accelerator
    finally:
        if ours:  # accelerate keeps a precision for the whole process, in which the next fit may have another
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def own_randomness(accelerator: Accelerator, device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's generators inside the block, otherwise in each process, and leaves them as they were after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + accelerator.process_index)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that dropout on a device draws from."""
    found = {"cpu": torch.get_rng_state()}
    return {**found, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else found


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Sets what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
