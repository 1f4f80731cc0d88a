import numpy as np
import pytest

from redfree.bench.outcome import scores_of
from redfree.records import statistics
from redfree.tasks.object_iou import object_iou
from redfree.tasks.segmentation import METRICS

IDS = ["cat/01", "cat/02", "dog/01", "dog/02", "dog/03"]
NAMES = [metric.name for metric in METRICS]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


@pytest.fixture
def counts():
    return np.random.default_rng(0).integers(1, 100, (2, len(IDS), 4))


def test_perseg_has_its_owners_metric_beside_the_others(counts):
    scores = {score.metric: score for score in scores_of(counts, IDS, "perseg")}
    assert list(scores) == [*NAMES, "object_mIoU"]
    objects = [id_.partition("/")[0] for id_ in IDS]
    expected = np.mean([object_iou(draw, objects) for draw in counts])
    own = scores["object_mIoU"]
    assert own.value == pytest.approx(expected)
    assert own.value != pytest.approx(scores["mIoU"].value), "images weigh by their pixels, and objects the same"
    assert (own.n, own.split) == (5, "test")
    assert own.ci95[0] <= own.value <= own.ci95[1]
    assert "eval_mioU.py" in own.definition


def test_the_other_scores_do_not_depend_on_it(counts):
    with_it, without = scores_of(counts, IDS, "perseg"), scores_of(counts, IDS, "isic2016")
    assert [score.metric for score in without] == NAMES
    assert with_it[: len(NAMES)] == without
