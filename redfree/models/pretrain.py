"""Training of the nano models on procedural natural scenes: one resumable loop, no step of which sees a test image."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from segment_anything.modeling import Sam
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import sigmoid_focal_loss

from redfree.data.procedural.scenes import Scene, draw
from redfree.files import replace_atomically
from redfree.models.decoding import decode_features, embed_points
from redfree.models.nano import NANO_ARCHITECTURES, build_nano
from redfree.progress import track

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights.

    Attributes:
        model: a key of `NANO_ARCHITECTURES`.
        domain: procedural domain of the training scenes.
        scenes: number of distinct training scenes.
        steps: optimiser steps.
        images: scenes in a step.
        prompts: prompted objects of a scene in a step, at most.
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
    prompts: int = 3
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


def load_scenes(recipe: Recipe, cache: Path, workers: int) -> SceneBank:
    """Draws the training scenes, or reads them from `cache` where an earlier call of the same recipe left them."""
    size = NANO_ARCHITECTURES[recipe.model].image_size
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


def _random_affine(rng: np.random.Generator, count: int) -> Tensor:
    angle = rng.uniform(-math.pi, math.pi, count)
    zoom, flip = np.exp(rng.uniform(-0.4, 0.25, count)), rng.choice([-1.0, 1.0], count)
    cosine, sine, shift = zoom * np.cos(angle), zoom * np.sin(angle), rng.uniform(-0.2, 0.2, (count, 2))
    rows = [[cosine * flip, -sine, shift[:, 0]], [sine * flip, cosine, shift[:, 1]]]
    return torch.from_numpy(np.stack([np.stack(row, -1) for row in rows], 1)).float()


def _jitter_colour(rng: np.random.Generator, images: Tensor) -> Tensor:
    gain = torch.from_numpy(rng.uniform(0.7, 1.3, (len(images), 3, 1, 1))).float()
    brightness = torch.from_numpy(rng.uniform(0.7, 1.3, (len(images), 1, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.1, 0.1, (len(images), 1, 1, 1))).float() * 255
    noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32)) * float(rng.uniform(0, 8))
    return (images * gain * brightness + offset + noise).clamp(0, 255)


def _inner_points(rng: np.random.Generator, masks: Tensor) -> Tensor:
    """A random point (x, y) in each mask, the innermost of a few draws so that both rims and centres occur."""
    depth = F.avg_pool2d(masks[:, None].float(), (17, 1), 1, (8, 0))
    depth = F.avg_pool2d(depth, (1, 17), 1, (0, 8))[:, 0]
    points = []
    for mask, inside in zip(masks, depth, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        draws = torch.from_numpy(rng.integers(len(rows), size=int(rng.integers(1, 7))))
        best = draws[inside[rows[draws], columns[draws]].argmax()]
        points.append(torch.stack([columns[best], rows[best]]).float())
    return torch.stack(points)


def batch_of_step(recipe: Recipe, bank: SceneBank, step: int) -> Batch:
    """The augmented batch of one step, a function of the recipe and the step alone.

    Returns:
        images (B, 3, S, S) in 0..255, masks (P, S, S) bool, points (P, 2) as (x, y), owners (P,) index of the image.
    """
    rng = np.random.default_rng((recipe.seed, step))
    chosen = rng.choice(len(bank.images), recipe.images, replace=False)
    images = torch.from_numpy(bank.images[chosen]).permute(0, 3, 1, 2).float()
    stacked = torch.cat([images, torch.from_numpy(bank.masks[chosen]).float()], 1)
    flow = F.affine_grid(_random_affine(rng, len(chosen)), list(stacked.shape), align_corners=False)
    warped = F.grid_sample(stacked, flow, padding_mode="reflection", align_corners=False)
    masks = warped[:, 3:] > 0.5
    enough = masks.sum((2, 3)) >= 0.008 * masks.shape[-1] ** 2
    owners, objects = torch.nonzero(enough, as_tuple=True)
    order = torch.from_numpy(rng.permutation(len(owners)))
    kept = torch.cat([order[owners[order] == i][: recipe.prompts] for i in range(len(chosen))])
    owners, targets = owners[kept], masks[owners[kept], objects[kept]]
    return _jitter_colour(rng, warped[:, :3]), targets, _inner_points(rng, targets), owners


def mask_loss(logits: Tensor, predicted_iou: Tensor, target: Tensor) -> Tensor:
    """SAM's supervision: focal 20 : Dice 1 : mean squared error of the predicted IoU 1 (SAM paper, appendix A)."""
    truth = target.float()
    probability = logits.sigmoid()
    overlap = (probability * truth).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + truth.sum((1, 2)) + 1)
    binary = logits.detach() > 0
    union = (binary | target).sum((1, 2)).clamp(min=1)
    iou = (binary & target).sum((1, 2)) / union
    focal = sigmoid_focal_loss(logits, truth, alpha=-1, gamma=2, reduction="mean")
    return cast(Tensor, 20 * focal + dice.mean() + F.mse_loss(predicted_iou, iou))


def _schedule(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _forward_loss(sam: Sam, batch: Batch) -> Tensor:
    images, targets, points, owners = batch
    with torch.autocast("cpu", torch.bfloat16):
        features = sam.image_encoder(sam.preprocess(images)).float()
    sparse = embed_points(sam, points[:, None], torch.ones(len(points), 1))
    logits, predicted_iou = decode_features(sam, features[owners], sparse)
    full = F.interpolate(logits[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return mask_loss(full, predicted_iou, targets)


class _Batches(Dataset[Batch]):
    """The batches of a run by step, so that a worker process can prepare the next one."""

    def __init__(self, recipe: Recipe, bank: SceneBank) -> None:
        self.recipe, self.bank = recipe, bank

    def __getitem__(self, step: int) -> Batch:
        return batch_of_step(self.recipe, self.bank, step)


class Pretraining:
    """State of one run: model, moving average, optimiser, schedule; saved and restored as a whole."""

    def __init__(self, recipe: Recipe) -> None:
        """Builds the initial state from the recipe's seed."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.step = recipe, 0
        self.sam = build_nano(NANO_ARCHITECTURES[recipe.model])
        self.average = AveragedModel(self.sam, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))  # type: ignore[no-untyped-call]
        self.optimiser = torch.optim.AdamW(
            self.sam.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, partial(_schedule, recipe))

    def _parts(self) -> dict[str, Any]:
        return {"sam": self.sam, "average": self.average, "optimiser": self.optimiser, "schedule": self.schedule}

    def save(self, path: Path) -> None:
        """Writes the state atomically."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        with replace_atomically(path) as file:
            torch.save({**state, "step": self.step, "recipe": asdict(self.recipe)}, file)

    def restore(self, path: Path) -> None:
        """Reads a state that `save` wrote.

        Raises:
            ValueError: the state belongs to another recipe.
        """
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{path}: holds another recipe; remove it or choose another --out")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]

    def advance(self, batch: Batch) -> float:
        """One optimiser step; returns its loss."""
        loss = _forward_loss(self.sam, batch)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.average.update_parameters(self.sam)
        self.step += 1
        return loss.item()


def pretrain(recipe: Recipe, out: Path, workers: int = 2) -> Path:
    """Trains a nano model, continuing from `out` where an earlier call stopped.

    Args:
        recipe: what to train.
        out: folder of the checkpoint, the scene cache and the final weights.
        workers: processes that draw scenes.

    Returns:
        Path of the moving-average weights, `<out>/<model>.safetensors`.
    """
    out.mkdir(parents=True, exist_ok=True)
    bank, run, state = load_scenes(recipe, out, workers), Pretraining(recipe), out / "state.pt"
    if state.exists():
        run.restore(state)
    left = range(run.step, recipe.steps)
    batches = DataLoader(_Batches(recipe, bank), batch_size=None, sampler=left, num_workers=1, prefetch_factor=4)
    for batch in track(batches, total=len(left), description="train"):
        loss = run.advance(batch)
        if run.step % recipe.save_every == 0 or run.step == recipe.steps:
            run.save(state)
            with (out / "loss.csv").open("a") as log:
                log.write(f"{run.step},{loss:.5f}\n")
    weights = out / f"{recipe.model}.safetensors"
    with replace_atomically(weights) as file:
        file.write(save({k: v.contiguous() for k, v in run.average.module.state_dict().items()}))
    return weights
