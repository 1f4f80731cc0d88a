"""Candidates a second: the official predictor in a plain loop, and our decoders, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor

from redfree.data.schema import Prompt, Sample
from redfree.models.base import Features, Frame
from redfree.models.catalogue import NanoArchitecture
from redfree.models.nano import build_nano
from redfree.models.sam import SamModel
from redfree.progress import track
from redfree.search.batching import default_batch
from redfree.search.evaluate import SegmentationEvaluator
from redfree.search.log import SearchLog
from redfree.search.scores import IndexMatrix
from redfree.tasks.segmentation import count_pixels, image_iou

# The decoder of SAM ViT-B/L/H, and those of the nano models. The encoder is never run, so it is as small as it can be.
SHAPES: Mapping[str, NanoArchitecture] = {
    "sam_vit_b": NanoArchitecture(
        image_size=1024, channels=256, encoder_dim=8, encoder_depth=1, encoder_heads=1, decoder_mlp_dim=2048
    ),
    "sam_nano256": NanoArchitecture(channels=256, encoder_dim=8, encoder_depth=1, encoder_heads=1),
    "sam_nano": NanoArchitecture(channels=64, encoder_dim=8, encoder_depth=1, encoder_heads=1),
}


@dataclass(frozen=True)
class DecoderSpeed:
    """Time that one candidate on one image takes.

    Attributes:
        shape: whose decoder it is.
        decoder: official, generic or shared.
        threads: torch threads.
        milliseconds: median over rounds of the time of one candidate on one image, scored at full size.
        speed_up: how many times faster than the official predictor, median over rounds of the ratio within a round.
    """

    shape: str
    decoder: str
    threads: int
    milliseconds: float
    speed_up: float


def _sample(side: int) -> Sample:
    y, x = np.mgrid[:side, :side] / side
    mask = ((x - 0.5) / 0.3) ** 2 + ((y - 0.45) / 0.2) ** 2 <= 1
    return Sample("ellipse", np.zeros((side, side, 3), np.uint8), mask, Prompt(((side / 2, 0.45 * side),), (1,)))


def _plain_loop(model: SamModel, features: Features, sample: Sample) -> Callable[[IndexMatrix], NDArray[np.float64]]:
    """One pair, one image, the official predictor, a full-size mask: what the authors' release does."""
    predictor, size = SamPredictor(model.sam), sample.mask.shape
    predictor.original_size = predictor.input_size = size
    predictor.is_image_set = True
    points, labels = np.array(sample.prompt.points), np.array(sample.prompt.labels)

    def score(maps: IndexMatrix) -> NDArray[np.float64]:
        counts = []
        for row in torch.from_numpy(maps.astype(np.int64)):
            predictor.features = features.maps[:, row]
            mask = predictor.predict(points, labels, multimask_output=False)[0][0]
            counts.append(count_pixels(mask, sample.mask))
        return image_iou(np.array(counts))[:, None]

    return score


def _random_pairs(channels: int, count: int) -> IndexMatrix:
    rng = np.random.default_rng(0)
    maps = np.tile(np.arange(channels, dtype=np.int16), (count, 1))
    maps[np.arange(count), rng.integers(channels, size=count)] = rng.integers(channels, size=count)
    return maps


def _scorers(shape: str) -> dict[str, Callable[[IndexMatrix], NDArray[np.float64]]]:
    torch.manual_seed(0)
    arch = SHAPES[shape]
    model = SamModel(shape, build_nano(arch), "random weights")
    side, grid = arch.image_size, arch.image_size // arch.patch_size
    features = Features(torch.randn(1, arch.channels, grid, grid), (Frame((side, side), (side, side)),))
    sample, batch = _sample(side), default_batch(features.maps)
    generic, shared = (
        SegmentationEvaluator(model, [sample], features, SearchLog(), batch, decoder)
        for decoder in ("generic", "shared")
    )
    return {
        "official": _plain_loop(model, features, sample),
        "generic": lambda maps: generic.score(maps).values,
        "shared": lambda maps: shared.score(maps).values,
    }


def measure_decoders(shape: str, threads: int, candidates: int, rounds: int) -> list[DecoderSpeed]:
    """Times the decoders on random weights and features, round after round side by side.

    Args:
        shape: a key of `SHAPES`.
        threads: torch threads.
        candidates: random pairs scored by each decoder in a round.
        rounds: rounds that are timed, after one that is not.

    Raises:
        ArithmeticError: the decoders disagree on a score.
    """
    torch.set_num_threads(threads)
    scorers, maps = _scorers(shape), _random_pairs(SHAPES[shape].channels, candidates)
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for number in track(range(rounds + 1), rounds + 1, f"{shape}, {threads} threads"):
        scores = {}
        for name, score in scorers.items():
            start = time.perf_counter()
            scores[name] = score(maps)
            seconds[name] += [time.perf_counter() - start] if number else []
        for name, values in scores.items():
            if not np.allclose(values, scores["official"], atol=1e-3):
                raise ArithmeticError(f"{shape}: the {name} decoder does not score as the official one")
    return [
        DecoderSpeed(shape, name, threads, 1e3 * float(np.median(taken)) / candidates, _ratio(seconds, name))
        for name, taken in seconds.items()
    ]


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    return float(np.median(np.array(seconds["official"]) / np.array(seconds[name])))
