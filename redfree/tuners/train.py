"""The one training loop: every tuner on every promptable model, resumable to the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from redfree.data.stored import AnySegmentationSample
from redfree.errors import UserError
from redfree.models.promptable import PromptableModel
from redfree.progress import track
from redfree.tuners.acceleration import accelerated, own_randomness, random_state, set_random_state
from redfree.tuners.base import Attachment
from redfree.tuners.fit_options import FitOptions
from redfree.tuners.fit_state import Best, Progress, fit_key, read_fit, save_fit
from redfree.tuners.objective import Objective

__all__ = ["FitOptions", "FitReport", "fit"]


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        losses: of each epoch, the mean over its samples as they came.
        steps: optimiser steps.
        seconds: spent on encoding, steps and validation, in this process and in earlier ones.
        trained_count: parameters that the optimiser moved.
        inserted_count: parameters that the tuner added.
        best_epoch: number, from 1, of the epoch that held-out samples chose; None where the last one is kept unasked.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float
    trained_count: int
    inserted_count: int
    best_epoch: int | None


def fit(
    model: PromptableModel,
    attachment: Attachment,
    samples: Sequence[AnySegmentationSample],
    options: FitOptions,
    checkpoint: Path | None = None,
) -> FitReport:
    """Trains what a tuner attached to a model; afterwards the model computes with it, in evaluation mode.

    Adam goes down `dice_bce_loss` of logits in the model's input frame. Images are not augmented. Where training leaves
    features as they are, each image is encoded once.

    Args:
        model: the model.
        attachment: a tuner, freshly attached to the model's `module`.
        samples: training samples; nothing else is looked at.
        options: how.
        checkpoint: where the state is kept, so that a killed fit goes on from there and ends in the same weights, bit
            for bit on the same machine. That of a finished fit gives its result at once.

    Raises:
        UserError: there are too few samples, the loss is not finite, the checkpoint is damaged or of another fit, or
            the precision or the devices are not to be had.
    """
    training, held_out = _divide(len(samples), options)
    model.module.eval()  # what a tuner added may still be in training mode
    with accelerated(model, options) as accelerator, own_randomness(accelerator, model.device, options.seed):
        try:
            return _Loop(accelerator, model, attachment, samples, options).run(training, held_out, checkpoint)
        finally:
            model.weights_changed()


def _divide(count: int, options: FitOptions) -> tuple[list[int], list[int]]:
    """Which samples train, and which are held out."""
    held_out = max(1, round(options.validation_part * count)) if options.validation_part else 0
    if count <= held_out:
        raise UserError(f"samples: {count}, of which {held_out} are held out, leave none to train on; give more")
    drawn = np.random.default_rng((options.seed, 0)).permutation(count).tolist()
    return sorted(drawn[held_out:]), sorted(drawn[:held_out])


class _Loop:
    """A fit under way."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: PromptableModel,
        attachment: Attachment,
        samples: Sequence[AnySegmentationSample],
        options: FitOptions,
    ) -> None:
        self._clock = time.perf_counter()
        self.accelerator, self.device, self.attachment, self.options = accelerator, model.device, attachment, options
        # How often the state is saved does not change the result.
        self.key = fit_key(model, attachment, samples, options.model_dump(exclude={"save_every"}))
        self.progress, self.objective = Progress(), Objective(model, attachment, samples)
        trained = attachment.trained().values()
        self.adam = torch.optim.Adam(trained, options.learning_rate, weight_decay=options.weight_decay)
        self.adam.zero_grad()  # somebody may have left gradients
        self.loss, self.optimiser = accelerator.prepare(self.objective, self.adam)

    def run(self, training: Sequence[int], held_out: Sequence[int], checkpoint: Path | None) -> FitReport:
        """Takes the steps that are left."""
        if checkpoint and checkpoint.exists():
            self._restore(checkpoint)
        in_epoch = math.ceil(len(training) / self.options.batch)
        last, save_every = self.options.epochs * in_epoch, self.options.save_every or in_epoch
        left = range(self.progress.step, last)
        for step in track(left, len(left), "fit"):
            epoch, number = divmod(step, in_epoch)
            order = np.random.default_rng((self.options.seed, epoch + 1)).permutation(training).tolist()
            self._advance(order[number * self.options.batch :][: self.options.batch])
            if held_out and number + 1 == in_epoch:
                self._validate(epoch + 1, held_out)
            if checkpoint and ((step + 1) % save_every == 0 or step + 1 == last):
                self._save(checkpoint)
        return self._finish(len(training), in_epoch)

    def _advance(self, chosen: list[int]) -> None:
        """One step down the mean loss of some samples, which processes share."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        share = chosen[rank::processes]
        # The mean over processes is taken of losses and gradients; one without a sample still takes part.
        loss = self.loss(share or chosen[:1]) * (len(share) * processes / len(chosen))
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise self._diverged()
        self.accelerator.backward(loss)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.losses.append(value)

    def _diverged(self) -> UserError:
        rate = self.options.learning_rate
        return UserError(f"the loss is not finite after step {self.progress.step}; lower learning_rate, now {rate:g}")

    def _validate(self, epoch: int, held_out: Sequence[int]) -> None:
        iou, best = self.objective.iou(held_out), self.progress.best
        if best is None or iou > best.iou:
            self.progress.best = Best(epoch, iou, self.attachment.state())

    def _save(self, path: Path) -> None:
        random = gather_object([random_state(self.device)])
        self._tick()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            parts = {"trained": self.attachment.state(), "adam": self.adam.state_dict(), "random": random}
            save_fit(path, self.key, self.progress, {**parts, "scaler": scaler.state_dict() if scaler else None})

    def _restore(self, path: Path) -> None:
        self.progress, parts = read_fit(path, self.key)
        self.attachment.load(parts["trained"])
        self.adam.load_state_dict(parts["adam"])
        set_random_state(parts["random"][self.accelerator.process_index], self.device)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(parts["scaler"])

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.seconds, self._clock = self.progress.seconds + now - self._clock, now

    def _finish(self, samples: int, in_epoch: int) -> FitReport:
        """Keeps the best epoch's weights, where there is one, and sums up."""
        progress, attachment = self.progress, self.attachment
        if progress.best:
            attachment.load(progress.best.state)
        if not all(value.isfinite().all() for value in attachment.trained().values()):
            raise self._diverged()
        self._tick()
        sizes = [min(self.options.batch, samples - k * self.options.batch) for k in range(in_epoch)]
        losses = np.average(np.reshape(progress.losses, (-1, in_epoch)), axis=1, weights=sizes)
        return FitReport(
            losses=tuple(losses.tolist()),
            steps=progress.step,
            seconds=progress.seconds,
            trained_count=attachment.trained_count,
            inserted_count=attachment.inserted_count,
            best_epoch=progress.best.epoch if progress.best else None,
        )
