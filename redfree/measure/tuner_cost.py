"""What a tuner costs beside a swap: parameters, seconds of an optimiser step, and peak memory, side by side."""

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
# Steps that a process times, after one that warms up: of a model that ships, which is small, and of any other, of which
# one may take half a minute.
TIMED_SMALL, TIMED_LARGE = 20, 1
# The row to compare with: nothing is trained.
SWAP = "swap"


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
    """What training took in one process, or what encoding took for a swap.

    Attributes:
        seconds: of an optimiser step on one image, or of encoding it; median over the timed ones.
        peak_rss_bytes: highest resident memory of a fresh process that builds the model and trains, with the libraries
            it has loaded.
    """

    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class TunerCost:
    """What a tuner, or a swap, takes on a model.

    Attributes:
        model: a key of `MODELS`.
        threads: torch threads.
        counts: its parameters.
        timed: steps that each turn times.
        turns: what each round took; none where a process ran out of memory.
        ratios: of each round, its seconds divided by those of encoding for a swap.
    """

    model: str
    threads: int
    counts: TunerCounts
    timed: int
    turns: tuple[StepCost, ...]
    ratios: tuple[float, ...]

    @property
    def status(self) -> str:
        """The words ok or out of memory."""
        return "ok" if self.turns else "out of memory"


def count_parameters(model: str, tuner: str) -> TunerCounts:
    """Counts a tuner's parameters on a model, of which no weights are needed.

    Args:
        model: a key of `MODELS`.
        tuner: a key of `TUNERS`, or `swap`, which has none.

    Raises:
        UserError: the tuner is not defined on a model of this kind.
    """
    if tuner == SWAP:
        return TunerCounts(SWAP, 0, 0, 0)
    default, original = (_attached(model, tuner, **options) for options in ({}, {"variant": "original"}))
    return TunerCounts(tuner, default.inserted_count, original.declared_count, default.trained_count)


def _attached(model: str, tuner: str, **options: str) -> Attachment:
    entry = MODELS[model]
    # SAM 2 reads values while it is built, which tensors without memory do not have.
    with torch.device("meta" if entry.family == "segment_anything" else "cpu"):
        module = build_module(entry, entry.options())
    return attach_tuner(tuner, module, tuner_options(tuner, options))


def measure_tuners(model: str, threads: int, rounds: int) -> list[TunerCost]:
    """Lets a swap and every tuner take turns, round after round, each turn in a process of its own.

    Args:
        model: a key of `MODELS`.
        threads: torch threads.
        rounds: turns of each; one that ran out of memory has no further turn.

    Raises:
        UserError: a tuner is not defined on a model of this kind.
        ChildProcessError: a process failed otherwise than for want of memory, or encoding ran out of memory.
    """
    counted = [count_parameters(model, tuner) for tuner in (SWAP, *TUNERS)]
    found: dict[str, list[StepCost | None]] = {counts.tuner: [] for counts in counted}
    turns = track(list(found) * rounds, len(found) * rounds, f"{model}, {threads} threads")
    for tuner in turns:
        if None not in found[tuner]:
            found[tuner].append(_step_apart(model, tuner, threads))
    encoded = [turn for turn in found[SWAP] if turn is not None]
    if not encoded:
        raise ChildProcessError(f"{model}: encoding one image ran out of memory")
    return [_cost_of(model, threads, counts, found[counts.tuner], encoded) for counts in counted]


def _cost_of(
    model: str, threads: int, counts: TunerCounts, found: list[StepCost | None], encoded: list[StepCost]
) -> TunerCost:
    turns = tuple(turn for turn in found if turn is not None) if None not in found else ()
    ratios = tuple(turn.seconds / base.seconds for turn, base in zip(turns, encoded, strict=False))
    return TunerCost(model, threads, counts, timed_steps(model), turns, ratios)


def timed_steps(model: str) -> int:
    """How many steps of training a model are timed in a turn."""
    return TIMED_SMALL if MODELS[model].ships else TIMED_LARGE


def _step_apart(model: str, tuner: str, threads: int) -> StepCost | None:
    command = [sys.executable, "-m", __name__, model, tuner, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return StepCost(**json.loads(done.stdout))
    if ran_out_of_memory(done.returncode, done.stderr):
        return None
    reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    raise ChildProcessError(f"{model}, {tuner}: the measuring process failed: {reason}")


def measure_step(model: str, tuner: str, threads: int) -> StepCost:
    """Trains a model in this process, by the loop that fits every tuner, or encodes for a swap.

    Weights are those of the package where they ship with it, else random.

    Args:
        model: a key of `MODELS`.
        tuner: a key of `TUNERS`, or `swap`.
        threads: torch threads.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    stopwatch = Stopwatch()
    with stopwatch.phase("measured"):
        loaded = load_model(model) if MODELS[model].ships else untrained_model(model)
        assert isinstance(loaded, PromptableModel)
        steps = 1 + timed_steps(model)
        ends = _encode(loaded, steps) if tuner == SWAP else _fit(loaded, tuner, steps)
    return StepCost(float(np.median(np.diff(ends))), stopwatch.phases[0].peak_rss_bytes)


def _encode(model: PromptableModel, times: int) -> list[float]:
    """Times at which an image had been encoded, without a gradient, as the search of a swap does once an image."""
    image, ends = _sample().image, list[float]()
    for _ in range(times):
        model.encode([image])
        ends.append(time.perf_counter())
    return ends


def _fit(model: PromptableModel, tuner: str, steps: int) -> list[float]:
    """Times at which an optimiser step had ended."""
    attachment, ends = attach_tuner(tuner, model.module, tuner_options(tuner, {})), list[float]()
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        fit(model, attachment, [_sample()], FitOptions(epochs=steps, batch=1))
    finally:
        hook.remove()
    return ends


def _sample() -> Sample:
    """An image of noise with an ellipse for an object, and a point in its middle."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    drawn = Image.new("1", (SIDE, SIDE))
    ImageDraw.Draw(drawn).ellipse((SIDE // 4, SIDE // 3, SIDE * 3 // 4, SIDE * 2 // 3), fill=1)
    return Sample("noise", image, np.array(drawn), Prompt(((SIDE / 2, SIDE / 2),), (1,)))


if __name__ == "__main__":
    found = measure_step(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
