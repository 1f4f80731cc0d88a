"""What the pretraining recipes share: the scenes, the schedule and one resumable loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from redfree.data.procedural.scenes import Scene, draw
from redfree.files import replace_atomically
from redfree.progress import track

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Schedule:
    """What every recipe says.

    Attributes:
        model: name of the model.
        domain: procedural domain of the training scenes.
        scenes: number of distinct training scenes.
        steps: optimiser steps.
        images: scenes in a step.
        learning_rate: peak of the cosine schedule.
        weight_decay: decoupled weight decay (AdamW).
        warmup: steps of linear warm-up.
        ema_decay: decay per step of the moving average that is shipped.
        seed: seed of the initialisation and of every batch.
        save_every: steps between checkpoints.
    """

    model: str
    domain: str = "natural"
    scenes: int = 8192
    steps: int = 20000
    images: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 500
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int = 500


@dataclass(frozen=True)
class SceneBank:
    """Training scenes in memory: uint8 images and, for each, its masks padded with empty ones to four."""

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def _pad_masks(scene: Scene) -> NDArray[np.bool_]:
    padded = np.zeros((4, *scene.masks.shape[1:]), bool)
    padded[: len(scene.masks)] = scene.masks
    return padded


def load_scenes(recipe: Schedule, size: int, cache: Path, workers: int) -> SceneBank:
    """Draws the training scenes, or reads them from `cache` where an earlier call of the same recipe left them."""
    path = cache / f"{recipe.domain}-{recipe.scenes}-{size}-{recipe.seed}.npz"
    if not path.exists():
        one = partial(draw, recipe.domain, "pretrain", seed=recipe.seed, size=size)
        with ProcessPoolExecutor(workers) as pool:
            drawn = pool.map(one, range(recipe.scenes), chunksize=32)
            scenes = list(track(drawn, total=recipe.scenes, description="draw scenes"))
        with replace_atomically(path) as file:
            np.savez(
                file,
                images=np.stack([scene.image for scene in scenes]),
                masks=np.packbits(np.stack([_pad_masks(scene) for scene in scenes]), axis=-1),
            )
    with np.load(path, allow_pickle=False) as stored:
        return SceneBank(stored["images"], np.unpackbits(stored["masks"], axis=-1).astype(bool))


def rate_of_step(recipe: Schedule, step: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


class Optimisation:
    """AdamW on a cosine schedule with clipped gradients, followed by a moving average of the module that is shipped."""

    def __init__(
        self,
        recipe: Schedule,
        module: nn.Module,
        others: Iterable[nn.Parameter],
        betas: tuple[float, float],
        clip: float,
    ) -> None:
        """Prepares the training of a module.

        Args:
            recipe: its rates.
            module: what is shipped, and whose gradient is clipped.
            others: parameters that are trained with it.
            betas: of AdamW.
            clip: largest norm of the module's gradient.
        """
        self.module, self._clip = module, clip
        self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))  # type: ignore[no-untyped-call]
        learnt = [*module.parameters(), *others]
        self.optimiser = torch.optim.AdamW(
            learnt, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=betas
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, partial(rate_of_step, recipe))

    def parts(self) -> dict[str, Any]:
        """Everything with a state dict that a resumed run needs."""
        return {name: getattr(self, name) for name in ("module", "average", "optimiser", "schedule")}

    def step(self, loss: Tensor) -> float:
        """One step down a loss; returns its value."""
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self.optimiser.step()
        self.schedule.step()
        self.average.update_parameters(self.module)
        return loss.item()


class TrainingRun(Protocol[Batch]):
    """The state of one training run."""

    recipe: Any
    step: int

    def parts(self) -> dict[str, Any]:
        """Everything with a state dict that a resumed run needs."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of a step, a function of the recipe and the step alone."""
        ...

    def advance(self, batch: Batch) -> float:
        """One optimiser step; returns its loss."""
        ...

    def trained(self) -> nn.Module:
        """The module whose weights are shipped."""
        ...


def save_state(run: TrainingRun[Batch], path: Path) -> None:
    """Writes the state of a run atomically."""
    state = {name: part.state_dict() for name, part in run.parts().items()}
    with replace_atomically(path) as file:
        torch.save({**state, "step": run.step, "recipe": asdict(run.recipe)}, file)


def restore_state(run: TrainingRun[Batch], path: Path) -> None:
    """Reads a state that `save_state` wrote.

    Raises:
        ValueError: the state belongs to another recipe.
    """
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(run.recipe):
        raise ValueError(f"{path}: holds another recipe; remove it or choose another --out")
    for name, part in run.parts().items():
        part.load_state_dict(state[name])
    run.step = state["step"]


class _Batches(Dataset[Batch], Generic[Batch]):
    """The batches of a run by step, so that a worker process can prepare the next one."""

    def __init__(self, batch_of_step: Callable[[int], Batch]) -> None:
        self._batch_of_step = batch_of_step

    def __getitem__(self, step: int) -> Batch:
        return self._batch_of_step(step)


def train(run: TrainingRun[Batch], out: Path) -> Path:
    """Trains, continuing from `out` where an earlier call stopped.

    Args:
        run: a fresh run.
        out: folder of the checkpoint and the final weights.

    Returns:
        Path of the trained weights, `<out>/<model>.safetensors`.
    """
    state, recipe = out / "state.pt", run.recipe
    if state.exists():
        restore_state(run, state)
    left = range(run.step, recipe.steps)
    batches = DataLoader(_Batches(run.batch), batch_size=None, sampler=left, num_workers=1, prefetch_factor=4)
    for batch in track(batches, total=len(left), description="train"):
        loss = run.advance(batch)
        if run.step % recipe.save_every == 0 or run.step == recipe.steps:
            save_state(run, state)
            with (out / "loss.csv").open("a") as log:
                log.write(f"{run.step},{loss:.5f}\n")
    return write_weights(run.trained(), out / f"{recipe.model}.safetensors")


def write_weights(module: nn.Module, path: Path) -> Path:
    """Writes a module's state dict as safetensors, atomically."""
    state: dict[str, Tensor] = {key: value.contiguous() for key, value in module.state_dict().items()}
    with replace_atomically(path) as file:
        file.write(save(state))
    return path
