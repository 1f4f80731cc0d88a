import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything import SamPredictor
from tinyworld import make_sample
from tunerworld import shake, tune

import redfree
from redfree.bench.evaluation import EvalOptions, evaluate
from redfree.channels import ChannelMap
from redfree.data.procedural import ProceduralDataset
from redfree.data.registry import DatasetUse
from redfree.errors import UserError
from redfree.models import catalogue, weights
from redfree.models.feature_cache import FeatureCache
from redfree.models.loading import load_model
from redfree.records import statistics
from redfree.tasks.segmentation import METRICS, count_pixels
from redfree.tuners.artefact import save_tuner, spec_of
from redfree.tuners.catalogue import tuner_options


@pytest.fixture(autouse=True)
def checkpoint(monkeypatch, tmp_path, tiny_model, tiny_sam):
    """Weights of a tiny model that ships; intervals are of few resamples."""
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    save_file(tiny_sam.state_dict(), tmp_path / "weights/tiny.safetensors")
    yield tmp_path / "weights/tiny.safetensors"
    torch.set_num_threads(1)


@pytest.fixture
def samples():
    return [make_sample(k, 64, 48 + 8 * k) for k in range(4)]


@pytest.fixture
def data(tmp_path, samples):
    folder = tmp_path / "data"
    folder.mkdir()
    for sample in samples:
        Image.fromarray(sample.image).save(folder / f"{sample.id}.bmp")
        Image.fromarray(sample.mask.astype(np.uint8) * 255).save(folder / f"{sample.id}.png")
        ((x, y),) = sample.prompt.points
        (folder / f"{sample.id}.txt").write_text(f"{x:g},{y:g}\n")
    return folder


@pytest.fixture
def tuner(tmp_path):
    """A file of a tuner that has moved far, and the tuned module."""

    def tuner(name="samed", model="tiny", checkpoint=None, **options):
        base = load_model(model, checkpoint)
        attachment = tune(name, base.module, **options)
        shake(attachment)
        save_tuner(
            path := tmp_path / f"{name}.safetensors",
            attachment,
            spec_of(name, tuner_options(name, options), attachment, base),
        )
        return path, base.module

    return tuner


def values(**options):
    return {score.metric: score.value for score in evaluate(EvalOptions("tiny", **{"threads": 1, **options}))}


def official(module, samples, swap=None):
    """What the official predictor scores."""
    predictor, counts = SamPredictor(module), []
    with (swap or ChannelMap(16)).attach(module):
        for sample in samples:
            predictor.set_image(sample.image)
            points, labels = np.array(sample.prompt.points), np.array(sample.prompt.labels)
            counts.append(count_pixels(predictor.predict(points, labels, multimask_output=False)[0][0], sample.mask))
    return {metric.name: metric.summarise(np.array(counts)) for metric in METRICS}


def test_scores_are_those_of_the_official_predictor_with_tuner_and_swap(data, samples, tuner, tmp_path):
    swap = ChannelMap(16, [(i, 15 - i) for i in range(16)])
    swap.save(tmp_path / "swap.json")
    path, tuned = tuner(variant="original")
    expected = {
        "plain": official(redfree.load_sam("tiny"), samples),
        "swapped": official(redfree.load_sam("tiny"), samples, swap),
        "tuned": official(tuned, samples),
        "both": official(tuned, samples, swap),
    }
    found = {
        "plain": values(data=data),
        "swapped": values(data=data, swap=tmp_path / "swap.json"),
        "tuned": values(data=data, tuner=path),
        "both": values(data=data, tuner=path, swap=tmp_path / "swap.json"),
    }
    for name, scores in found.items():
        # Encoding in one batch rounds otherwise, which may move a pixel on the border.
        assert scores == pytest.approx(expected[name], abs=1e-3)
    assert len({round(scores["mIoU"], 3) for scores in found.values()}) == 4


def test_every_score_has_its_interval_and_number_of_images(data):
    for score in evaluate(EvalOptions("tiny", data=data, threads=1)):
        assert (score.n, score.split) == (4, "test")
        assert score.ci95[0] <= score.value <= score.ci95[1]


def test_a_registered_dataset_is_scored_on_its_test_split(monkeypatch):
    asked, real = [], ProceduralDataset.load

    def load(self, split, count, seed):
        asked.append(split)
        return real(self, split, count or 3, seed)

    monkeypatch.setattr(ProceduralDataset, "load", load)
    scores = evaluate(EvalOptions("tiny", dataset=DatasetUse("procedural/camouflaged"), threads=1))
    assert {score.n for score in scores} == {3}
    assert asked == ["test"]


def test_features_are_rounded_as_the_option_of_the_model_says(data, monkeypatch):
    seen, real = [], FeatureCache.encode

    def encode(self, model, images):
        seen.append(real(self, model, images))
        return seen[-1]

    monkeypatch.setattr(FeatureCache, "encode", encode)
    values(data=data)
    values(data=data, model_options={"features": "float16"})
    exact, rounded = (encoding.features.maps for encoding in seen)
    assert torch.equal(rounded, exact.half().float())
    assert not torch.equal(rounded, exact)


def test_a_tuner_of_another_model_is_refused(data, tuner, monkeypatch, checkpoint):
    path, _ = tuner()
    monkeypatch.setitem(catalogue.MODELS, "other", replace(catalogue.MODELS["tiny"], ships=False))
    with pytest.raises(UserError, match=r"was fitted on tiny, not on other; load tiny"):
        evaluate(EvalOptions("other", checkpoint=checkpoint, data=data, tuner=path, threads=1))


def test_a_tuner_of_other_weights_is_refused(data, tuner, tiny_sam, tmp_path):
    path, _ = tuner()
    with torch.no_grad():
        next(tiny_sam.parameters()).add_(1)
    save_file(tiny_sam.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"was fitted on weights \w{16} of tiny, not on \w{16}; give their checkpoint"):
        values(data=data, tuner=path, checkpoint=tmp_path / "other.safetensors")


def test_a_swap_of_other_channels_is_refused(data, tmp_path):
    ChannelMap(64, [(3, 40)]).save(tmp_path / "swap.json")
    with pytest.raises(UserError, match=r"swap.json: is for 64 channels, tiny has 16; give a swap of this model"):
        values(data=data, swap=tmp_path / "swap.json")


def test_images_come_from_one_place(data):
    for given in ({"data": data, "dataset": DatasetUse("procedural/medical")}, {}):
        with pytest.raises(UserError, match=r"^give --data FOLDER or --dataset NAME, one of them$"):
            values(**given)


def test_a_dataset_of_another_task_is_refused():
    with pytest.raises(UserError, match=r"^--dataset cifar10 is for classification; choose one for segmentation$"):
        values(dataset=DatasetUse("cifar10"))


def test_a_tuner_does_not_go_on_a_function(data, tuner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "averaged.py").write_text(
        "import torch, torch.nn.functional as F\n"
        "from redfree.models.custom import FunctionModel\n"
        "def build(checkpoint, options):\n"
        "    def encode(images): return F.avg_pool2d(torch.cat([images, 1 - images], 1), 8)\n"
        "    def decode(maps, points, labels): return (maps[:, :3] - maps[:, 3:]).mean(1)\n"
        "    return FunctionModel('averaged', 6, 64, encode, decode, 'none')\n"
    )
    path, _ = tuner()
    with pytest.raises(UserError, match=r"a tuner needs the model itself, not a function; leave out --tuner"):
        evaluate(EvalOptions("averaged:build", data=data, tuner=path, threads=1))
    assert evaluate(EvalOptions("averaged:build", data=data, threads=1))[0].n == 4


def test_a_swap_of_a_tuned_model_needs_its_tuner(data, tmp_path):
    path = tmp_path / "swap.json"
    ChannelMap(16, ((0, 1),)).save(path, tuner_sha256="c" * 64)
    expected = f"{path}: was searched on a model with the tuner {'c' * 16}; give --tuner with that file"
    with pytest.raises(UserError, match=re.escape(expected)):
        evaluate(EvalOptions("tiny", data=data, swap=path))
