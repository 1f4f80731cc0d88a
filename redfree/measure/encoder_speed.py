"""Seconds and peak memory of an image: the official attention of SAM's encoder, and our lean one, side by side."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from redfree.measure.phases import Stopwatch
from redfree.models.catalogue import NANO_ARCHITECTURES
from redfree.models.lean_attention import lean_attention
from redfree.models.nano import build_nano
from redfree.progress import track

ENCODERS: Mapping[str, Callable[[], Sam]] = {
    **{f"sam_{size}": partial(sam_model_registry[size], checkpoint=None) for size in ("vit_b", "vit_l", "vit_h")},
    **{name: partial(build_nano, arch) for name, arch in NANO_ARCHITECTURES.items()},
}
ATTENTIONS: Mapping[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "official": lambda _: nullcontext(),
    "lean": lean_attention,
}
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class EncoderSpeed:
    """What one image takes in float32.

    Attributes:
        encoder: whose encoder it is.
        attention: official or lean.
        threads: torch threads.
        seconds: median over rounds of the time of one image of the encoder's own size.
        speed_up: how many times faster than the official attention, median over rounds of the ratio within a round.
        peak_rss_bytes: highest resident memory of a fresh process that builds the model and encodes one image, with
            the libraries it has loaded.
        difference: largest absolute difference of a feature from the official attention's.
    """

    encoder: str
    attention: str
    threads: int
    seconds: float
    speed_up: float
    peak_rss_bytes: int
    difference: float


def _build(name: str) -> tuple[Sam, Tensor]:
    """A model with random weights and one image (1, 3, S, S)."""
    torch.manual_seed(0)
    sam = ENCODERS[name]().eval().requires_grad_(False)
    # The package starts them at zero, where a wrong relative position would not show.
    for key, parameter in sam.image_encoder.named_parameters():
        if "pos" in key:
            nn.init.normal_(parameter, std=0.1)
    return sam, torch.randn(1, 3, sam.image_encoder.img_size, sam.image_encoder.img_size)


@torch.inference_mode()
def _encode(sam: Sam, attention: str, image: Tensor) -> Tensor:
    with ATTENTIONS[attention](sam):
        features: Tensor = sam.image_encoder(image)
    return features


def _peak(name: str, attention: str, threads: int) -> int:
    # In this process the two would share one heap, which keeps what the larger one has freed.
    command = [sys.executable, "-m", __name__, name, attention, str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"{name}, {attention} attention: the measuring process ended with {done.returncode}")
    return int(done.stdout)


def _print_peak(name: str, attention: str, threads: int) -> None:
    torch.set_num_threads(threads)
    stopwatch = Stopwatch()
    with stopwatch.phase("encode"):
        sam, image = _build(name)
        _encode(sam, attention, image)
    sys.stdout.write(f"{stopwatch.phases[0].peak_rss_bytes}\n")


def measure_encoders(name: str, threads: int, rounds: int) -> list[EncoderSpeed]:
    """Times the attentions on random weights and a random image, round after round side by side.

    Args:
        name: a key of `ENCODERS`.
        threads: torch threads.
        rounds: rounds that are timed, after one that is not.

    Raises:
        ArithmeticError: a feature differs by more than 1e-5.
        ChildProcessError: a process that measures the peak memory failed, for want of memory for instance.
    """
    peaks = {attention: _peak(name, attention, threads) for attention in ATTENTIONS}
    torch.set_num_threads(threads)
    sam, image = _build(name)
    seconds: dict[str, list[float]] = {attention: [] for attention in ATTENTIONS}
    features = {}
    for number in track(range(rounds + 1), rounds + 1, f"{name}, {threads} threads"):
        for attention in ATTENTIONS:
            start = time.perf_counter()
            features[attention] = _encode(sam, attention, image)
            seconds[attention] += [time.perf_counter() - start] if number else []
    differences = _differences(name, features)
    return [
        EncoderSpeed(name, key, threads, float(np.median(taken)), _ratio(seconds, key), peaks[key], differences[key])
        for key, taken in seconds.items()
    ]


def _differences(name: str, features: dict[str, Tensor]) -> dict[str, float]:
    found = {key: float((maps - features["official"]).abs().max()) for key, maps in features.items()}
    for key, difference in found.items():
        if not difference <= _TOLERANCE:
            raise ArithmeticError(f"{name}: features of the {key} attention differ by {difference:.1e}")
    return found


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    return float(np.median(np.array(seconds["official"]) / np.array(seconds[name])))


if __name__ == "__main__":
    _print_peak(sys.argv[1], sys.argv[2], int(sys.argv[3]))
