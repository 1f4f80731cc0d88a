import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from redfree.models import catalogue
from redfree.models.nano import NANO_ARCHITECTURES, build_nano
from redfree.models.pretrain import Pretraining, Recipe, batch_of_step, mask_loss, pretrain
from redfree.models.training import SceneBank, load_scenes, restore_state, save_state

TINY2 = catalogue.Sam2NanoArchitecture(64, 16, 8, (1, 1, 2, 1), (4, 2, 4, 2), (3,), 2)
RECIPE = Recipe("tiny", scenes=8, steps=4, images=2, warmup=2, ema_decay=0.5, save_every=2)


pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def bank(cache):
    return load_scenes(RECIPE, 64, cache, workers=1)


def test_scenes_are_drawn_once_and_read_back(cache, bank):
    (path,) = cache.iterdir()
    written = path.stat().st_mtime_ns
    again = load_scenes(RECIPE, 64, cache, workers=1)
    assert path.stat().st_mtime_ns == written
    assert (again.images == bank.images).all()
    assert (again.masks == bank.masks).all()
    assert bank.images.shape == (8, 64, 64, 3)
    assert bank.masks.shape == (8, 4, 64, 64)


def test_a_batch_is_a_function_of_recipe_and_step_alone(bank):
    first = batch_of_step(RECIPE, bank, 3)
    torch.manual_seed(99)
    batch_of_step(RECIPE, bank, 2)
    again, other = batch_of_step(RECIPE, bank, 3), batch_of_step(RECIPE, bank, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_points_lie_in_their_masks(bank):
    recipe = replace(RECIPE, images=4, prompts=2)
    for step in range(10):
        images, masks, points, owners = batch_of_step(recipe, bank, step)
        assert images.shape == (4, 3, 64, 64)
        assert 0 <= images.min() <= images.max() <= 255
        assert len(masks) == len(points) == len(owners) > 0
        assert torch.bincount(owners, minlength=4).max() <= 2
        x, y = points.long().unbind(1)
        assert torch.equal(torch.stack([x, y], 1).float(), points)
        assert masks[torch.arange(len(masks)), y, x].all()


def test_masks_follow_the_objects_of_their_own_image(bank):
    masks = bank.masks * np.array([1, 0, 0, 0], bool)[:, None, None]
    bright = SceneBank(np.repeat(255 * masks[:, 0, :, :, None], 3, -1).astype(np.uint8), masks)
    for step in range(10):
        images, targets, _, owners = batch_of_step(replace(RECIPE, images=4), bright, step)
        for target, owner in zip(targets, owners, strict=True):
            assert images[owner][:, target].mean() > 90
            assert images[owner][:, ~target].mean() < 45


def test_mask_loss_equals_a_hand_computation():
    logits = [[[2.0, -1.0], [0.5, -3.0]], [[1.0, 1.0], [-2.0, 0.0]]]
    target = [[[1, 0], [0, 0]], [[0, 1], [1, 1]]]
    predicted = [0.8, 0.1]
    focal, dice, quality = [], [], []
    for mask, truth, iou in zip(logits, target, predicted, strict=True):
        pixels = [
            (1 / (1 + math.exp(-v)), t, v > 0)
            for a, b in zip(mask, truth, strict=True)
            for v, t in zip(a, b, strict=True)
        ]
        right = [p if t else 1 - p for p, t, _ in pixels]
        focal += [-((1 - r) ** 2) * math.log(r) for r in right]
        overlap, total = sum(p * t for p, t, _ in pixels), sum(p + t for p, t, _ in pixels)
        dice.append(1 - (2 * overlap + 1) / (total + 1))
        quality.append((iou - sum(b and t for _, t, b in pixels) / sum(b or t for _, t, b in pixels)) ** 2)
    expected = 20 * sum(focal) / 8 + sum(dice) / 2 + sum(quality) / 2
    loss = mask_loss(torch.tensor(logits), torch.tensor(predicted), torch.tensor(target).bool())
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch, bank):
    whole = load_file(pretrain(RECIPE, tmp_path / "whole", workers=1))
    advance = Pretraining.advance

    def interrupted(run, batch):
        if run.step == 3:
            raise KeyboardInterrupt
        return advance(run, batch)

    halved = tmp_path / "halved"
    monkeypatch.setattr(Pretraining, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(RECIPE, halved, workers=1)
    monkeypatch.setattr(Pretraining, "advance", advance)
    assert torch.load(halved / "state.pt")["step"] == 2
    resumed = load_file(pretrain(RECIPE, halved, workers=1))
    assert list(resumed) == list(whole)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert [line.split(",")[0] for line in (halved / "loss.csv").read_text().splitlines()] == ["2", "4"]

    initial = Pretraining(RECIPE, bank).module.state_dict()
    assert any(not torch.equal(initial[name], value) for name, value in whole.items())
    build_nano(NANO_ARCHITECTURES["tiny"]).load_state_dict(whole)


def test_the_state_of_another_recipe_is_refused(tmp_path, bank):
    save_state(Pretraining(RECIPE, bank), tmp_path / "state.pt")
    other = Pretraining(replace(RECIPE, seed=1), bank)
    with pytest.raises(ValueError, match="holds another recipe"):
        restore_state(other, tmp_path / "state.pt")


def test_sam2_learns_with_the_same_loop(bank, monkeypatch):
    monkeypatch.setitem(catalogue.SAM2_NANO_ARCHITECTURES, "tiny2", TINY2)
    run = Pretraining(replace(RECIPE, model="tiny2", warmup=1, learning_rate=1e-2), bank)
    batch = run.batch(0)
    first = run.advance(batch)
    for _ in range(10):
        last = run.advance(batch)
    assert last < first - 0.1
