"""What one image and one decoder pass of a model take on this machine, timed on random weights in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from redfree.data.schema import Prompt
from redfree.measure.phases import Stopwatch
from redfree.models.base import Features, Model
from redfree.models.loading import untrained_model
from redfree.search.batching import default_batch

# The side of the probe's image: that of a photograph, which an encoder first brings to its own size.
SIDE = 1024


@dataclass(frozen=True)
class Probe:
    """Costs of a model.

    Attributes:
        encode_seconds: of one image of 1024 x 1024 pixels.
        pass_seconds: of one decoder pass of the search, a batch of maps at a time; None for a model without decoder.
        feature_bytes: features of one image in memory.
        peak_rss_bytes: highest resident memory of the process that built the model, encoded and decoded.
    """

    encode_seconds: float
    pass_seconds: float | None
    feature_bytes: int
    peak_rss_bytes: int


def probe(name: str, options: Mapping[str, Any], threads: int) -> Probe | None:
    """Times a model of the catalogue in a process of its own.

    Args:
        name: a key of `MODELS`.
        options: options that are not at their default.
        threads: torch threads.

    Returns:
        Its costs; None where the process did not end well, for want of memory for instance.
    """
    command = [sys.executable, "-m", __name__, name, json.dumps(dict(options)), str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return Probe(**json.loads(done.stdout)) if done.returncode == 0 else None


def measure_probe(name: str, options: Mapping[str, Any], threads: int) -> Probe:
    """Times a model of the catalogue in this process, once: its figures are good for planning, not for reporting."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    stopwatch = Stopwatch()
    with stopwatch.phase("probe"):
        model = untrained_model(name, options)
        image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        start = time.perf_counter()
        features = model.encode([image])
        encoded = time.perf_counter()
        seconds = _pass_seconds(model, features) if isinstance(features, Features) else None  # type: ignore[arg-type]
    return Probe(encoded - start, seconds, features.nbytes, stopwatch.phases[0].peak_rss_bytes)


def _pass_seconds(model: Model, features: Features) -> float:
    middle = SIDE / 2
    tokens = model.prompt_tokens(Prompt(((middle, middle),), (1,)), features.frames[0])
    decode = (model.swap_decoder if model.prefers_shared_decoding else model.map_decoder)(features, tokens)
    index = torch.arange(model.channels).repeat(default_batch(features.maps), 1)
    index[:, 0] = 1
    decode(index)
    start = time.perf_counter()
    decode(index)
    return (time.perf_counter() - start) / len(index)


if __name__ == "__main__":
    found = measure_probe(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
