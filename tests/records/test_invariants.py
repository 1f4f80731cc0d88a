import pandas as pd
import pytest
from record_samples import counts_frame, make_counts, make_failed, make_record

from redfree.records.invariants import violations
from redfree.records.schema import Score, TrainableParameters
from redfree.tasks.object_iou import OBJECT_MIOU, object_iou


def with_result(**fields):
    return lambda record: record.model_copy(update={"result": record.result.model_copy(update=fields)})


def with_guard(record, accepted):
    guard = record.result.guard.model_copy(update={"accepted": accepted})
    return with_result(guard=guard)(record)


def with_score(metric, **fields):
    def edit(record):
        scores = [s.model_copy(update=fields) if s.metric == metric else s for s in record.scores]
        return record.model_copy(update={"scores": scores})

    return edit


def with_cost(total, inserted):
    def edit(record):
        params = TrainableParameters(inserted=inserted, total=total)
        return record.model_copy(update={"cost": record.cost.model_copy(update={"trainable_params": params})})

    return edit


def with_field(**fields):
    return lambda record: record.model_copy(update=fields)


@pytest.mark.parametrize("label", ["baseline", "swap", "swap-unguarded", "zero", "oracle"])
def test_a_sound_record_violates_nothing(label):
    counts = make_counts()
    assert violations(make_record(label, counts), counts_frame(counts)) == []


def test_sound_draws_rejections_and_failures_violate_nothing():
    counts, draws = make_counts(), make_counts(draws=3)
    assert violations(make_record("random-swap", draws), counts_frame(draws)) == []
    assert violations(make_record(counts=counts, accepted=False), counts_frame(counts)) == []
    assert violations(make_failed(), pd.DataFrame()) == []


EDITS = {
    "run id": (with_field(run_id="0" * 16), "run_id 0000000000000000 is not"),
    "error": (with_field(error="late"), "status ok, but there is an error"),
    "no result": (with_field(result=None), "there is no result"),
    "no cost": (with_field(cost=None), "there is no cost"),
    "no scores": (with_field(scores=[]), "the scores are not one of each metric"),
    "score": (with_score("mIoU", value=0.5), "mIoU is 0.5, its counts give"),
    "score by a hair": (lambda r: with_score("mDice", value=r.scores[1].value + 1e-11)(r), "mDice is 0."),
    "IoU above Dice": (with_score("mIoU", value=0.99), "mIoU is above mDice"),
    "dataset IoU": (with_score("dataset_IoU", value=0.99), "dataset_IoU is above dataset_Dice"),
    "n": (with_score("mIoU", n=5), "mIoU: n is 5, but 6 images were counted"),
    "interval": (with_score("mIoU", ci95=(0.9, 1.0)), "mIoU lies outside its interval"),
    "subset": (with_result(search_best_single_score=0.76), "the best subset is worse than the best candidate alone"),
    "trained": (with_cost(total=5, inserted=0), "swap trains or inserts parameters"),
    "inserted": (with_cost(total=0, inserted=5), "swap trains or inserts parameters"),
    "twice": (with_result(pairs=[(1, 2), (1, 3)], searched_pairs=None), "pairs: a channel is written twice"),
    "itself": (with_result(pairs=[(1, 1)], searched_pairs=None), "pairs: a pair does not name two different"),
    "negative": (with_result(pairs=[(1, -1)], searched_pairs=None), "pairs: a pair does not name two different"),
    "top": (with_result(top=[(1, 2), (1, 3)]), "top: a channel is written twice"),
    "zeroed": (with_result(zeroed=[1]), "zeroed: a channel is written twice"),
    "rejected": (lambda r: with_guard(r, False), "the guard rejected, but there are pairs"),
    "accepted": (with_result(pairs=[(1, 2)]), "the pairs are not those that the search chose"),
}


@pytest.mark.parametrize(("edit", "complaint"), EDITS.values(), ids=EDITS.keys())
def test_an_edited_record_is_reported(edit, complaint):
    counts = make_counts()
    found = violations(edit(make_record(counts=counts)), counts_frame(counts))
    assert any(complaint in line for line in found), found


def test_a_baseline_with_pairs_is_reported():
    counts = make_counts()
    record = with_result(pairs=[(1, 2)])(make_record("baseline", counts))
    assert violations(record, counts_frame(counts)) == ["the baseline has pairs"]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ({"error": ""}, "status failed without an error"),
        ({"scores": make_record().scores}, "status failed with scores"),
        ({"run_id": "0" * 16}, "run_id 0000000000000000 is not"),
    ],
)
def test_an_edited_failure_is_reported(edit, complaint):
    found = violations(make_failed().model_copy(update=edit), pd.DataFrame())
    assert len(found) == 1
    assert complaint in found[0]


def edited(counts, **cells):
    """Counts with some values of the first row changed."""
    counts = counts.copy()
    for column, value in cells.items():
        counts.loc[0, column] = value
    return counts


COUNT_EDITS = {
    "size": ({"tn": 1}, "a procedural image do not sum to its 16384 pixels"),
    "negative": ({"tn": -1}, "a count is negative"),
    "nothing": ({"tp": 0, "fp": 0, "fn": 0, "tn": 0}, "sum to no pixels"),
    "IoU above Dice": ({"tp": -1, "fp": 10, "fn": 0}, "the IoU of an image is above its Dice"),
    "image twice": ({"id": "0001"}, "the draws do not count the same images, each once"),
    "draws": ({"draw": 7}, "there are counts of 2 draws, not of each draw of the result"),
}


@pytest.mark.parametrize(("cells", "complaint"), COUNT_EDITS.values(), ids=COUNT_EDITS.keys())
def test_edited_counts_are_reported(cells, complaint):
    counts = make_counts()
    found = violations(make_record(counts=counts), edited(counts_frame(counts), **cells))
    assert any(complaint in line for line in found), found


def test_draws_of_different_sizes_are_reported():
    counts = make_counts(draws=3)
    record = make_record("random-swap", counts, source="user's own images")
    found = violations(record, edited(counts_frame(counts), tn=1))
    assert found == ["the counts of an image sum to different totals in different draws"]


class TestPerSeg:
    IDS = ("cat/01", "cat/02", "dog/01", "dog/02", "dog/03", "dog/04")

    def record(self, counts, value=None, metric=OBJECT_MIOU.name):
        record = make_record(counts=counts, dataset="perseg", source="https://github.com/ZrrSkywalker")
        own = object_iou(counts[0], [id_.partition("/")[0] for id_ in self.IDS]) if value is None else value
        score = Score(
            metric=metric, definition=OBJECT_MIOU.definition, split="test", value=own, n=6, ci95=(own - 0.1, own + 0.1)
        )
        return record.model_copy(update={"scores": [*record.scores, score]})

    def frame(self, counts):
        return counts_frame(counts).assign(id=list(self.IDS))

    def test_the_owners_metric_is_one_of_its_scores(self):
        counts = make_counts()
        assert violations(self.record(counts), self.frame(counts)) == []

    def test_it_is_missed_where_it_is_not_there(self):
        counts = make_counts()
        record = self.record(counts).model_copy(update={"scores": make_record(counts=counts).scores})
        assert violations(record, self.frame(counts)) == ["status ok, but the scores are not one of each metric"]

    def test_it_is_no_score_of_other_datasets(self):
        counts = make_counts()
        scores = self.record(counts).scores
        found = violations(make_record(counts=counts).model_copy(update={"scores": scores}), counts_frame(counts))
        assert found == ["status ok, but the scores are not one of each metric"]

    def test_it_is_that_of_the_counts_of_each_object(self):
        counts = make_counts()
        assert "object_mIoU is 0.5, its counts give 0." in violations(self.record(counts, 0.5), self.frame(counts))[0]
        # Of other objects the same counts give another value.
        assert violations(self.record(counts), self.frame(counts).assign(id=list("abcdef")))[0].startswith(
            "object_mIoU"
        )


def test_missing_counts_are_reported():
    assert violations(make_record(), counts_frame(make_counts()).iloc[:0]) == ["there are no raw counts"]
