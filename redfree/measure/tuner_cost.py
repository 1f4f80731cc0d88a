"""What a tuner costs: parameters, seconds of an optimiser step, and peak memory, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.optim.optimizer import register_optimizer_step_post_hook

from redfree.data.schema import Prompt, Sample
from redfree.measure.memory import ran_out_of_memory
from redfree.measure.phases import Stopwatch
from redfree.models.catalogue import MODELS
from redfree.models.loading import build_module, load_model, untrained_model
from redfree.models.promptable import PromptableModel
from redfree.progress import track
from redfree.tuners.base import Attachment
from redfree.tuners.catalogue import TUNERS, attach_tuner, tuner_options
from redfree.tuners.train import FitOptions, fit

# The side of the image: that of a photograph, which an encoder first brings to its own size.
SIDE = 1024


@dataclass(frozen=True)
class TunerCounts:
    """Parameters of a tuner on a model.

    Attributes:
        tuner: a key of `TUNERS`.
        inserted: what it adds.
        declared: what it trains by its authors' account (variant original), with or without a gradient.
        moved: what the optimiser moves with the tuner's default options.
    """

    tuner: str
    inserted: int
    declared: int
    moved: int


@dataclass(frozen=True)
class StepCost:
    """What training took.

    Attributes:
        seconds: of an optimiser step on one image, median.
        peak_rss_bytes: highest resident memory of a fresh process that builds the model and trains, with the libraries
            it has loaded.
    """

    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class TunerCost:
    """What a tuner takes on a model.

    Attributes:
        model: a key of `MODELS`.
        threads: torch threads.
        counts: its parameters.
        step: what training took; None where the process ran out of memory.
    """

    model: str
    threads: int
    counts: TunerCounts
    step: StepCost | None

    @property
    def status(self) -> str:
        """The words ok or out of memory."""
        return "ok" if self.step else "out of memory"


def count_parameters(model: str, tuner: str) -> TunerCounts:
    """Counts a tuner's parameters on a model, of which no weights are needed.

    Args:
        model: a key of `MODELS`.
        tuner: a key of `TUNERS`.

    Raises:
        UserError: the tuner is not defined on a model of this kind.
    """
    default, original = (_attached(model, tuner, **options) for options in ({}, {"variant": "original"}))
    return TunerCounts(tuner, default.inserted_count, original.declared_count, default.trained_count)


def _attached(model: str, tuner: str, **options: str) -> Attachment:
    entry = MODELS[model]
    # SAM 2 reads values while it is built, which tensors without memory do not have.
    with torch.device("meta" if entry.family == "segment_anything" else "cpu"):
        module = build_module(entry, entry.options())
    return attach_tuner(tuner, module, tuner_options(tuner, options))


def measure_tuners(model: str, threads: int, steps: int) -> list[TunerCost]:
    """Trains with each tuner in a process of its own, one after the other.

    Args:
        model: a key of `MODELS`.
        threads: torch threads.
        steps: optimiser steps that are timed, after one that is not.

    Raises:
        UserError: a tuner is not defined on a model of this kind.
        ChildProcessError: a process failed otherwise than for want of memory.
    """
    counted = [count_parameters(model, tuner) for tuner in TUNERS]
    progress = track(counted, len(counted), f"{model}, {threads} threads")
    return [TunerCost(model, threads, each, _step_apart(model, each.tuner, threads, steps)) for each in progress]


def _step_apart(model: str, tuner: str, threads: int, steps: int) -> StepCost | None:
    command = [sys.executable, "-m", __name__, model, tuner, str(threads), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return StepCost(**json.loads(done.stdout))
    if ran_out_of_memory(done.returncode, done.stderr):
        return None
    reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    raise ChildProcessError(f"{model}, {tuner}: the measuring process failed: {reason}")


def measure_step(model: str, tuner: str, threads: int, steps: int) -> StepCost:
    """Trains a model in this process, by the loop that fits every tuner.

    Weights are those of the package where they ship with it, else random.

    Args:
        model: a key of `MODELS`.
        tuner: a key of `TUNERS`.
        threads: torch threads.
        steps: optimiser steps that are timed, after one that is not.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    stopwatch, ends = Stopwatch(), list[float]()
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        with stopwatch.phase("fit"):
            _fit(model, tuner, steps + 1)
    finally:
        hook.remove()
    return StepCost(float(np.median(np.diff(ends))), stopwatch.phases[0].peak_rss_bytes)


def _fit(name: str, tuner: str, steps: int) -> None:
    model = load_model(name) if MODELS[name].ships else untrained_model(name)
    assert isinstance(model, PromptableModel)
    attachment = attach_tuner(tuner, model.module, tuner_options(tuner, {}))
    fit(model, attachment, [_sample()], FitOptions(epochs=steps, batch=1))


def _sample() -> Sample:
    """An image of noise with an ellipse for an object, and a point in its middle."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    drawn = Image.new("1", (SIDE, SIDE))
    ImageDraw.Draw(drawn).ellipse((SIDE // 4, SIDE // 3, SIDE * 3 // 4, SIDE * 2 // 3), fill=1)
    return Sample("noise", image, np.array(drawn), Prompt(((SIDE / 2, SIDE / 2),), (1,)))


if __name__ == "__main__":
    found = measure_step(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
