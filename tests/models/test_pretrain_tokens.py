import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from redfree.models import catalogue
from redfree.models.pretrain_tokens import (
    ContrastiveTraining,
    TokenRecipe,
    image_loss,
    objects_of_patches,
    patch_loss,
    pretrain_tokens,
    views_of_step,
)
from redfree.models.training import load_scenes

RECIPE = TokenRecipe("tiny", scenes=8, steps=4, images=3, side=32, warmup=1, ema_decay=0.5, save_every=2)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    arch = catalogue.DinoNanoArchitecture(image_size=64, patch_size=16, channels=16, depth=2, heads=2)
    monkeypatch.setitem(catalogue.DINO_NANO_ARCHITECTURES, "tiny", arch)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return load_scenes(RECIPE, 64, tmp_path_factory.mktemp("scenes"), workers=1)


def test_a_patch_shows_what_covers_it():
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2, :2] = 1
    masks[0, 1, :2, 2] = 1
    masks[0, 1, 2:, 2:] = 1
    assert objects_of_patches(masks, 2).tolist() == [[1, -1, 0, 2]]


def test_image_loss_equals_a_hand_computation():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 1.0]]])
    likelihood = math.exp(5) / (math.exp(5) + 2)
    assert image_loss(tokens).item() == pytest.approx(-math.log(likelihood), rel=1e-5)


def test_patch_loss_equals_a_hand_computation_and_ignores_the_undecided():
    tokens = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
    owners = torch.tensor([[0, 0, 1, -1]])
    assert patch_loss(tokens, owners).item() == pytest.approx(-math.log(math.exp(5) / (math.exp(5) + 1)), rel=1e-5)


def test_a_batch_is_a_function_of_recipe_and_step_alone(bank):
    first, again, other = (views_of_step(RECIPE, bank, step, 16) for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert (first[0].shape, first[1].shape) == ((2, 3, 3, 32, 32), (2, 3, 4))


def test_training_lowers_the_loss_of_a_batch(bank):
    run = ContrastiveTraining(replace(RECIPE, steps=100), bank)
    batch = run.batch(0)
    losses = [run.advance(batch) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.3


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = load_file(pretrain_tokens(RECIPE, tmp_path / "whole", workers=1))
    advance = ContrastiveTraining.advance

    def interrupted(run, batch):
        if run.step == 3:
            raise KeyboardInterrupt
        return advance(run, batch)

    monkeypatch.setattr(ContrastiveTraining, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_tokens(RECIPE, tmp_path / "halved", workers=1)
    monkeypatch.setattr(ContrastiveTraining, "advance", advance)
    resumed = load_file(pretrain_tokens(RECIPE, tmp_path / "halved", workers=1))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
