"""Self-distillation of `dino_nano` on procedural scenes: DINO on crops and iBOT on masked patches, without labels.

The losses are those of DINOv2 (Oquab et al. 2023, section 4) with one head for both and centred by Sinkhorn-Knopp.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms.functional import gaussian_blur, normalize, rgb_to_grayscale

from redfree.models.catalogue import DINO_NANO_ARCHITECTURES
from redfree.models.dino_nano import IMAGENET_MEAN, IMAGENET_STD, build_dino_nano
from redfree.models.training import SceneBank, load_scenes, rate_of_step, train

# Two global views (2, B, 3, g, g), local views (L, B, 3, l, l), and the masked patches (2, B, patches) of the former.
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DinoRecipe:
    """Everything that determines the trained weights.

    Attributes:
        model: a key of `DINO_NANO_ARCHITECTURES`.
        domain: procedural domain of the training scenes.
        scenes: number of distinct training scenes.
        steps: optimiser steps.
        images: scenes in a step.
        global_side: side in pixels of the two views that both networks see, of 40 to 100% of an image's area.
        local_views: number of views that only the student sees.
        local_side: side in pixels of these, of 8 to 40% of an image's area.
        masked: share of the patches of a global view that the student has to infer.
        prototypes: outputs of the head.
        learning_rate: peak of the cosine schedule.
        weight_decay: decoupled weight decay (AdamW).
        warmup: steps of linear warm-up.
        momentum: decay per step of the teacher at the start; it reaches 1 along a cosine.
        temperature: of the student's softmax.
        teacher_temperature: of the teacher's.
        seed: seed of the initialisation and of every batch.
        save_every: steps between checkpoints.
    """

    model: str
    domain: str = "natural"
    scenes: int = 8192
    steps: int = 2000
    images: int = 48
    global_side: int = 96
    local_views: int = 4
    local_side: int = 48
    masked: float = 0.3
    prototypes: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    momentum: float = 0.992
    temperature: float = 0.1
    teacher_temperature: float = 0.05
    seed: int = 0
    save_every: int = 100


def _crop(rng: np.random.Generator, images: Tensor, area: tuple[float, float], side: int) -> Tensor:
    """A random, perhaps mirrored, square of each image, brought to side x side."""
    half = np.sqrt(rng.uniform(*area, len(images)))
    centre = rng.uniform(-1, 1, (len(images), 2)) * (1 - half)[:, None]
    rows = [[half * rng.choice([-1.0, 1.0], len(images)), 0 * half, centre[:, 0]], [0 * half, half, centre[:, 1]]]
    matrix = torch.from_numpy(np.stack([np.stack(row, -1) for row in rows], 1)).float()
    grid = F.affine_grid(matrix, [len(images), 3, side, side], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _distort(rng: np.random.Generator, views: Tensor) -> Tensor:
    """Random gain, brightness and contrast, greys for a fifth, blur for half; images in 0..1."""
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


def views_of_step(recipe: DinoRecipe, bank: SceneBank, step: int, patch_size: int) -> Batch:
    """The views and masks of one step, a function of the recipe and the step alone."""
    rng = np.random.default_rng((recipe.seed, step))
    chosen = rng.choice(len(bank.images), recipe.images, replace=False)
    images = torch.from_numpy(bank.images[chosen]).permute(0, 3, 1, 2).float() / 255
    large = [_distort(rng, _crop(rng, images, (0.4, 1.0), recipe.global_side)) for _ in range(2)]
    small = [_distort(rng, _crop(rng, images, (0.08, 0.4), recipe.local_side)) for _ in range(recipe.local_views)]
    patches = (recipe.global_side // patch_size) ** 2
    order = torch.from_numpy(rng.random((2, len(images), patches))).argsort(2)
    return torch.stack(large), torch.stack(small), order < round(recipe.masked * patches)


class Head(nn.Module):
    """Logits of prototypes on the sphere: an MLP, L2 normalisation, a linear layer with rows of unit length."""

    def __init__(self, width: int, prototypes: int) -> None:
        """Builds untrained layers."""
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 64))
        self.prototypes = nn.Parameter(torch.randn(prototypes, 64))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) to cosine similarities (..., prototypes)."""
        return F.linear(F.normalize(self.mlp(tokens), dim=-1), F.normalize(self.prototypes, dim=-1))


class Network(nn.Module):
    """A backbone with its head and, for masked patches, a token in their place."""

    def __init__(self, backbone: VisionTransformer, prototypes: int) -> None:
        """Builds an untrained head."""
        super().__init__()
        self.backbone, self.head = backbone, Head(backbone.embed_dim, prototypes)
        self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))

    def forward(self, views: Tensor, masked: Tensor | None = None) -> Tensor:
        """Normalised tokens (B, 1 + patches, width) of views (B, 3, side, side), some patches (B, patches) hidden."""
        backbone = self.backbone
        grid = backbone.patch_embed(views)
        if masked is not None:
            hidden = masked.reshape(*grid.shape[:3], 1)
            grid = torch.where(hidden, self.mask_token.to(grid.dtype), grid)
        return cast(Tensor, backbone.norm(backbone.blocks(backbone._pos_embed(grid))))


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Assignments (N, K) whose rows sum to 1 and whose columns are used equally (Caron et al. 2020, SwAV).

    Args:
        logits: (N, K).
        temperature: divides the logits.
        rounds: alternations between rows and columns.
    """
    weights = torch.exp((logits - logits.max()) / temperature)
    for _ in range(rounds):
        weights = weights / weights.sum(0, keepdim=True).clamp(min=1e-12)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return weights


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the student's softmax (..., K) against the teacher's assignments (..., K)."""
    return -(teacher * F.log_softmax(student / temperature, dim=-1)).sum(-1).mean()


class SelfDistillation:
    """State of one run: student, teacher, optimiser, schedule."""

    def __init__(self, recipe: DinoRecipe, bank: SceneBank) -> None:
        """Builds the initial state from the recipe's seed."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.bank, self.step = recipe, bank, 0
        self.architecture = DINO_NANO_ARCHITECTURES[recipe.model]
        self.student = Network(build_dino_nano(self.architecture), recipe.prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.student.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, partial(rate_of_step, recipe))

    def parts(self) -> dict[str, Any]:
        """Everything with a state dict that a resumed run needs."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
        }

    def batch(self, step: int) -> Batch:
        """The batch of a step, a function of the recipe and the step alone."""
        return views_of_step(self.recipe, self.bank, step, self.architecture.patch_size)

    def advance(self, batch: Batch) -> float:
        """One optimiser step; returns its loss."""
        loss = self._loss(*batch)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimiser.step()
        self.schedule.step()
        self._follow()
        self.step += 1
        return loss.item()

    def _loss(self, large: Tensor, small: Tensor, masked: Tensor) -> Tensor:
        views, hidden, temperature = large.flatten(0, 1), masked.flatten(0, 1), self.recipe.temperature
        # For so few tokens plain matrix products are faster, backward pass included, than the fused kernel.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                shown = self.teacher(views)
            seen, glimpsed = self.student(views, hidden), self.student(small.flatten(0, 1))
        shown, seen, glimpsed = shown.float(), seen.float(), glimpsed.float()
        targets = sinkhorn(self.teacher.head(shown[:, 0]), self.recipe.teacher_temperature)
        first, second = targets.chunk(2)
        logits = self.student.head(torch.cat([seen[:, 0], glimpsed[:, 0]])).unflatten(0, (-1, large.shape[1]))
        # A view is compared with the other global view; a local one with both.
        pairs = [(logits[0], second), (logits[1], first), *((o, t) for o in logits[2:] for t in (first, second))]
        crops = torch.stack([distillation_loss(output, target, temperature) for output, target in pairs]).mean()
        truth = sinkhorn(self.teacher.head(shown[:, 1:][hidden]), self.recipe.teacher_temperature)
        return crops + distillation_loss(self.student.head(seen[:, 1:][hidden]), truth, temperature)

    @torch.no_grad()
    def _follow(self) -> None:
        progress = self.step / self.recipe.steps
        momentum = 1 - (1 - self.recipe.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - momentum)

    def trained(self) -> nn.Module:
        """The teacher's backbone."""
        return cast(nn.Module, self.teacher.backbone)


def pretrain_dino(recipe: DinoRecipe, out: Path, workers: int = 2) -> Path:
    """Trains a nano model without labels, continuing from `out` where an earlier call stopped.

    Args:
        recipe: what to train.
        out: folder of the checkpoint, the scene cache and the final weights.
        workers: processes that draw scenes.

    Returns:
        Path of the teacher's weights, `<out>/<model>.safetensors`.
    """
    out.mkdir(parents=True, exist_ok=True)
    size = DINO_NANO_ARCHITECTURES[recipe.model].image_size
    return train(SelfDistillation(recipe, load_scenes(recipe, size, out, workers)), out)
