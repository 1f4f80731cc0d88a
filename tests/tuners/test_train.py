import numpy as np
import pytest
import torch
from fitworld import DROPS, Subject, close, interrupted, make_samples, quick, rig, same
from sam2.sam2_image_predictor import SAM2ImagePredictor
from tinyworld import Stock, make_sample, plain_iou
from tunerworld import tiny_sam2

from redfree.errors import UserError
from redfree.models.promptable import PromptableModel
from redfree.tuners import objective as objective_module
from redfree.tuners.fit_options import FitOptions
from redfree.tuners.objective import Objective

# Of a decoder, what a single mask without a choice among several never reaches.
UNUSED = ("iou_prediction_head", *(f"output_hypernetworks_mlps.{k}" for k in (1, 2, 3)))


@pytest.mark.parametrize("name", ["decoder-only", "encoder-only", "samed", "sam-cobot", "sam-adapter"])
def test_the_loss_falls(tiny_sam, name):
    subject = Subject(tiny_sam, name, variant="original")
    report = subject.fit(make_samples(), quick(epochs=6, learning_rate=1e-2))
    assert report.losses[-1] < report.losses[0] - 0.01
    assert (len(report.losses), report.steps) == (6, 18)
    assert report.trained_count == sum(v.numel() for v in subject.state().values())
    assert report.inserted_count == subject.attachment.inserted_count
    assert report.best_epoch is None
    assert report.seconds > 0


def test_the_defaults_are_the_papers():
    options = FitOptions()
    assert (options.epochs, options.batch, options.learning_rate, options.weight_decay) == (25, 4, 1e-4, 5e-5)
    assert (options.validation_part, options.mixed_precision, options.devices) == (0, "no", 1)


def test_a_step_is_adams_with_the_decay_in_the_gradient(tiny_sam):
    subject, samples = Subject(tiny_sam), make_samples(3)
    before = subject.state()
    loss = Objective(subject.model, subject.attachment, samples)([0, 1, 2])
    loss.backward()
    gradient = {name: v.grad.double() for name, v in subject.attachment.trained().items()}
    report = subject.fit(samples, quick(epochs=1, batch=3, weight_decay=0.5))
    assert report.losses == (pytest.approx(loss.item(), rel=1e-6),)
    for name, value in subject.state().items():
        whole = gradient[name] + 0.5 * before[name]
        # The first step of Adam: both averages, corrected for their start, are those of this gradient alone.
        expected = before[name] - 1e-3 * whole / (whole.abs() + 1e-8)
        certain = whole.abs() > 1e-5  # of a smaller one rounding may take the sign
        torch.testing.assert_close(value.double()[certain], expected[certain], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["decoder-only", "medsam", "samed"])
def test_what_is_not_trained_does_not_move_not_even_by_weight_decay(tiny_sam, name):
    subject = Subject(tiny_sam, name, variant="original")
    module, trained = subject.model.module, {id(v) for v in subject.attachment.trained().values()}
    everything = [*module.named_parameters(), *module.named_buffers()]
    before = {key: value.detach().clone() for key, value in everything}
    subject.fit(make_samples(), quick(weight_decay=0.5))
    moved = {key for key, value in everything if not torch.equal(value, before[key])}
    still = {key for key, value in everything if id(value) not in trained}
    assert not moved & still
    assert any(any(part in key for part in UNUSED) for key in still), "the decoder is trained, but for these"
    assert all(any(part in key for key in still) for part in UNUSED)
    assert any(key.startswith("mask_decoder.output_hypernetworks_mlps.0") for key in moved)


@pytest.mark.parametrize("tuner", [{"name": "decoder-only"}, DROPS], ids=["order alone", "with dropout"])
def test_seeds_reproduce_and_count(tiny_sam, tuner):
    subjects = [Subject(tiny_sam, **tuner) for _ in range(3)]
    for subject, seed, noise in zip(subjects, (1, 1, 2), (7, 8, 9), strict=True):
        torch.manual_seed(noise)
        expected = torch.get_rng_state()
        subject.fit(make_samples(), quick(seed=seed))
        assert torch.equal(torch.get_rng_state(), expected), "the caller's random numbers are his own"
    one, again, other = (subject.state() for subject in subjects)
    assert same(one, again)
    assert not close(one, other, 1e-6)


def test_every_epoch_shows_every_sample_once_in_another_order(tiny_sam, monkeypatch):
    asked = interrupted(monkeypatch, None)
    Subject(tiny_sam).fit(make_samples(), quick(epochs=4))
    epochs = [[d for batch in asked[k : k + 3] for d in batch] for k in range(0, 12, 3)]
    assert [len(batch) for batch in asked] == [2, 2, 1] * 4
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_loss_of_an_epoch_is_the_mean_over_samples_where_the_last_batch_is_smaller(tiny_sam, monkeypatch):
    def of_numbers(self, chosen):
        """A loss of each sample that is its number, whatever the weights."""
        return torch.tensor(chosen).float().mean() + 0 * self.network.mask_decoder.mask_tokens.weight.sum()

    monkeypatch.setattr(Objective, "forward", of_numbers)
    assert Subject(tiny_sam).fit(make_samples(), quick(epochs=1)).losses == (pytest.approx(2.0),)


def test_features_encoded_once_give_what_encoding_each_time_gives(tiny_sam, monkeypatch):
    encoded, encode = [], PromptableModel._encode_together
    monkeypatch.setattr(PromptableModel, "_encode_together", lambda s, i: encoded.append(len(i)) or encode(s, i))
    once, each = Subject(tiny_sam), Subject(tiny_sam)
    first = once.fit(make_samples(), quick())
    assert sum(encoded) == 5
    monkeypatch.setattr(objective_module, "features_are_fixed", lambda *_: False)
    second = each.fit(make_samples(), quick())
    assert sum(encoded) == 5 + 15
    assert second.losses == pytest.approx(first.losses, abs=1e-5)
    assert close(once.state(), each.state(), 1e-5)


@pytest.mark.parametrize("name", ["decoder-only", "medsam", "samed"])
def test_what_was_kept_of_the_decoder_is_dropped_after_a_fit(tiny_sam, name):
    subject, sample = Subject(tiny_sam, name, variant="original"), make_sample(3, 90, 50)
    model, tuned = subject.model, subject.model.sam
    features, tokens = model.encode([sample.image]), model.prompt_tokens(sample.prompt, model._frame(sample.image))
    (before,) = model.decode(features, [sample.prompt])
    model.swap_decoder(features, tokens)(torch.arange(16)[None])
    subject.fit(make_samples(), quick())
    features, tokens = model.encode([sample.image]), model.prompt_tokens(sample.prompt, features.frames[0])
    (after,) = model.decode(features, [sample.prompt])
    np.testing.assert_allclose(after.numpy(), Stock(tuned, sample)(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, after, atol=1e-2)
    index = torch.arange(16)[None].clone()
    index[0, 3] = 7
    low = model.swap_decoder(features, tokens)(index)
    swapped = model.upscale(low, features.frames[0], (90, 50))[0]
    np.testing.assert_allclose(swapped.numpy(), Stock(tuned, sample)(index[0].tolist()), atol=1e-4, rtol=1e-4)


def test_the_original_comes_back_after_a_fit(tiny_sam):
    subject, sample = Subject(tiny_sam, "medsam"), make_sample(3)
    (before,) = subject.model.decode(subject.model.encode([sample.image]), [sample.prompt])
    subject.fit(make_samples(), quick())
    subject.attachment.detach()
    subject.model.weights_changed()
    (after,) = subject.model.decode(subject.model.encode([sample.image]), [sample.prompt])
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["decoder-only", "encoder-only", "samed"])
def test_sam2_is_trained_and_decodes_as_its_official_predictor(name):
    subject, sample = Subject(tiny_sam2(), name), make_sample(3, 90, 50)
    before = subject.state()
    report = subject.fit(make_samples(), quick(epochs=4, learning_rate=1e-2))
    assert report.losses[-1] < report.losses[0]
    still = [name for name, value in subject.state().items() if torch.equal(value, before[name])]
    assert not still, "the convolutions of the decoder that make high-resolution features move too"
    model = subject.model
    (ours,) = model.decode(model.encode([sample.image]), [sample.prompt])
    predictor = SAM2ImagePredictor(model.sam2)
    predictor._bb_feat_sizes = [(16, 16), (8, 8), (4, 4)]
    predictor.set_image(sample.image)
    stock, *_ = predictor.predict(
        np.array(sample.prompt.points), np.array(sample.prompt.labels), multimask_output=False, return_logits=True
    )
    np.testing.assert_allclose(ours.numpy(), stock[0], atol=1e-4, rtol=1e-4)


def test_the_best_epoch_on_held_out_samples_is_kept(tiny_sam, monkeypatch):
    options, best, short, last = quick(validation_part=0.3), *(Subject(tiny_sam) for _ in range(3))
    rig(monkeypatch, 0.1, 0.5, 0.5, 0.3)
    report = best.fit(make_samples(), options.model_copy(update={"epochs": 4}))
    assert (report.best_epoch, len(report.losses)) == (2, 4)
    rig(monkeypatch, 0.1, 0.5)
    assert short.fit(make_samples(), options.model_copy(update={"epochs": 2})).best_epoch == 2
    rig(monkeypatch, 0.1, 0.2, 0.3, 0.4)
    assert last.fit(make_samples(), options.model_copy(update={"epochs": 4})).best_epoch == 4
    assert same(best.state(), short.state())
    assert not same(best.state(), last.state())


def test_held_out_samples_are_of_the_training_samples_and_do_not_train(tiny_sam, monkeypatch):
    trained_on, judged = interrupted(monkeypatch, None), rig(monkeypatch, 0.1, 0.2, 0.3)
    Subject(tiny_sam).fit(make_samples(), quick(validation_part=0.3))
    shown = {d for batch in trained_on for d in batch}
    assert judged == [judged[0]] * 3
    assert len(judged[0]) == 2
    assert sorted([*shown, *judged[0]]) == [0, 1, 2, 3, 4]


def test_validation_changes_nothing_but_the_choice(tiny_sam, monkeypatch):
    """It computes with the weights of the moment, and neither draws nor leaves anything."""
    samples, seen = make_samples(), []
    subject, iou = Subject(tiny_sam, **DROPS), Objective.iou

    def watched(self, chosen):
        seen.append((iou(self, chosen), official_iou(subject.model.sam, [samples[d] for d in chosen])))
        return len(seen) / 10

    monkeypatch.setattr(Objective, "iou", watched)
    subject.fit(samples, quick(validation_part=0.4, learning_rate=1e-2))
    found, expected = zip(*seen, strict=True)
    assert found == pytest.approx(expected, abs=1e-9)
    assert len(set(found)) > 1
    quiet = Subject(tiny_sam, **DROPS)
    rig(monkeypatch, 0.1, 0.2, 0.3)
    quiet.fit(samples, quick(validation_part=0.4, learning_rate=1e-2))
    assert same(quiet.state(), subject.state())


def official_iou(sam, samples):
    return np.mean([plain_iou(Stock(sam, sample)() > 0, sample.mask) for sample in samples])


@pytest.mark.parametrize(("count", "part", "message"), [
    (0, 0.0, "samples: 0, of which 0 are held out, leave none to train on; give more"),
    (1, 0.1, "samples: 1, of which 1 are held out, leave none to train on; give more"),
])  # fmt: skip
def test_too_few_samples(tiny_sam, count, part, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        Subject(tiny_sam).fit(make_samples(count), quick(validation_part=part))


def test_a_loss_that_is_not_finite_ends_the_fit(tiny_sam):
    subject = Subject(tiny_sam)
    with pytest.raises(UserError, match=r"^the loss is not finite after step \d+; lower learning_rate, now 1e\+30$"):
        subject.fit(make_samples(), quick(learning_rate=1e30))


def test_weights_that_are_not_finite_after_the_last_step_end_it_too(tiny_sam, monkeypatch):
    def steep(self, _chosen):
        """A loss of zero whose gradient is not a number."""
        weight = self.network.mask_decoder.mask_tokens.weight
        return (weight - weight.detach()).abs().sum().sqrt()

    monkeypatch.setattr(Objective, "forward", steep)
    with pytest.raises(UserError, match=r"^the loss is not finite after step 1; lower learning_rate, now 0\.001$"):
        Subject(tiny_sam).fit(make_samples(2), quick(epochs=1))


def test_a_model_that_somebody_left_in_training_mode_ends_in_evaluation_mode(tiny_sam):
    one, other = Subject(tiny_sam, **DROPS), Subject(tiny_sam, **DROPS)
    other.model.module.train()
    for subject in (one, other):
        subject.fit(make_samples(2), quick(epochs=1))
        assert not any(module.training for module in subject.model.module.modules())
    assert same(one.state(), other.state())


def test_memory_errors_are_the_callers(tiny_sam, monkeypatch):
    def starve(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Objective, "_loss", starve)
    subject = Subject(tiny_sam)
    with pytest.raises(torch.OutOfMemoryError):
        subject.fit(make_samples(), quick())
    assert not any(module.training for module in subject.model.module.modules())
