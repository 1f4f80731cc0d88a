"""Training of the promptable nano models on procedural scenes, no step of which sees a test image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.ops import sigmoid_focal_loss
from torchvision.transforms.functional import normalize

from redfree.models.catalogue import NANO_ARCHITECTURES, SAM2_NANO_ARCHITECTURES
from redfree.models.decoding import decode_features, embed_points, sam2_layers, sam_layers
from redfree.models.dino_nano import IMAGENET_MEAN, IMAGENET_STD
from redfree.models.nano import build_nano
from redfree.models.sam2_nano import build_sam2_nano
from redfree.models.training import Optimisation, SceneBank, Schedule, load_scenes, train

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Recipe(Schedule):
    """Everything that determines the trained weights of a model of `NANO_ARCHITECTURES` or `SAM2_NANO_ARCHITECTURES`.

    Attributes:
        prompts: prompted objects of a scene in a step, at most.
    """

    prompts: int = 3


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


def _build(name: str) -> Sam | SAM2Base:
    if name in SAM2_NANO_ARCHITECTURES:
        return build_sam2_nano(SAM2_NANO_ARCHITECTURES[name])
    return build_nano(NANO_ARCHITECTURES[name])


def _encode(module: Sam | SAM2Base, images: Tensor) -> list[Tensor]:
    """Maps (B, C, H, W), and for SAM 2 the two high-resolution features, of images in 0..255."""
    if isinstance(module, Sam):
        return [module.image_encoder(module.preprocess(images))]
    fine, middle, maps = module.forward_image(normalize(images / 255, IMAGENET_MEAN, IMAGENET_STD))["backbone_fpn"]
    return [maps + module.no_mem_embed[0, 0, :, None, None], fine, middle]


def _forward_loss(module: Sam | SAM2Base, batch: Batch) -> Tensor:
    images, targets, points, owners = batch
    # For so few tokens plain matrix products are a quarter faster, backward pass included, than the fused kernel.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        features = _encode(module, images)
    maps, *high_resolution = (level.float()[owners] for level in features)
    layers = sam_layers(module) if isinstance(module, Sam) else sam2_layers(module)
    sparse = embed_points(layers.prompt_encoder, points[:, None], torch.ones(len(points), 1))
    logits, predicted_iou = decode_features(layers, maps, sparse, high_resolution)
    full = F.interpolate(logits[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return mask_loss(full, predicted_iou, targets)


class Pretraining:
    """State of one run: model, moving average, optimiser, schedule."""

    def __init__(self, recipe: Recipe, bank: SceneBank) -> None:
        """Builds the initial state from the recipe's seed."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.bank, self.step = recipe, bank, 0
        self.module = _build(recipe.model)
        self._optimisation = Optimisation(recipe, self.module, (), (0.9, 0.98), 1.0)

    def parts(self) -> dict[str, Any]:
        """Everything with a state dict that a resumed run needs."""
        return self._optimisation.parts()

    def batch(self, step: int) -> Batch:
        """The batch of a step, a function of the recipe and the step alone."""
        return batch_of_step(self.recipe, self.bank, step)

    def advance(self, batch: Batch) -> float:
        """One optimiser step; returns its loss."""
        loss = self._optimisation.step(_forward_loss(self.module, batch))
        self.step += 1
        return loss

    def trained(self) -> nn.Module:
        """The moving average of the weights."""
        return self._optimisation.average.module


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
    size = (NANO_ARCHITECTURES | SAM2_NANO_ARCHITECTURES)[recipe.model].image_size
    return train(Pretraining(recipe, load_scenes(recipe, size, out, workers)), out)
