"""How fast samples are read, beside Pillow alone, and what memory reading many of them takes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import psutil
from PIL import Image

from redfree.data.procedural.scenes import DOMAINS, draw
from redfree.data.prompts import PromptRule, distance_transform
from redfree.data.registry import DatasetUse, open_dataset
from redfree.data.schema import read_samples
from redfree.progress import track

SIDE = 1024
# Distinct images; more would be drawn for a minute and read like these.
IMAGES = 32
# Samples after which the memory is noted.
MARKS = (100, 1000, 2000, 3000, 4000, 5000)


@dataclass(frozen=True)
class ReadingSpeed:
    """Throughput of one way of reading.

    Attributes:
        reader: what reads.
        processes: processes that share the images.
        images_per_second: median over rounds.
        ratio: to that of Pillow alone with as many processes, median over rounds of the ratio within a round.
    """

    reader: str
    processes: int
    images_per_second: float
    ratio: float


@dataclass(frozen=True)
class ReadingMemory:
    """Resident memory of the process while it reads.

    Attributes:
        images: images read since the start.
        rss_bytes: memory after them, with the libraries that are loaded.
    """

    images: int
    rss_bytes: int


def _write_triple(folder: Path, number: int) -> None:
    """A procedural scene enlarged to 1024 x 1024, with its mask and point: a flat triple."""
    scene = draw(tuple(DOMAINS)[number % len(DOMAINS)], "validation", number, 0, 128)
    mask = scene.masks[int(scene.masks.sum((1, 2)).argmax())]
    stem, size = folder / f"{number:05d}", (SIDE, SIDE)
    Image.fromarray(scene.image).resize(size, Image.Resampling.BICUBIC).save(stem.with_suffix(".jpg"), quality=95)
    large = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    large.save(stem.with_suffix(".png"))
    ((x, y),) = distance_transform(np.asarray(large) > 0).points
    stem.with_suffix(".txt").write_text(f"{x:.0f},{y:.0f}\n", "utf-8")


@contextmanager
def flat_triples(count: int) -> Iterator[Path]:
    """A test split of so many triples, of which every 32nd is the same."""
    with tempfile.TemporaryDirectory() as name:
        train, folder = (Path(name) / split for split in ("train", "test"))
        for split in (train, folder):
            split.mkdir()
        _write_triple(train, 0)  # a test split alone is no dataset
        for number in track(range(min(count, IMAGES)), min(count, IMAGES), "draw images"):
            _write_triple(folder, number)
        for number in range(IMAGES, count):
            for suffix in (".jpg", ".png", ".txt"):
                os.link(folder / f"{number % IMAGES:05d}{suffix}", folder / f"{number:05d}{suffix}")
        yield folder.parent


def _read_plainly(folder: Path, part: int, parts: int) -> int:
    """What a loop over the files costs at least: both are decoded, the point is parsed, nothing is checked."""
    images = sorted((folder / "test").glob("*.jpg"))[part::parts]
    for path in images:
        image, mask = Image.open(path).convert("RGB"), Image.open(path.with_suffix(".png")).convert("L")
        point = tuple(float(number) for number in path.with_suffix(".txt").read_text("utf-8").split(","))
        _used(np.asarray(image), np.asarray(mask) >= 128, point)
    return len(images)


def _used(*_values: object) -> None:
    """Takes what was read."""


def _read_samples(folder: Path, part: int, parts: int) -> int:
    rows = _rows(folder)
    return sum(1 for _ in read_samples(rows.select(range(part, len(rows), parts))))


def _rows(folder: Path) -> datasets.Dataset:
    use = DatasetUse("folder", {"mask_threshold": 128}, str(folder))
    return open_dataset(use, PromptRule("file")).load("test", None, 0)


READERS: dict[str, Callable[[Path, int, int], int]] = {"Pillow alone": _read_plainly, "redfree": _read_samples}


def _seconds(read: Callable[[Path, int, int], int], folder: Path, pool: ProcessPoolExecutor, parts: int) -> float:
    """Seconds for an image of the folder, shared by processes that are already there."""
    start = time.perf_counter()
    count = sum(pool.map(partial(_one_part, read, folder, parts), range(parts)))
    return (time.perf_counter() - start) / count


def _one_part(read: Callable[[Path, int, int], int], folder: Path, parts: int, part: int) -> int:
    return read(folder, part, parts)


def measure_reading(processes: int, rounds: int, images: int = 4 * IMAGES) -> list[ReadingSpeed]:
    """Times the readers on flat triples of 1024 x 1024 pixels, round after round side by side.

    Args:
        processes: processes that share the images.
        rounds: rounds that are timed, after one that is not.
        images: images of the folder.
    """
    seconds: dict[str, list[float]] = {name: [] for name in READERS}
    with flat_triples(images) as folder, ProcessPoolExecutor(processes) as pool:
        for number in track(range(rounds + 1), rounds + 1, f"read, {processes} processes"):
            for name, read in READERS.items():
                taken = _seconds(read, folder, pool, processes)
                seconds[name] += [taken] if number else []
    plain = np.array(seconds["Pillow alone"])
    return [
        ReadingSpeed(name, processes, float(np.median(1 / np.array(taken))), float(np.median(plain / np.array(taken))))
        for name, taken in seconds.items()
    ]


def measure_memory(images: int, marks: Sequence[int]) -> list[ReadingMemory]:
    """Reads many samples in this process, and notes its memory on the way.

    Args:
        images: samples to read.
        marks: numbers of samples after which the memory is noted, in any order.
    """
    process, found = psutil.Process(), []
    with flat_triples(images) as folder:
        rows = _rows(folder)
        for number, _ in enumerate(track(read_samples(rows), len(rows), "read"), start=1):
            if number in marks:
                found.append(ReadingMemory(number, process.memory_info().rss))
    return found
