"""Fits small enough for a test: a tuner on a fresh copy of a model, and ways to disturb its training."""

import copy

import torch
from tinyworld import make_model, make_sample
from tunerworld import tune

from redfree.models.sam2 import Sam2Model
from redfree.tuners.fit_options import FitOptions
from redfree.tuners.objective import Objective
from redfree.tuners.train import fit

SIZES = [(64, 64), (90, 50), (40, 120), (128, 128), (33, 60)]
DROPS = {"name": "sam-cobot", "flavour": "adapter", "variant": "original"}


def make_samples(count=5):
    return [make_sample(k, *SIZES[k % len(SIZES)], labels=(1, 0)[: 1 + k % 2]) for k in range(count)]


def quick(**options):
    return FitOptions(**{"epochs": 3, "batch": 2, "learning_rate": 1e-3, **options})


class Subject:
    """A fresh copy of a model with a tuner on it; what the tuner draws is always the same."""

    def __init__(self, module, name="decoder-only", **options):
        self.model = make_model(copy.deepcopy(module)) if hasattr(module, "mask_decoder") else wrap2(module)
        torch.manual_seed(5)
        self.attachment = tune(name, self.model.module, **options)

    def fit(self, samples, options, checkpoint=None):
        return fit(self.model, self.attachment, samples, options, checkpoint)

    def state(self):
        return self.attachment.state()


def wrap2(module):
    return Sam2Model("tiny2", copy.deepcopy(module), "0" * 64)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, tolerance):
    return one.keys() == other.keys() and max(float((one[k] - other[k]).abs().max()) for k in one) < tolerance


class Killed(BaseException):
    pass


def interrupted(monkeypatch, calls):
    """Makes the fit die in its step number `calls`; gives the list of all batches asked for."""
    asked, forward = [], Objective.forward

    def dying(self, chosen):
        asked.append(list(chosen))
        if len(asked) == calls:
            raise Killed
        return forward(self, chosen)

    monkeypatch.setattr(Objective, "forward", dying)
    return asked


def rig(monkeypatch, *ious):
    """Makes validation give these values, epoch by epoch; gives the list of the samples it was asked of."""
    asked, values = [], iter(ious)
    monkeypatch.setattr(Objective, "iou", lambda _self, chosen: asked.append(list(chosen)) or next(values))
    return asked
