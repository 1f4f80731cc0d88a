import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tinyworld import make_sample
from tunerworld import shake, tiny_sam2, tune

from redfree import cli
from redfree.bench.evaluation import EvalOptions, evaluate
from redfree.channels import ChannelMap
from redfree.models import catalogue, weights
from redfree.models.loading import load_model
from redfree.records import statistics
from redfree.tuners.artefact import save_tuner, spec_of
from redfree.tuners.catalogue import tuner_options

MERGED = {
    "samed": ("samed", {}),
    "samed with its decoder": ("samed", {"variant": "original"}),
    "dora": ("dora", {"scale": 0.3}),
    "sam-cobot": ("sam-cobot", {"scale": 0.3}),
    "sam-parser": ("sam-parser", {}),
    "decoder-only": ("decoder-only", {}),
}


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, tiny_model, tiny_sam):
    """A working folder with a tiny shipped model and three images that differ in size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path / "weights")
    for folder in ("weights", "data"):
        (tmp_path / folder).mkdir()
    save_file(tiny_sam.state_dict(), tmp_path / "weights/tiny.safetensors")
    for sample in (make_sample(k, 64, 48 + 8 * k) for k in range(3)):
        Image.fromarray(sample.image).save(f"data/{sample.id}.bmp")
        Image.fromarray(sample.mask.astype(np.uint8) * 255).save(f"data/{sample.id}.png")
    yield tmp_path
    torch.set_num_threads(1)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["redfree", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return call


def tuned(path, name, model="tiny", checkpoint=None, scale=0.05, **options):
    """Writes a tuner that has moved far."""
    base = load_model(model, checkpoint)
    attachment = tune(name, base.module, **options)
    shake(attachment, scale)
    save_tuner(path, attachment, spec_of(name, tuner_options(name, options), attachment, base))
    return path


def values(model="tiny", **options):
    return [score.value for score in evaluate(EvalOptions(model, threads=1, **options))]


def one_line(found, text):
    """The error line of a refused call, which says a text."""
    code, out, err = found
    assert (code, out) == (2, "")
    assert re.search(text, err), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(("name", "options"), MERGED.values(), ids=MERGED)
def test_merged_weights_score_as_the_tuned_model(call, workplace, name, options):
    path = tuned(workplace / "tuner.safetensors", name, **options)
    out = workplace / "out" / "merged.safetensors"
    assert call("merge", path, "--out", out) == (0, f"{out}\n", "")
    data = workplace / "data"
    plain, by_tuner, by_weights = values(data=data), values(data=data, tuner=path), values(data=data, checkpoint=out)
    assert by_weights == pytest.approx(by_tuner, abs=1e-5)
    assert by_tuner != pytest.approx(plain, abs=1e-3)
    original, merged = load_file("weights/tiny.safetensors"), load_file(out)
    assert {key: value.shape for key, value in merged.items()} == {key: value.shape for key, value in original.items()}
    merged_model = call("eval", "--model", "tiny", "--checkpoint", out, "--data", data, "--threads", 1)
    assert merged_model == call("eval", "--model", "tiny", "--tuner", path, "--data", data, "--threads", 1)


def test_merged_weights_of_a_sam2_score_as_the_tuned_model(call, workplace, monkeypatch):
    arch = catalogue.Sam2NanoArchitecture(64, 16, 8, (1, 1, 2, 1), (4, 2, 4, 2), (3,), 2)
    monkeypatch.setitem(catalogue.SAM2_NANO_ARCHITECTURES, "tiny2", arch)
    monkeypatch.setitem(catalogue.MODELS, "tiny2", catalogue.ModelEntry("sam2", "tiny2", 0, 16))
    torch.save({"model": tiny_sam2().state_dict()}, base := workplace / "tiny2.pt")
    path = tuned(workplace / "tuner.safetensors", "samed", "tiny2", base, variant="original")
    out, data = workplace / "merged.safetensors", workplace / "data"
    assert call("merge", path, "--out", out, "--checkpoint", base)[0] == 0
    by_tuner = values("tiny2", data=data, checkpoint=base, tuner=path)
    assert values("tiny2", data=data, checkpoint=out) == pytest.approx(by_tuner, abs=1e-5)
    assert by_tuner != pytest.approx(values("tiny2", data=data, checkpoint=base), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options"), [("sam-adapter", {}), ("conv-lora", {}), ("sam-cobot", {"flavour": "adapter"})]
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(call, workplace, name, options):
    path = tuned(workplace / "tuner.safetensors", name, **options)
    refused = call("merge", path, "--out", workplace / "merged.safetensors")
    one_line(refused, r"tuner\.safetensors: this tuner cannot be merged: .*; use it with --tuner$")
    assert not (workplace / "merged.safetensors").exists()


def test_a_tuner_is_merged_into_the_weights_that_it_was_fitted_on_alone(call, workplace, tiny_sam):
    path = tuned(workplace / "tuner.safetensors", "samed")
    with torch.no_grad():
        next(tiny_sam.parameters()).add_(1)
    save_file(tiny_sam.state_dict(), workplace / "other.safetensors")
    refused = call("merge", path, "--out", workplace / "merged.safetensors", "--checkpoint", "other.safetensors")
    one_line(refused, "was fitted on weights .* of tiny")
    assert not (workplace / "merged.safetensors").exists()


def test_eval_prints_every_score_with_its_interval(call, workplace):
    ChannelMap(16, [(3, 7)]).save(workplace / "swap.json")
    path, data = tuned(workplace / "tuner.safetensors", "samed"), workplace / "data"
    code, out, err = call(
        *("eval", "--model", "tiny", "--data", data, "--tuner", path, "--swap", "swap.json", "--threads", 1)
    )
    assert (code, err) == (0, "")
    scores = values(data=data, tuner=path, swap=workplace / "swap.json")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == ["mIoU", "mDice", "dataset_IoU", "dataset_Dice"]
    assert [line[1] for line in lines] == [f"{100 * value:.2f}" for value in scores]
    assert all(line[-2:] == ["3", "images"] for line in lines)


REFUSED = {
    "a swap of other channels": (
        ["--data", "data", "--swap", "wide.json"],
        "wide.json: is for 64 channels, tiny has 16",
    ),
    "both places": (["--data", "data", "--dataset", "procedural/medical"], "give --data FOLDER or --dataset NAME"),
    "no place": ([], "give --data FOLDER or --dataset NAME"),
    "no tuner": (["--data", "data", "--tuner", "missing.safetensors"], "missing.safetensors: no such tuner file"),
    "weights": (["--data", "data", "--tuner", "weights/tiny.safetensors"], "says not which tuner"),
    "no swap": (["--data", "data", "--swap", "missing.json"], "missing.json: no such file"),
    "no data": (["--data", "missing"], "missing"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_eval_refuses_in_one_line(call, workplace, arguments, said):
    ChannelMap(64, [(3, 40)]).save(workplace / "wide.json")
    assert said in one_line(call("eval", "--model", "tiny", *arguments), re.escape(said))


def test_eval_refuses_a_tuner_of_another_model(call, workplace, monkeypatch):
    path = tuned(workplace / "tuner.safetensors", "samed")
    monkeypatch.setitem(catalogue.MODELS, "other", catalogue.ModelEntry("segment_anything", "tiny", 0, 16))
    arguments = ("--model", "other", "--checkpoint", "weights/tiny.safetensors", "--data", "data", "--tuner", path)
    assert str(path) in one_line(call("eval", *arguments), "was fitted on tiny, not on other; load tiny")
