"""Contrastive training of `dino_nano` on procedural scenes: images by their class token, objects by their patches.

Two views of a scene attract each other's class token against those of all other scenes (SimCLR, Chen et al. 2020), and
patches attract those of the same object against all others of their view (SupCon, Khosla et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms.functional import gaussian_blur, normalize, rgb_to_grayscale

from redfree.models.catalogue import DINO_NANO_ARCHITECTURES
from redfree.models.dino_nano import IMAGENET_MEAN, IMAGENET_STD, build_dino_nano
from redfree.models.training import Optimisation, SceneBank, Schedule, load_scenes, train

# Views (2, B, 3, side, side), and of each patch its object (2, B, patches), -1 for one that shows none or several.
Batch = tuple[Tensor, Tensor]
# Share of a patch above which it shows an object, of which the background is one.
_COVERED = 0.6
_TEMPERATURE = 0.2


@dataclass(frozen=True)
class TokenRecipe(Schedule):
    """Everything that determines the trained weights of a model of `DINO_NANO_ARCHITECTURES`.

    Attributes:
        side: side of a view in pixels, a multiple of the patch size.
        area: least share of the image's area that a view shows.
    """

    steps: int = 3000
    images: int = 48
    side: int = 96
    area: float = 0.25
    warmup: int = 200
    ema_decay: float = 0.998
    save_every: int = 250


def _crops(rng: np.random.Generator, count: int, area: float) -> Tensor:
    """Random, perhaps mirrored, squares of the image as affine matrices (count, 2, 3)."""
    half = np.sqrt(rng.uniform(area, 1.0, count))
    centre = rng.uniform(-1, 1, (count, 2)) * (1 - half)[:, None]
    rows = [[half * rng.choice([-1.0, 1.0], count), 0 * half, centre[:, 0]], [0 * half, half, centre[:, 1]]]
    return torch.from_numpy(np.stack([np.stack(row, -1) for row in rows], 1)).float()


def _distort(rng: np.random.Generator, views: Tensor) -> Tensor:
    """Random gain, brightness and contrast, greys for a fifth, blur for half; images in 0..1, normalised at the end."""
    size = (len(views), 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(0.7, 1.3, (len(views), 3, 1, 1))).float()
    contrast, shift = (torch.from_numpy(rng.uniform(*limits, size)).float() for limits in ((0.6, 1.4), (-0.2, 0.2)))
    mean = views.mean((1, 2, 3), keepdim=True)
    views = ((views - mean) * contrast + mean + shift) * gain
    grey = torch.from_numpy(rng.random(size) < 0.2)
    views = torch.where(grey, rgb_to_grayscale(views, 3), views)
    blurred = gaussian_blur(views, [5, 5], [float(rng.uniform(0.3, 1.5))])
    views = torch.where(torch.from_numpy(rng.random(size) < 0.5), blurred, views)
    return cast(Tensor, normalize(views.clamp(0, 1), IMAGENET_MEAN, IMAGENET_STD))


def objects_of_patches(masks: Tensor, patch_size: int) -> Tensor:
    """The object that each patch shows: 0 for the background, 1 and up for the masks, -1 where it is undecided.

    Args:
        masks: (B, K, side, side) shares 0..1 of each pixel that belong to each object.
        patch_size: side of a patch in pixels.

    Returns:
        (B, patches).
    """
    shares = F.avg_pool2d(masks, patch_size).flatten(2)
    everything = torch.cat([(1 - shares.sum(1, keepdim=True)).clamp(min=0), shares], 1)
    share, owner = everything.max(1)
    return torch.where(share > _COVERED, owner, -1)


def views_of_step(recipe: TokenRecipe, bank: SceneBank, step: int, patch_size: int) -> Batch:
    """The views of one step and what their patches show, a function of the recipe and the step alone."""
    rng = np.random.default_rng((recipe.seed, step))
    chosen = rng.choice(len(bank.images), recipe.images, replace=False)
    images = torch.from_numpy(bank.images[chosen]).permute(0, 3, 1, 2).float() / 255
    scenes = torch.cat([images, torch.from_numpy(bank.masks[chosen]).float()], 1)
    views, owners = [], []
    for _ in range(2):
        size = [len(scenes), scenes.shape[1], recipe.side, recipe.side]
        grid = F.affine_grid(_crops(rng, len(scenes), recipe.area), size, align_corners=False)
        cut = F.grid_sample(scenes, grid, padding_mode="reflection", align_corners=False)
        views.append(_distort(rng, cut[:, :3]))
        owners.append(objects_of_patches(cut[:, 3:], patch_size))
    return torch.stack(views), torch.stack(owners)


def image_loss(tokens: Tensor) -> Tensor:
    """InfoNCE of class tokens (2, B, d): each should recognise its scene's other view among all other views."""
    flat = F.normalize(tokens.flatten(0, 1), dim=1)
    logits = (flat @ flat.T / _TEMPERATURE).fill_diagonal_(-torch.inf)
    count = tokens.shape[1]
    return F.cross_entropy(logits, torch.arange(2 * count).roll(count))


def patch_loss(tokens: Tensor, owners: Tensor) -> Tensor:
    """Supervised contrast of patches (B, N, d) by their objects (B, N) within an image; undecided ones are left out."""
    flat, decided = F.normalize(tokens, dim=2), owners >= 0
    others = decided[:, None] & decided[:, :, None] & ~torch.eye(owners.shape[1], dtype=torch.bool)
    logits = (flat @ flat.transpose(1, 2) / _TEMPERATURE).masked_fill(~others, -1e9)
    same = others & (owners[:, None] == owners[:, :, None])
    counted = same.sum(2) > 0
    likelihood = (logits.log_softmax(2) * same).sum(2) / same.sum(2).clamp(min=1)
    return -likelihood[counted].mean()


def _projector(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))


class ContrastiveTraining:
    """State of one run: model, its projectors, moving average, optimiser, schedule."""

    def __init__(self, recipe: TokenRecipe, bank: SceneBank) -> None:
        """Builds the initial state from the recipe's seed."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.bank, self.step = recipe, bank, 0
        self.architecture = DINO_NANO_ARCHITECTURES[recipe.model]
        self.backbone = build_dino_nano(self.architecture)
        self.projectors = nn.ModuleList([_projector(self.architecture.channels) for _ in range(2)])
        others = self.projectors.parameters()
        self._optimisation = Optimisation(recipe, self.backbone, others, (0.9, 0.999), 3.0)

    def parts(self) -> dict[str, Any]:
        """Everything with a state dict that a resumed run needs."""
        return {**self._optimisation.parts(), "projectors": self.projectors}

    def batch(self, step: int) -> Batch:
        """The batch of a step, a function of the recipe and the step alone."""
        return views_of_step(self.recipe, self.bank, step, self.architecture.patch_size)

    def advance(self, batch: Batch) -> float:
        """One optimiser step; returns its loss."""
        views, owners = batch
        # For so few tokens plain matrix products are faster, backward pass included, than the fused kernel.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            tokens = self.backbone.forward_features(views.flatten(0, 1))
        of_image, of_patch = self.projectors
        images, patches = of_image(tokens[:, 0].float()), of_patch(tokens[:, 1:].float())
        of_views, of_objects = image_loss(images.unflatten(0, (2, -1))), patch_loss(patches, owners.flatten(0, 1))
        loss = self._optimisation.step(of_views + of_objects)
        self.step += 1
        return loss

    def trained(self) -> nn.Module:
        """The moving average of the backbone."""
        return self._optimisation.average.module


def pretrain_tokens(recipe: TokenRecipe, out: Path, workers: int = 2) -> Path:
    """Trains a nano model, continuing from `out` where an earlier call stopped.

    Args:
        recipe: what to train.
        out: folder of the checkpoint, the scene cache and the final weights.
        workers: processes that draw scenes.

    Returns:
        Path of the moving-average weights, `<out>/<model>.safetensors`.
    """
    out.mkdir(parents=True, exist_ok=True)
    size = DINO_NANO_ARCHITECTURES[recipe.model].image_size
    return train(ContrastiveTraining(recipe, load_scenes(recipe, size, out, workers)), out)
