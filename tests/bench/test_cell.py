import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from redfree.bench import cell
from redfree.bench.catalogue import METHOD_PARAMS, SEARCHING
from redfree.bench.cell import counts_table, measure, write_measurement
from redfree.bench.identity import identify
from redfree.bench.methods import METHODS
from redfree.bench.request import CellRequest
from redfree.data.procedural import ProceduralDataset
from redfree.data.schema import TASKS
from redfree.errors import UserError
from redfree.models import weights
from redfree.models.sam import SamModel
from redfree.records import statistics
from redfree.records.schema import MethodSpec, Protocol
from redfree.records.store import counts_path, read_counts, read_record
from redfree.search import evaluate
from redfree.search.log import SearchLog
from redfree.tasks.segmentation import count_pixels, image_iou
from redfree.tuners.catalogue import TUNERS

PROTOCOL = Protocol(n_search=4, n_test=3, n_pairs=2, folds=2, threads=1)
FIT = {"n_train": 4, "fit": {"epochs": 1, "learning_rate": 1e-2}}
CELLS = {
    "baseline": ("baseline", {}),
    "swap": ("swap", {}),
    "swap-unguarded": ("swap", {"guard": "none"}),
    "exhaustive": ("swap", {"strategy": "exhaustive"}),
    "exhaustive-unguarded": ("swap", {"strategy": "exhaustive", "guard": "none"}),
    "shortlist": ("swap", {"strategy": "shortlist"}),
    "racing": ("swap", {"strategy": "racing"}),
    "oracle": ("swap", {"guard": "none", "select_on": "test"}),
    "zero": ("zero", {}),
    "random-swap": ("random-swap", {"pairs": 3, "draws": 2}),
    "decoder-only": ("decoder-only", FIT),
    "samed": ("samed", FIT),
    "samed+swap": ("samed+swap", {"tuner": FIT}),
}
# The cells of the other tuners are those of test_tuning.
TRIED = [name for name in METHODS if name in CELLS or name.partition("+")[0] not in TUNERS]


@pytest.fixture(autouse=True)
def _tiny_ships(monkeypatch, tmp_path_factory, tiny_model, tiny_sam):
    """The tiny model is a shipped one, and intervals are of few resamples."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(tiny_sam.state_dict(), folder / "tiny.safetensors")
    monkeypatch.setattr(weights, "WEIGHTS", folder)
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    yield
    torch.set_num_threads(1)


class AuthorsDivision(ProceduralDataset):
    """Searches on images that are tested, and says so."""

    def load(self, split, count, seed):
        return super().load("test" if split == "search" else split, count, seed)

    def describe(self):
        return {**super().describe(), "overlap": {"train": 0, "test": 3}}


class SpyDataset(ProceduralDataset):
    """Keeps which splits were read, and can hand out another test split, or others in place of some."""

    def __init__(self, test_seed=0, **others):
        super().__init__("camouflaged")
        self.test_seed, self.others, self.read = test_seed, others, []

    def load(self, split, count, seed):
        self.read.append((split, count, seed))
        split = self.others.get(split, split)
        if split == "test" and self.test_seed:
            return super().load("validation", count, self.test_seed)
        return super().load(split, count, seed)


def request(label, seed=0, **params):
    name, fixed = CELLS.get(label, (label, {}))
    given = METHOD_PARAMS[name].model_validate({**fixed, **params}).model_dump(mode="json")
    method = MethodSpec(name=name, label=label, params=given)
    return CellRequest(
        suite="trial", model="tiny", dataset="procedural/camouflaged", seed=seed, method=method, protocol=PROTOCOL
    )


def measured(label, seed=0, dataset=None, log=None, **params):
    dataset = dataset or ProceduralDataset("camouflaged")
    asked, tuners = request(label, seed, **params), log and log / "tuners"
    return measure(asked, dataset, weights.shipped_weights("tiny"), SearchLog(log), tuner_folder=tuners)


def lasting(measurement):
    """A record without what differs from run to run."""
    data = measurement.record.model_dump(mode="json", exclude={"created_at", "phases", "env"})
    del data["cost"]["scoring_seconds"], data["cost"]["fit_seconds"]
    for step in data["result"]["trace"]:
        del step["seconds"]
    return data


@pytest.mark.parametrize("label", CELLS)
def test_a_cell_is_what_was_planned_and_repeats(label):
    first, second = measured(label), measured(label)
    spec = identify(request(label))
    assert first.record.spec == spec
    assert first.record.run_id == spec.run_id()
    assert lasting(first) == lasting(second)
    assert np.array_equal(first.counts, second.counts)
    assert json.loads(json.dumps(lasting(first))) == lasting(first)


def test_scores_are_those_of_the_counts_of_the_final_masks():
    result = measured("swap-unguarded")
    setup, (channel_map,) = result.setup, result.choice.maps
    maps = replace(setup.test.features, maps=channel_map.apply(setup.test.features.maps))
    logits = setup.model.decode(maps, [s.prompt for s in setup.test.samples])
    counts = [count_pixels((x > 0).numpy(), s.mask) for x, s in zip(logits, setup.test.samples, strict=True)]
    assert result.counts.tolist() == [[list(row) for row in counts]]
    scores = {score.metric: score for score in result.record.scores}
    assert scores["mIoU"].value == pytest.approx(image_iou(np.array(counts)).mean())
    assert set(scores) == {"mIoU", "mDice", "dataset_IoU", "dataset_Dice"}
    for score in scores.values():
        assert (score.n, score.split) == (3, "test")
        assert 0 <= score.ci95[0] <= score.value <= score.ci95[1] <= 1


def test_a_guarded_swap_records_how_it_was_chosen_and_what_it_cost(monkeypatch):
    monkeypatch.setattr(evaluate, "_UNIT_PASSES", 256)
    result = measured("exhaustive")
    record = result.record
    found, guard, cost = record.result, record.result.guard, record.cost
    assert [phase.name for phase in record.phases] == ["load", "encode", "search", "guard", "evaluate"]
    assert [step.evaluations for step in found.trace] == [1, 240, 1]
    assert len(found.top) == 2
    assert found.pairs == (found.searched_pairs if guard.accepted else [])
    assert guard.accepted == (guard.gain > guard.standard_error)
    assert cost.candidates_scored == 242
    searches, held_out = (1 + 240 + 1) * 4 + 2 * (1 + 1) * 2, 2 * 4
    assert cost.decoder_passes == searches + held_out, "candidates are scored once for the search and the guard"
    assert cost.decode_batch == 64
    assert (cost.trainable_params.inserted, cost.trainable_params.total) == (0, 0)
    assert cost.cache_bytes == (3 + 4) * 16 * 4 * 4 * 4
    assert record.spec.dataset.split_sizes == {"test": 3, "choosing": 4}
    assert record.env["threads"] == PROTOCOL.threads


@pytest.fixture
def passes(monkeypatch):
    """Decoder passes of maps and of screens as they are done; the forward and backward pass of a screen counts as 3."""
    done, decode, gradient = {"maps": 0, "screens": 0}, SamModel.decode_maps, SamModel.gradient

    def decode_maps(self, features, tokens):
        done["maps"] += len(features.maps)
        return decode(self, features, tokens)

    def screen(self, features, *given):
        done["screens"] += 3 * len(features)
        return gradient(self, features, *given)

    monkeypatch.setattr(SamModel, "decode_maps", decode_maps)
    monkeypatch.setattr(SamModel, "gradient", screen)
    return done


SEARCHED = [label for label in CELLS if request(label).selects_on]


@pytest.mark.parametrize("label", SEARCHED)
def test_the_passes_recorded_are_those_done_from_an_empty_log_and_stay_with_a_full_one(tmp_path, passes, label):
    fresh = measured(label, log=tmp_path).record
    screens = passes["screens"]
    assert fresh.cost.decoder_passes == passes["maps"] + screens - PROTOCOL.n_test > 0
    params = fresh.spec.method.params.get("swap", fresh.spec.method.params)
    assert (screens > 0) == (params.get("strategy") in ("greedy", "shortlist"))
    passes.update(maps=0, screens=0)
    again = measured(label, log=tmp_path).record
    assert passes == {"maps": PROTOCOL.n_test, "screens": 0}, "what the log holds is not computed again"
    assert (again.cost, again.result) == (fresh.cost, fresh.result)


def test_the_guard_decides_what_is_evaluated(monkeypatch):
    verdicts = {}
    for accepted in (True, False):
        judge = METHODS["swap"].choose.__globals__["cross_validate"]
        with monkeypatch.context() as patch:
            patch.setitem(
                METHODS["swap"].choose.__globals__,
                "cross_validate",
                lambda *args, real=judge, answer=accepted: replace(real(*args), accepted=answer),
            )
            verdicts[accepted] = measured("swap").record.result
    assert verdicts[True].pairs == verdicts[True].searched_pairs == verdicts[False].searched_pairs != []
    assert verdicts[False].pairs == []


@pytest.mark.parametrize("strategy", ["greedy", "shortlist", "racing", "exhaustive"])
def test_a_search_is_shared_between_cells_with_its_price(tmp_path, strategy):
    guarded, free = (measured(label, log=tmp_path, strategy=strategy).record for label in ("swap", "swap-unguarded"))
    assert free.result.searched_pairs == guarded.result.searched_pairs
    assert min(step.seconds for step in free.result.trace) > 0
    assert free.result.trace == guarded.result.trace
    assert free.cost.scoring_seconds == pytest.approx(sum(step.seconds for step in free.result.trace))


def test_random_draws_are_distinct_seeded_and_all_evaluated():
    first, other = measured("random-swap"), measured("random-swap", seed=1)
    draws = first.record.result.draws
    assert first.counts.shape == (2, 3, 4)
    assert [len({i for i, _ in draw}) for draw in draws] == [3, 3]
    assert all(i != j for draw in draws for i, j in draw)
    assert len({str(draw) for draw in [*draws, *other.record.result.draws]}) == 4


def test_the_baseline_changes_nothing():
    record = measured("baseline").record
    result = record.result
    assert record.cost.decode_batch is None
    assert (result.pairs, result.zeroed, result.guard, result.trace) == ([], [], None, [])


@pytest.fixture
def trained_on(monkeypatch):
    """Fingerprints of the images that tuners are fitted to."""
    seen, real = [], cell.tune

    def spy(tuner, model, samples, *given):
        seen.extend(sample.fingerprint() for sample in samples)
        return real(tuner, model, samples, *given)

    monkeypatch.setattr(cell, "tune", spy)
    return seen


@pytest.mark.parametrize("name", TRIED)
def test_no_method_that_selects_on_search_sees_the_test_split(monkeypatch, trained_on, name):
    seen, dataset, method = [], SpyDataset(), METHODS[name]

    def spy(situation, params):
        read = list(dataset.read)
        choice = method.choose(situation, params)
        assert dataset.read == read, "a method must not read images of its own"
        seen.extend(vars(situation).values())
        return choice

    monkeypatch.setitem(METHODS, name, replace(method, choose=spy))
    label = next((label for label, (cell_name, _) in CELLS.items() if cell_name == name), name)
    result = measured(label, dataset=dataset)
    test = {sample.fingerprint() for sample in result.setup.test.samples}
    assert len(test) == 3
    assert not any(value is result.setup.test for value in seen)
    choosing = [s.fingerprint() for value in seen if hasattr(value, "samples") for s in value.samples]
    assert len(choosing) == (4 if name in SEARCHING else 0)
    assert len(trained_on) == (4 if name in CELLS and result.tuned else 0)
    assert len(set(trained_on) | set(choosing)) == len(trained_on) + len(choosing)
    assert not test & {*choosing, *trained_on}


@pytest.mark.parametrize("label", ["samed", "samed+swap"])
def test_a_tuner_is_fitted_to_the_search_images_only_where_that_is_asked_for(trained_on, label):
    fit = {**FIT, "train_on": "search"}
    params = {"tuner": fit} if "+" in label else fit
    dataset = SpyDataset()
    result = measured(label, dataset=dataset, **params)
    searched = [sample.fingerprint() for sample in splits_of("search", 4)]
    assert trained_on == searched
    assert {split for split, _, _ in dataset.read} == {"test", "search"}
    if "+" in label:
        assert [sample.fingerprint() for sample in result.setup.choosing.samples] == searched
    assert not {sample.fingerprint() for sample in result.setup.test.samples} & set(trained_on)


def splits_of(split, count, seed=0):
    return [TASKS["segmentation"][1](row) for row in ProceduralDataset("camouflaged").load(split, count, seed)]


@pytest.mark.parametrize(
    ("label", "split"), [("swap", "search"), ("samed", "train"), ("samed+swap", "train"), ("samed+swap", "search")]
)
def test_a_test_image_that_trains_or_chooses_is_refused(trained_on, label, split):
    with pytest.raises(UserError, match=rf"test image (\S+) shows the same as {split} image \1; remove one of the two"):
        measured(label, dataset=SpyDataset(**{split: "test"}))
    assert trained_on == [], "nothing is fitted before the images are checked"


def test_a_division_that_overlaps_and_says_so_is_measured_but_trains_on_no_test_image(trained_on):
    found = measured("swap-unguarded", dataset=AuthorsDivision("camouflaged"))
    ids = [{sample.id for sample in part.samples} for part in (found.setup.choosing, found.setup.test)]
    assert ids[0] & ids[1]
    with pytest.raises(UserError, match="shows the same as train image"):
        measured("samed", dataset=AuthorsDivision("camouflaged"), train_on="search")
    assert trained_on == []


@pytest.mark.parametrize("label", [label for label in CELLS if label != "oracle"])
def test_another_test_split_changes_no_choice(label):
    one, other = measured(label), measured(label, dataset=SpyDataset(test_seed=9))
    assert one.record.spec.dataset.split_sha256["test"] != other.record.spec.dataset.split_sha256["test"]
    assert lasting(one)["result"] == lasting(other)["result"]
    assert not np.array_equal(one.counts, other.counts)


def test_the_oracle_chooses_on_the_test_split():
    dataset = SpyDataset()
    result = measured("oracle", dataset=dataset)
    assert result.setup.choosing is result.setup.test
    assert {split for split, _, _ in dataset.read} == {"test"}
    assert result.record.spec.dataset.split_sha256["choosing"] == result.record.spec.dataset.split_sha256["test"]
    other = measured("oracle", dataset=SpyDataset(test_seed=9))
    assert lasting(result)["result"] != lasting(other)["result"]


def test_the_test_split_is_the_same_for_every_seed_and_the_search_split_is_not():
    splits = [identify(request("swap", seed)).dataset.split_sha256 for seed in range(3)]
    assert len({split["test"] for split in splits}) == 1
    assert len({split["choosing"] for split in splits}) == 3
    assert measured("swap-unguarded", 1).record.spec.dataset.split_sha256 == splits[1]


def test_every_part_of_a_request_is_part_of_its_identity():
    base = request("swap")
    others = [
        request("swap", 1),
        request("swap-unguarded"),
        base.model_copy(update={"suite": "other"}),
        base.model_copy(update={"dataset": "procedural/medical"}),
        *(
            base.model_copy(update={"protocol": PROTOCOL.model_copy(update={field: value})})
            for field, value in {
                **{"n_search": 5, "n_test": 4, "n_pairs": 3, "folds": 3, "batch": 32},
                **{"decoder": "shared", "search_dtype": "bfloat16"},
            }.items()
        ),
    ]
    ids = {identify(r).run_id() for r in (base, *others)}
    assert len(ids) == len(others) + 1


def test_what_is_written_can_be_read_back(tmp_path):
    result, path = measured("random-swap"), tmp_path / "a" / "record.json"
    write_measurement(path, result)
    record = read_record(path)
    assert record.model_dump(exclude={"files"}) == result.record.model_dump(exclude={"files"})
    table = read_counts(path, record.files["counts"])
    assert counts_path(path).is_file()
    assert table.equals(counts_table(result))
    assert table["draw"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["id"].tolist() == [s.id for s in result.setup.test.samples] * 2
    assert table[["tp", "fp", "fn", "tn"]].to_numpy().tolist() == result.counts.reshape(-1, 4).tolist()
    assert set(table[["tp", "fp", "fn", "tn"]].sum(axis=1)) == {128 * 128}


def test_titles_name_the_cell():
    assert request("oracle", 2).title == "tiny/procedural/camouflaged/oracle/2"
    assert {label: request(label).selects_on for label in CELLS} == {
        "baseline": None,
        "swap": "search",
        "swap-unguarded": "search",
        "exhaustive": "search",
        "exhaustive-unguarded": "search",
        "shortlist": "search",
        "racing": "search",
        "oracle": "test",
        "zero": "search",
        "random-swap": None,
        "decoder-only": None,
        "samed": None,
        "samed+swap": "search",
    }
