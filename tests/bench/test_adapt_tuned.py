import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import redfree
from redfree import cli
from redfree.bench import adapt_tuned as module
from redfree.bench.adapt import AdaptOptions, adapt
from redfree.bench.adapt_tuned import adapt_tuned, write_tuned_adaptation
from redfree.bench.evaluation import EvalOptions, evaluate
from redfree.data.procedural.scenes import draw
from redfree.data.prompts import distance_transform
from redfree.errors import UserError
from redfree.files import sha256_of
from redfree.models import weights
from redfree.records import statistics
from redfree.records.invariants import violations
from redfree.records.store import read_counts, read_record
from redfree.report.adapt_tuned import render_page, verdict, write_report
from redfree.tasks.segmentation import image_iou
from redfree.tuners.artefact import read_tuner
from redfree.tuners.catalogue import TUNERS

QUICK = {"n_pairs": 2, "folds": 2, "threads": 1, "guard": "none", "fit": {"epochs": 1}}

EVERY = range(8)


@pytest.fixture(autouse=True)
def checkpoint(monkeypatch, tmp_path, tiny_model, tiny_sam):
    """Weights of a tiny model that does not ship; intervals are of few resamples."""
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path / "nothing-ships")
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    save_file(tiny_sam.state_dict(), tmp_path / "tiny.safetensors")
    yield tmp_path / "tiny.safetensors"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def drawn():
    return [draw("medical", "train", index) for index in range(8)]


@pytest.fixture
def images(tmp_path, drawn):
    """A folder of some of eight scenes."""

    def images(name="images", chosen=EVERY):
        (tmp_path / name).mkdir()
        for n in chosen:
            stem = tmp_path / name / f"scene{n}"
            Image.fromarray(drawn[n].image).save(stem.with_suffix(".bmp"))
            Image.fromarray(drawn[n].masks[0].astype(np.uint8) * 255).save(stem.with_suffix(".png"))
            ((x, y),) = distance_transform(drawn[n].masks[0]).points
            stem.with_suffix(".txt").write_text(f"{x:g},{y:g}\n")
        return tmp_path / name

    return images


@pytest.fixture
def run(tmp_path, checkpoint):
    """Adapts and writes everything, as the command does: what was found and its folder."""

    def run(method, name="out", **options):
        chosen = AdaptOptions("tiny", tmp_path / name, checkpoint, method=method, **{**QUICK, **options})
        found = adapt_tuned(chosen, tmp_path / "cache")
        write_tuned_adaptation(found, chosen.out)
        write_report(found, chosen.out)
        return found, chosen.out

    return run


def test_the_command_writes_all_and_its_report_begins_with_the_verdict(
    images, tmp_path, checkpoint, monkeypatch, capsys
):
    out = tmp_path / "out"
    where = ["--data", images(), "--out", out, "--model", "tiny", "--checkpoint", checkpoint, "--cache", tmp_path / "c"]
    sizes = ["--n-pairs", "2", "--folds", "2", "--threads", "1", "--method", "samed+swap", "--fit", "epochs=1"]
    monkeypatch.setattr(sys, "argv", ["redfree", "adapt", *map(str, where + sizes)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    said, written = capsys.readouterr(), sorted(path.name for path in out.iterdir())
    pages = ["loss.png", "record.counts.csv", "record.json", "report.md", "report.png"]
    assert written == [*pages, "swap-alone.json", "swap.json", "tuner.safetensors"]
    lines = said.out.splitlines()
    assert lines[1:] == [f"report: {out / 'report.md'}"]
    assert lines[0].startswith("samed+swap against the swap alone, 4 test images: ")
    assert said.err == ""
    page = (out / "report.md").read_text().splitlines()
    assert page[:3] == ["# samed+swap for tiny on folder/images", "", lines[0]]
    record = read_record(out / "record.json")
    assert violations(record, read_counts(out / "record.json", record.files["counts"])) == []
    assert record.spec.method.name == "samed+swap"
    assert record.spec.dataset.split_sizes == {"test": 4, "choosing": 4, "train": 4}
    assert len(record.result.fit.losses) == 1
    swap, alone = (json.loads((out / name).read_text()) for name in ("swap.json", "swap-alone.json"))
    assert swap["tuner_sha256"] == sha256_of(out / "tuner.safetensors") == record.result.fit.artefact_sha256
    assert alone["tuner_sha256"] is None
    assert swap["checkpoint_sha256"] == alone["checkpoint_sha256"] == sha256_of(checkpoint)
    assert swap["run_id"] == record.run_id != alone["run_id"]


@pytest.mark.parametrize("method", ["samed+swap", "decoder-only", "sam-adapter"])
def test_what_was_written_scores_as_the_record_says(images, run, checkpoint, method):
    search, test = images("mine", range(4)), images("theirs", range(4, 8))
    found, out = run(method, search=search, test=test, fit={})
    record = read_record(out / "record.json")
    assert record.spec.dataset.split_sha256["train"] != record.spec.dataset.split_sha256["test"]
    base = {"model": "tiny", "checkpoint": checkpoint, "data": test, "threads": 1}
    tuner = out / "tuner.safetensors"
    again = evaluate(EvalOptions(**base, tuner=tuner, swap=out / "swap.json"))
    assert [score.value for score in again] == pytest.approx([score.value for score in record.scores], abs=1e-12)
    for counts, files in (
        (found.tuner_counts, {"tuner": tuner}),
        (found.alone.after, {"swap": out / "swap-alone.json"}),
        (found.alone.before, {}),
    ):
        scores = {score.metric: score.value for score in evaluate(EvalOptions(**base, **files))}
        assert scores["mIoU"] == pytest.approx(image_iou(counts).mean(), abs=1e-12)
    assert not np.array_equal(found.tuner_counts, found.alone.before), "the tuner is seen to be on the model"


def test_a_tuner_alone_comes_with_a_swap_that_changes_nothing(images, run):
    found, out = run("decoder-only", data=images())
    assert redfree.load_swap(out / "swap.json").is_identity
    assert not redfree.load_swap(out / "swap-alone.json").is_identity
    assert np.array_equal(found.tuned_counts, found.tuner_counts)
    page = (out / "report.md").read_text()
    assert "| decoder-only (`tuner.safetensors`) |" in page
    assert "`swap.json`) |" not in page


def test_the_page_says_what_the_guards_say(images, run):
    data = images()
    found, out = run("samed+swap", data=data, guard="k_fold")
    alone, both = found.alone.measurement.choice.guard, found.tuned.choice.guard
    page = (out / "report.md").read_text()
    for name, guard, file in (("Swap alone", alone, "swap-alone"), ("Swap on the tuned model", both, "swap")):
        (line,) = [line for line in page.splitlines() if line.startswith(f"- {name}: ")]
        assert f"{100 * guard.gain:+.2f} [" in line
        assert ("accepts" in line) == guard.accepted
        assert (f"`{file}.json` changes nothing" in line) != guard.accepted
    assert "Swap on the tuned" not in (run("samed", name="other", data=data)[1] / "report.md").read_text()


def test_the_tuner_is_fitted_to_the_images_that_choose(images, run):
    found, out = run("samed+swap", data=images(), n_search=5)
    record, alone = found.tuned.record, found.alone.measurement.record
    digests = record.spec.dataset.split_sha256
    assert digests["train"] == digests["choosing"] == alone.spec.dataset.split_sha256["choosing"] != digests["test"]
    assert digests["test"] == alone.spec.dataset.split_sha256["test"]
    assert len(found.alone.before) == len(found.tuned_counts) == 3
    spec, _ = read_tuner(out / "tuner.safetensors")
    assert spec.tuner == "samed"
    assert spec.checkpoint_sha256 == record.spec.model.checkpoint_sha256


def test_the_worth_is_paired_over_images(images, run):
    found, out = run("decoder-only+swap", data=images(), fit={})
    gains = image_iou(found.tuned_counts) - image_iou(found.alone.after)
    mean, (low, high) = found.worth
    assert mean == pytest.approx(gains.mean(), abs=1e-12)
    assert gains.min() <= low < mean < high <= gains.max()
    assert f"{100 * mean:+.2f} [" in verdict(found)
    assert verdict(found) in (out / "report.md").read_text()
    assert render_page(found) == (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.01, 0.03), "tuning was worth it."),
        ((-0.03, -0.01), "tuning did harm."),
        ((-0.01, 0.02), "tuning made no difference that these images can show."),
        ((0.0, 0.0), "tuning made no difference that these images can show."),
    ],
)
def test_the_verdict_is_that_of_the_interval(images, run, monkeypatch, interval, said):
    monkeypatch.setattr(module.TunedAdaptation, "worth", (sum(interval) / 2, interval))
    found, _ = run("decoder-only", data=images())
    assert verdict(found).endswith(said)


def test_the_fit_and_the_tuner_are_as_asked_for(images, run):
    found, out = run("samed", data=images(), fit={"epochs": 3, "batch": 2}, tuner_options={"rank": 2})
    assert (found.tuned.tuned.report.steps, len(found.tuned.tuned.report.losses)) == (6, 3)
    spec, state = read_tuner(out / "tuner.safetensors")
    assert spec.options == {"rank": 2}
    assert state["blocks.0.q.A"].shape[0] == 2
    assert found.tuned.record.spec.method.params["options"] == {"rank": 2}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("samed", {"fit": {"epoch": 3}}, "^--fit: unknown field 'epoch'; did you mean 'epochs'?"),
        ("samed", {"tuner_options": {"rank": 0}}, "^options of samed: field rank: "),
        ("swap", {"fit": {"epochs": 3}}, "^--fit and --tuner-option belong to a tuner; name one with --method"),
        ("swap", {"tuner_options": {"rank": 3}}, "^--fit and --tuner-option belong to a tuner; name one with --method"),
    ],
)
def test_what_cannot_be_fitted_so_is_refused(images, tmp_path, checkpoint, method, given, message):
    options = AdaptOptions("tiny", tmp_path / "out", checkpoint, data=images(), method=method, **given)
    with pytest.raises(UserError, match=message):
        (adapt if method == "swap" else adapt_tuned)(options, tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_a_killed_adaptation_finds_its_tuner_again(images, run, monkeypatch):
    data = images()
    first, _ = run("samed", data=data)
    monkeypatch.setattr("redfree.tuners.fit_job.fit", lambda *_: pytest.fail("fitted again"))
    second, _ = run("samed+swap", name="again", data=data)
    assert second.tuned.record.result.fit == first.tuned.record.result.fit
    assert np.array_equal(second.tuner_counts, first.tuned_counts)


def test_a_test_image_that_is_a_search_image_too_is_refused(images, run, tmp_path):
    with pytest.raises(UserError, match="test image scene3 shows the same as search image scene3"):
        run("samed", search=images("mine", range(4)), test=images("theirs", (3, 4, 5)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["samed-swap", "swap+samed", "zero", "samed+zero"])
def test_an_unknown_method_is_one_line(images, tmp_path, monkeypatch, capsys, method):
    arguments = ["--data", images(), "--out", tmp_path / "out", "--model", "tiny", "--method", method]
    monkeypatch.setattr(sys, "argv", ["redfree", "adapt", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.out == ""
    assert said.err.startswith(f"error: unknown method {method!r}")
    assert said.err.count("\n") == 1
    assert "samed" in said.err
    assert not (tmp_path / "out").exists()


def test_every_tuner_is_a_method_of_the_command(images, run):
    with pytest.raises(UserError) as refused:
        run("nothing-of-the-kind", data=images())
    assert all(name in str(refused.value) for name in ("swap", *TUNERS, *(f"{name}+swap" for name in TUNERS)))
