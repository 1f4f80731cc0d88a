import numpy as np
import pytest
import torch
from fitworld import Killed, interrupted
from safetensors.torch import save_file
from segment_anything import SamPredictor

import redfree
from redfree.bench.catalogue import METHOD_PARAMS, TunerParams
from redfree.bench.cell import counts_table, measure
from redfree.bench.identity import identify
from redfree.bench.request import CellRequest
from redfree.bench.tuning import tune
from redfree.data.procedural import ProceduralDataset
from redfree.errors import UserError
from redfree.files import sha256_of
from redfree.models import weights
from redfree.records import statistics
from redfree.records.invariants import violations
from redfree.records.schema import MethodSpec, Protocol
from redfree.search.log import SearchLog
from redfree.tasks.segmentation import count_pixels
from redfree.tuners import fit_job
from redfree.tuners.artefact import read_tuner
from redfree.tuners.catalogue import TUNERS

DATASET = "procedural/camouflaged"
PROTOCOL = Protocol(n_search=4, n_test=3, n_pairs=2, folds=2, threads=1)
FIT = {"n_train": 4, "fit": {"epochs": 2, "batch": 2, "learning_rate": 1e-3}}


@pytest.fixture(autouse=True)
def _tiny_ships(monkeypatch, tmp_path_factory, tiny_model, tiny_sam):
    """The tiny model is a shipped one, and intervals are of few resamples."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(tiny_sam.state_dict(), folder / "tiny.safetensors")
    monkeypatch.setattr(weights, "WEIGHTS", folder)
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def fits(monkeypatch):
    """The attachments that are fitted, in order."""
    asked, real = [], fit_job.fit

    def spy(model, attachment, *given):
        asked.append(attachment)
        return real(model, attachment, *given)

    monkeypatch.setattr(fit_job, "fit", spy)
    return asked


def request(name, seed=0, **changes):
    fit = {**FIT, **changes}
    params = {"tuner": fit, "swap": {"guard": "none"}} if "+" in name else fit
    method = MethodSpec(
        name=name, label=name, params=METHOD_PARAMS[name].model_validate(params).model_dump(mode="json")
    )
    return CellRequest(suite="trial", model="tiny", dataset=DATASET, seed=seed, method=method, protocol=PROTOCOL)


def measured(name, folder=None, seed=0, file=None, log=None, **changes):
    asked, file = request(name, seed, **changes), file or weights.shipped_weights("tiny")
    return measure(asked, asked.open_dataset(), file, SearchLog(log), tuner_folder=folder)


def untuned(log=None):
    """The swap without a tuner."""
    method = MethodSpec(name="swap", label="swap", params={"guard": "none"})
    asked = request("samed").model_copy(update={"method": method})
    return measure(asked, asked.open_dataset(), weights.shipped_weights("tiny"), SearchLog(log))


@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_measures_and_its_record_is_sound(tmp_path, name):
    found = measured(name, tmp_path)
    record, fit, cost = found.record, found.record.result.fit, found.record.cost
    assert violations(record, counts_table(found)) == []
    assert [phase.name for phase in record.phases] == ["load", "fit", "encode", "evaluate"]
    (path,) = tmp_path.glob("*.safetensors")
    spec, state = read_tuner(path)
    assert (fit.artefact_sha256, cost.artefact_bytes) == (sha256_of(path), path.stat().st_size)
    attachment = found.tuned.attachment
    moved = sum(parameter.numel() for parameter in found.setup.model.module.parameters() if parameter.requires_grad)
    inserted = sum(value.numel() for value in attachment.inserted.values())
    declared = inserted + sum(value.numel() for value in attachment.freed.values())
    assert (cost.trainable_params.inserted, cost.trainable_params.total) == (inserted, moved)
    assert (
        (spec.inserted, spec.trained) == (inserted, sum(value.numel() for value in state.values())) == (inserted, moved)
    )
    assert fit.declared_params == declared >= moved > 0
    assert (len(fit.losses), fit.steps, fit.best_epoch) == (2, 4, None)
    assert 0 < cost.fit_seconds == found.tuned.report.seconds < 60
    assert (spec.tuner, spec.checkpoint_sha256) == (name, record.spec.model.checkpoint_sha256)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    assert record.spec.dataset.split_sizes == {"test": 3, "train": 4}


@pytest.mark.parametrize("name", ["decoder-only", "samed", "sam-adapter", "conv-lora", "sam-cobot"])
def test_an_equal_cell_finds_the_fitted_file_and_gives_the_same_bits(tmp_path, fits, name):
    first = measured(name, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = measured(name, tmp_path)
    assert len(fits) == 1, "what an equal cell fitted is not fitted again"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert torch.equal(again.setup.test.features.maps, first.setup.test.features.maps)
    assert np.array_equal(again.counts, first.counts)
    assert again.record.scores == first.record.scores
    assert again.record.result == first.record.result
    assert again.record.cost == first.record.cost, "fit_seconds are those of the fit, not those of reading its file"
    assert again.tuned.report == first.tuned.report


def test_a_fit_without_a_folder_leaves_nothing_and_gives_the_same_bits(tmp_path, fits):
    kept, free = measured("samed", tmp_path), measured("samed")
    assert len(fits) == 2
    assert free.record.result == kept.record.result
    assert np.array_equal(free.counts, kept.counts)


def test_a_swap_on_top_finds_the_tuner_of_the_tuner_alone(tmp_path, fits):
    alone, both = measured("samed", tmp_path), measured("samed+swap", tmp_path)
    assert len(fits) == 1
    assert both.record.result.fit == alone.record.result.fit
    assert both.record.result.searched_pairs
    assert alone.record.result.pairs == []
    assert [phase.name for phase in both.record.phases] == ["load", "fit", "encode", "search", "evaluate"]
    assert violations(both.record, counts_table(both)) == []
    assert torch.equal(both.setup.test.features.maps, alone.setup.test.features.maps)
    identity = redfree.ChannelMap(both.setup.model.channels)
    assert np.array_equal(both.setup.test.count(identity), alone.counts[0])
    assert both.record.run_id != alone.record.run_id


OTHERS = {
    "seed": {"seed": 1},
    "option": {"options": {"rank": 2}},
    "variant": {"options": {"variant": "original"}},
    "epochs": {"fit": {**FIT["fit"], "epochs": 1}},
    "images": {"n_train": 3},
    "split": {"train_on": "search"},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_whatever_is_different_is_fitted_anew(tmp_path, fits, changes):
    one, other = measured("samed", tmp_path), measured("samed", tmp_path, **changes)
    assert len(fits) == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert other.record.result.fit.artefact_sha256 != one.record.result.fit.artefact_sha256
    assert other.record.run_id != one.record.run_id


def test_other_base_weights_are_tuned_anew(tmp_path, fits, tiny_sam):
    one = measured("samed", tmp_path / "tuners")
    with torch.no_grad():
        next(tiny_sam.mask_decoder.parameters()).add_(0.01)
    save_file(tiny_sam.state_dict(), tmp_path / "other.safetensors")
    other = measured("samed", tmp_path / "tuners", file=tmp_path / "other.safetensors")
    assert len(fits) == 2
    assert other.record.result.fit.artefact_sha256 != one.record.result.fit.artefact_sha256
    shas = {found.setup.model.checkpoint_sha256 for found in (one, other)}
    assert len(shas) == 2


@pytest.mark.parametrize("name", ["decoder-only", "samed", "conv-lora"])
def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path, monkeypatch, name):
    whole = measured(name, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupted(patch, 3)  # of four steps, after the state that the first epoch left
        with pytest.raises(Killed):
            measured(name, tmp_path / "killed")
    assert [path.suffix for path in (tmp_path / "killed").iterdir()] == [".fit"]
    with monkeypatch.context() as patch:
        asked = interrupted(patch, 99)
        resumed = measured(name, tmp_path / "killed")
        assert len(asked) == 2, "the first epoch is not taken again"
    assert resumed.record.result == whole.record.result
    assert np.array_equal(resumed.counts, whole.counts)
    files = [{path.name: path.read_bytes() for path in folder.glob("*.safetensors")} for folder in tmp_path.iterdir()]
    assert files[0] == files[1]
    assert not list((tmp_path / "killed").glob("*.fit"))


def test_a_process_that_dies_before_the_report_is_written_fits_again(tmp_path, fits):
    first = measured("samed", tmp_path)
    (report,) = tmp_path.glob("*.json")
    report.unlink()
    assert measured("samed", tmp_path).record.result == first.record.result
    assert len(fits) == 2


def test_a_search_on_features_that_tuning_leaves_alone_does_not_find_the_scores_of_the_plain_model(tmp_path):
    plain = untuned(tmp_path / "log")
    tuned = measured("decoder-only+swap", tmp_path / "tuners", log=tmp_path / "log")
    fresh = measured("decoder-only+swap", tmp_path / "tuners")
    assert torch.equal(plain.setup.choosing.features.maps, tuned.setup.choosing.features.maps)
    assert plain.setup.choosing._fingerprints == tuned.setup.choosing._fingerprints
    assert plain.setup.choosing._context != tuned.setup.choosing._context
    found = tuned.record.result
    assert found.search_baseline_score != plain.record.result.search_baseline_score
    assert found.search_score == fresh.record.result.search_score
    assert found.searched_pairs == fresh.record.result.searched_pairs


def test_two_fits_of_one_tuner_do_not_share_scores(tmp_path):
    cells = [measured("decoder-only+swap", log=tmp_path, fit={**FIT["fit"], "epochs": epochs}) for epochs in (1, 2)]
    free = measured("decoder-only+swap")
    assert cells[0].record.result.search_baseline_score != cells[1].record.result.search_baseline_score
    assert cells[1].record.result.search_baseline_score == free.record.result.search_baseline_score


def test_features_on_disk_of_the_plain_model_are_not_those_of_the_tuned_one(tmp_path):
    features = tmp_path / "features"
    asked = [request("samed"), request("samed").model_copy(update={"method": MethodSpec(name="baseline", label="b")})]
    file = weights.shipped_weights("tiny")
    kept = [measure(one, one.open_dataset(), file, SearchLog(), feature_folder=features) for one in (*asked, *asked)]
    maps = [one.setup.test.features.maps for one in kept]
    assert not torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[1], maps[3])
    assert [one.setup.images_read for one in kept] == [0, 0, 3, 3]
    assert torch.equal(maps[0], measured("samed").setup.test.features.maps)


PLANNED = {
    "some": ({}, 4),
    "search": ({"train_on": "search", "n_train": None}, 4),
    "all": ({"n_train": None}, 5),
}


@pytest.mark.parametrize(("changes", "count"), PLANNED.values(), ids=PLANNED)
@pytest.mark.parametrize("name", ["samed", "decoder-only+swap"])
def test_a_cell_is_what_was_planned(monkeypatch, name, changes, count):
    real = ProceduralDataset.load
    # Scenes have no end; here there are five.
    monkeypatch.setattr(ProceduralDataset, "load", lambda self, split, n, seed: real(self, split, n or 5, seed))
    spec, found = identify(request(name, **changes)), measured(name, **changes).record
    assert found.spec == spec
    assert found.run_id == spec.run_id()
    choosing = {"choosing": 4} if "+" in name else {}
    assert spec.dataset.split_sizes == {"test": 3, "train": count, **choosing}


def official(module, sample):
    predictor = SamPredictor(module)
    predictor.set_image(sample.image)
    points, labels = np.array(sample.prompt.points), np.array(sample.prompt.labels)
    return predictor.predict(points, labels, multimask_output=False, return_logits=True)[0][0]


@pytest.mark.parametrize("name", TUNERS)
def test_after_a_cell_the_model_decodes_with_the_tuned_weights(name):
    found = measured(name)
    model, test = found.setup.model, found.setup.test
    ours = [logits.numpy() for logits in model.decode(test.features, [sample.prompt for sample in test.samples])]
    for sample, logits, counts in zip(test.samples, ours, found.counts[0].tolist(), strict=True):
        assert np.abs(official(model.module, sample) - logits).max() < 1e-5 * max(1, np.abs(logits).max())
        assert tuple(counts) == count_pixels(logits > 0, sample.mask)
    assert np.abs(official(redfree.load_sam("tiny"), test.samples[0]) - ours[0]).max() > 1e-3, "it has learnt"


def test_a_function_of_the_users_is_not_tuned():
    class Function:
        name = "pooled:build"

    with pytest.raises(UserError, match=r"^pooled:build: a tuner needs the model itself, not a function; choose one"):
        tune(("samed", TunerParams()), Function(), [], 0, None, Function)
