import dataclasses

import numpy as np
import pytest
import torch
from fitworld import DROPS, SIZES, Subject, make_samples
from safetensors.torch import save
from tinyworld import Stock, make_sample, plain_iou
from torch import nn
from tunerworld import tiny_sam2, tune

from redfree.data.schema import Prompt, encode_rows
from redfree.data.stored import store_samples
from redfree.search.evaluate import resize_mask
from redfree.tasks.loss import dice_bce_loss
from redfree.tuners.anatomy import anatomy_of
from redfree.tuners.base import Attachment, replace_modules
from redfree.tuners.objective import Objective, added_modules, features_are_fixed

BOX = Prompt((), (), (10.0, 12.0, 40.0, 44.0))


def varied_samples():
    """Five sizes, prompts of one or two points or a box, and an ignored border on every third."""
    samples = make_samples()
    samples[2] = dataclasses.replace(samples[2], prompt=BOX)
    for k in (0, 3):
        ignore = np.zeros(SIZES[k], bool)
        ignore[:, : SIZES[k][1] // 2] = True
        samples[k] = dataclasses.replace(samples[k], ignore=ignore)
    return samples


def official_loss(sam, sample):
    """By the official predictor, in the input's frame."""
    stock = Stock(sam, sample)
    box = None if sample.prompt.box is None else np.array(sample.prompt.box)
    points = (np.array(sample.prompt.points), np.array(sample.prompt.labels)) if box is None else (None, None)
    _, _, low = stock.predictor.predict(*points, box=box, multimask_output=False, return_logits=True)
    size = stock.predictor.input_size
    logits = sam.postprocess_masks(torch.from_numpy(low)[None], size, size)[0, 0]
    target = resize_mask(sample.mask, size)
    return dice_bce_loss(logits, target, None if sample.ignore is None else resize_mask(sample.ignore, size) & ~target)


@pytest.mark.parametrize("name", ["decoder-only", "medsam"])
def test_a_batch_of_different_sizes_and_prompts_is_the_mean_of_official_losses(tiny_sam, name):
    subject, samples = Subject(tiny_sam, name), varied_samples()
    expected = [official_loss(subject.model.sam, sample) for sample in samples]
    objective = Objective(subject.model, subject.attachment, samples)
    for batch in ([0, 1, 2, 3, 4], [3, 1], [2]):
        loss = objective(batch)
        assert loss.item() == pytest.approx(np.mean([float(expected[d]) for d in batch]), abs=1e-5)
    assert np.std([float(loss) for loss in expected]) > 1e-2, "the comparison must not be of constants"


def test_ignored_pixels_do_not_count(tiny_sam):
    subject, samples = Subject(tiny_sam), varied_samples()
    told = [dataclasses.replace(sample, ignore=None) for sample in samples]
    losses = [Objective(subject.model, subject.attachment, shown)([0]).item() for shown in (samples, told)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_stored_samples_train_as_those_in_memory(tiny_sam):
    subject, samples = Subject(tiny_sam), varied_samples()
    stored = store_samples(encode_rows(samples), "read")
    losses = [Objective(subject.model, subject.attachment, shown)([0, 1, 2, 3, 4]) for shown in (samples, stored)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["decoder-only", "medsam", "samed", "sam-adapter", "sam-parser"])
def test_gradients_reach_all_that_trains_and_nothing_else(tiny_sam, name):
    subject = Subject(tiny_sam, name, variant="original")
    with torch.no_grad():
        for value in subject.attachment.inserted.values():
            value.add_(torch.randn_like(value), alpha=0.1)
    Objective(subject.model, subject.attachment, varied_samples())([0, 1, 2, 3, 4]).backward()
    trained = {id(value) for value in subject.attachment.trained().values()}
    got = {id(value) for value in subject.model.module.parameters() if value.grad is not None}
    assert got <= trained
    still = [name for name, value in subject.attachment.trained().items() if value.grad is None or not value.grad.any()]
    # What stands for a mask given as a prompt is no part of a point or box prompt.
    assert all("mask_downscaling" in name for name in still), still


def freed(module, name):
    return Attachment(anatomy_of(module), {}, {name: module.get_parameter(name)}, lambda: None)


@pytest.mark.parametrize(
    ("parameter", "fixed"),
    [
        ("mask_decoder.iou_token.weight", True),
        ("prompt_encoder.no_mask_embed.weight", True),
        ("image_encoder.pos_embed", False),
        ("image_encoder.neck.3.bias", False),
    ],
)
def test_features_are_fixed_unless_something_of_the_encoder_is_freed(tiny_sam, parameter, fixed):
    subject = Subject(tiny_sam)
    assert features_are_fixed(subject.model, freed(subject.model.module, parameter)) is fixed


@pytest.mark.parametrize("name", ["samed", "sam-adapter", "sam-parser", "sam-cobot"])
def test_features_are_not_fixed_where_something_is_inserted(tiny_sam, name):
    subject = Subject(tiny_sam, name)
    assert not features_are_fixed(subject.model, subject.attachment)
    assert Objective(subject.model, subject.attachment, make_samples(1)).fixed is None


@pytest.mark.parametrize(
    ("parameter", "fixed"),
    [
        ("sam_mask_decoder.iou_token.weight", True),
        ("sam_mask_decoder.conv_s0.weight", False),
        ("sam_mask_decoder.conv_s1.bias", False),
        ("no_mem_embed", False),
        ("image_encoder.trunk.pos_embed", False),
    ],
)
def test_features_of_sam2_hang_on_two_layers_of_its_decoder(parameter, fixed):
    subject = Subject(tiny_sam2())
    assert features_are_fixed(subject.model, freed(subject.model.module, parameter)) is fixed
    sample, value = make_sample(0), subject.model.module.get_parameter(parameter)
    before = subject.model.encode([sample.image]).fingerprint()
    with torch.no_grad():
        value.add_(torch.randn_like(value))
    assert (subject.model.encode([sample.image]).fingerprint() == before) is fixed


def watch_modes(module):
    """The modules that were called in training mode, by name."""
    seen = set()
    for name, part in module.named_modules():
        part.register_forward_pre_hook(lambda part, _, name=name: seen.add(name) if part.training else None)
    return seen


def test_only_what_a_tuner_added_is_in_training_mode(tiny_sam):
    subject = Subject(tiny_sam, **DROPS)
    module = subject.model.module
    seen = watch_modes(module)
    Objective(subject.model, subject.attachment, make_samples(2))([0, 1])
    assert seen
    assert all(".mlp.adapter" in name for name in seen), "neither the model's own MLP nor what wraps both"
    assert {f"image_encoder.blocks.{k}.mlp.adapter" for k in range(2)} <= seen
    assert not any(part.training for part in module.modules())


class Mixed(nn.Module):
    """An MLP of the model's, which has a dropout of its own here, and what a tuner added."""

    def __init__(self, base):
        super().__init__()
        self.base, self.added = nn.Sequential(base, nn.Dropout(0.5)), nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5))

    def forward(self, tokens):
        return self.base(tokens) + self.added(tokens)


def test_a_dropout_of_the_models_own_stays_off(tiny_sam):
    name = "image_encoder.blocks.0.mlp"
    mixed = Mixed(tiny_sam.get_submodule(name))
    unmount = replace_modules(tiny_sam, {name: mixed})
    inserted = dict(mixed.added.named_parameters())
    attachment = Attachment(anatomy_of(tiny_sam), inserted, {}, unmount)
    assert {id(m) for m in added_modules(attachment)} == {id(m) for m in mixed.added.modules()}


def test_modules_that_share_parameters_are_found(tiny_sam):
    attachment = tune("sam-cobot", tiny_sam, flavour="adapter")
    adapters = [tiny_sam.get_submodule(f"image_encoder.blocks.{k}.mlp.adapter") for k in range(2)]
    assert {id(m) for m in added_modules(attachment)} == {id(m) for a in adapters for m in a.modules()}


def test_iou_is_of_the_final_mask_at_the_images_own_size_without_ignored_pixels(tiny_sam):
    subject, samples = Subject(tiny_sam), varied_samples()
    found = Objective(subject.model, subject.attachment, samples).iou([0, 1, 3])
    expected = []
    for sample in (samples[0], samples[1], samples[3]):
        counted = np.ones_like(sample.mask) if sample.ignore is None else ~sample.ignore
        predicted = Stock(subject.model.sam, sample)() > 0
        union = ((predicted | sample.mask) & counted).sum()
        expected.append((predicted & sample.mask & counted).sum() / union)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)


def test_iou_is_of_the_weights_of_the_moment(tiny_sam):
    subject, samples = Subject(tiny_sam), make_samples()
    objective = Objective(subject.model, subject.attachment, samples)
    before = objective.iou([0, 1])
    with torch.no_grad():
        subject.model.sam.mask_decoder.mask_tokens.weight.mul_(-3)
    after = objective.iou([0, 1])
    expected = [plain_iou(Stock(subject.model.sam, sample)() > 0, sample.mask) for sample in samples[:2]]
    assert after == pytest.approx(np.mean(expected), abs=1e-12)
    assert after != before


def test_the_model_keeps_no_trace_of_an_objective(tiny_sam):
    subject = Subject(tiny_sam)
    before = save(dict(subject.model.module.state_dict()))
    Objective(subject.model, subject.attachment, make_samples(2))([0, 1]).backward()
    assert save(dict(subject.model.module.state_dict())) == before
