import pytest
import torch
from fitworld import DROPS, Killed, Subject, interrupted, make_samples, quick, rig, same

from redfree.errors import UserError
from redfree.tuners.objective import Objective


@pytest.mark.parametrize("save_every", [1, 2, None])
@pytest.mark.parametrize("tuner", [{"name": "decoder-only"}, DROPS], ids=["decoder-only", "with dropout"])
def test_a_killed_fit_goes_on_to_the_same_bits(tiny_sam, tmp_path, monkeypatch, tuner, save_every):
    samples, options = make_samples(), quick(save_every=save_every)
    whole = Subject(tiny_sam, **tuner)
    report = whole.fit(samples, options)
    asked = interrupted(monkeypatch, 6)
    with pytest.raises(Killed):
        Subject(tiny_sam, **tuner).fit(samples, options, tmp_path / "state.pt")
    torch.manual_seed(99)  # another process has drawn other numbers
    resumed = Subject(tiny_sam, **tuner)
    again = resumed.fit(samples, options, tmp_path / "state.pt")
    assert same(resumed.state(), whole.state())
    assert (again.losses, again.steps) == (report.losses, report.steps)
    done = {1: 5, 2: 4, None: 3}[save_every]
    assert len(asked) == 6 + 9 - done, "the fit goes on from the last state"
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_the_same_attachment_can_go_on_after_an_interrupt(tiny_sam, tmp_path, monkeypatch):
    samples, whole, subject = make_samples(), Subject(tiny_sam), Subject(tiny_sam)
    whole.fit(samples, quick())
    interrupted(monkeypatch, 6)
    with pytest.raises(Killed):
        subject.fit(samples, quick(), tmp_path / "state.pt")
    subject.fit(samples, quick(), tmp_path / "state.pt")
    assert same(subject.state(), whole.state())


def test_a_finished_fit_gives_its_result_at_once(tiny_sam, tmp_path, monkeypatch):
    samples, first = make_samples(), Subject(tiny_sam)
    report = first.fit(samples, quick(), tmp_path / "state.pt")
    monkeypatch.setattr(Objective, "forward", lambda *_: pytest.fail("a step was taken"))
    second = Subject(tiny_sam)
    again = second.fit(samples, quick(save_every=7), tmp_path / "state.pt")
    assert same(second.state(), first.state())
    assert again.losses == report.losses
    assert again.seconds > report.seconds * 0.5, "seconds of the first process count"


@pytest.mark.parametrize("other", ["options", "samples", "order", "tuner", "weights"])
def test_the_state_of_another_fit_is_refused(tiny_sam, tmp_path, other):
    path, samples = tmp_path / "state.pt", make_samples()
    Subject(tiny_sam).fit(samples, quick(epochs=1), path)
    kept = path.read_bytes()
    if other == "weights":
        tiny_sam.mask_decoder.iou_token.weight.data[0, 0] += 1
    subject = Subject(tiny_sam, "medsam" if other == "tuner" else "decoder-only")
    shown = {"samples": samples[1:], "order": samples[::-1]}.get(other, samples)
    with pytest.raises(UserError, match=r"state\.pt: is the state of another fit; remove it, or name another file$"):
        subject.fit(shown, quick(epochs=1, seed=int(other == "options")), path)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"", lambda _: b"not a file of torch"])
def test_a_damaged_state_is_refused(tiny_sam, tmp_path, damage):
    path = tmp_path / "state.pt"
    Subject(tiny_sam).fit(make_samples(), quick(epochs=1), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"state\.pt: is no state of a fit, or a damaged one; remove it$"):
        Subject(tiny_sam).fit(make_samples(), quick(epochs=1), path)


def test_a_state_that_would_run_code_is_refused(tiny_sam, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"key": Evil(), "progress": {}, "parts": {}}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="is no state of a fit"):
        Subject(tiny_sam).fit(make_samples(), quick(epochs=1), tmp_path / "state.pt")
    assert not (tmp_path / "owned").exists()


def test_a_fit_killed_after_its_best_epoch_still_ends_in_it(tiny_sam, tmp_path, monkeypatch):
    options, whole, resumed = quick(validation_part=0.3), Subject(tiny_sam), Subject(tiny_sam)
    rig(monkeypatch, 0.5, 0.2, 0.1)
    whole.fit(make_samples(), options)
    rig(monkeypatch, 0.5, 0.2, 0.1)
    interrupted(monkeypatch, 6)
    with pytest.raises(Killed):
        Subject(tiny_sam).fit(make_samples(), options, tmp_path / "state.pt")
    rig(monkeypatch, 0.1)
    assert resumed.fit(make_samples(), options, tmp_path / "state.pt").best_epoch == 1
    assert same(resumed.state(), whole.state())
