import json
from pathlib import Path

import pytest
from record_samples import make_spec

from redfree.records import schema
from redfree.records.schema import DatasetSpec, Protocol, Spec

# Records of before there were options of datasets and of prompts.
COMMITTED = sorted((Path(__file__).parents[2] / "results" / "search").rglob("*.json"))
LATER = {"prompt_components": "largest", "prompt_seed": 3, "box_jitter": 5, "outside_points": "keep"}


def test_committed_records_keep_their_run_ids():
    assert len(COMMITTED) > 30
    for path in COMMITTED:
        found = json.loads(path.read_text())
        assert not set(LATER) & set(found["spec"]["protocol"])
        assert "options" not in found["spec"]["dataset"]
        spec = Spec.model_validate(found["spec"])
        assert spec.run_id() == found["run_id"] == path.stem
        assert spec.model_dump(mode="json") == found["spec"], "it would be written as it was"


def test_fields_that_came_later_are_written_only_where_they_are_set():
    assert not set(LATER) & set(Protocol().model_dump(mode="json"))
    for name, value in LATER.items():
        given = Protocol(**{name: value})
        assert set(LATER) & set(given.model_dump(mode="json")) == {name}
        assert Protocol.model_validate(given.model_dump(mode="json")) == given
        default = Protocol.model_fields[name].default
        assert Protocol(**{name: default}).model_dump(mode="json") == Protocol().model_dump(mode="json")


def test_the_fields_that_are_left_out_are_those_that_came_later():
    assert set(schema._LATER_PROTOCOL_FIELDS) == set(LATER)
    assert set(Protocol.model_fields) == set(Protocol().model_dump()) | set(LATER)


@pytest.mark.parametrize(("name", "value"), LATER.items())
def test_each_of_them_changes_the_run_id(name, value):
    spec = make_spec()
    changed = spec.model_copy(update={"protocol": spec.protocol.model_copy(update={name: value})})
    assert changed.run_id() != spec.run_id()


class TestDatasetOptions:
    def dataset(self, **options):
        return make_spec().dataset.model_copy(update={"options": options})

    def test_none_are_left_out_and_others_written(self):
        assert "options" not in self.dataset().model_dump(mode="json")
        assert self.dataset(min_area=1024).model_dump(mode="json")["options"] == {"min_area": 1024}

    def test_survive_the_disk(self):
        for options in ({}, {"min_area": 1024, "search_from": "cod10k"}):
            written = self.dataset(**options).model_dump_json()
            assert DatasetSpec.model_validate_json(written).options == options

    def test_change_the_run_id(self):
        spec = make_spec()
        ids = {
            spec.model_copy(update={"dataset": self.dataset(**options)}).run_id()
            for options in ({}, {"min_area": 1024}, {"min_area": 1})
        }
        assert len(ids) == 3
        assert spec.run_id() in ids
