import json

import numpy as np
import pytest
from pydantic import ValidationError
from record_samples import counts_frame, make_counts, make_failed, make_record, save

from redfree.errors import UserError
from redfree.files import sha256_of
from redfree.records.schema import SCHEMA_VERSION, Score
from redfree.records.store import (
    counts_path,
    find_records,
    read_counts,
    read_pair_scores,
    read_record,
    record_path,
    require_writable,
    write_pair_scores,
    write_record,
)


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path, make_record(), make_counts())


def rewrite(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_record_survives_the_disk(tmp_path, saved):
    record = read_record(saved)
    assert record == make_record().model_copy(update={"files": record.files})
    assert record.spec.run_id() == record.run_id == saved.stem
    assert saved == tmp_path / "demo/sam_nano/procedural-medical/swap" / f"{record.run_id}.json"
    assert read_counts(saved, record.files["counts"]).equals(counts_frame(make_counts()))


def test_the_same_record_gives_the_same_bytes_with_sorted_keys(tmp_path):
    for name in ("a.json", "b.json"):
        write_record(tmp_path / name, make_record())
    first = (tmp_path / "a.json").read_bytes()
    assert first == (tmp_path / "b.json").read_bytes()
    keys = list(json.loads(first))
    assert keys == sorted(keys)


def test_failed_cells_are_records(tmp_path):
    path = save(tmp_path, make_failed(status="oom"))
    assert (read_record(path).status, read_record(path).scores) == ("oom", [])


def test_the_run_id_depends_on_every_part_of_the_spec():
    variants = [make_record(), make_record("zero"), make_record(seed=1), make_record(weights="c" * 64)]
    assert len({record.run_id for record in variants}) == len(variants)


def test_find_records_is_sorted_and_skips_other_suites(tmp_path):
    paths = [save(tmp_path, make_record(seed=seed), make_counts()) for seed in range(4)]
    save(tmp_path, make_record(suite="other"))
    assert list(find_records(tmp_path, "demo")) == sorted(paths)
    assert list(find_records(tmp_path, "none")) == []


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_a_newer_schema_is_refused(saved):
    rewrite(saved, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(UserError) as error:
        read_record(saved)
    one_line(error, saved.name, f"schema_version {SCHEMA_VERSION + 1} is newer than {SCHEMA_VERSION}; upgrade redfree")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"run_id": 1}', "\ufffe"])
def test_what_is_not_a_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_record(path)
    one_line(error, "record.json: not a record")


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a record"):
        read_record(tmp_path / "none.json")


def test_an_unknown_field_is_refused(saved):
    rewrite(saved, surprise=1)
    with pytest.raises(UserError) as error:
        read_record(saved)
    one_line(error, saved.name, "field surprise: Extra inputs are not permitted")


def test_a_value_of_another_kind_is_refused_with_its_place(saved):
    data = json.loads(saved.read_text())
    data["scores"][0]["value"] = "high"
    saved.write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        read_record(saved)
    one_line(error, saved.name, "field scores.0.value")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_model_takes_no_nan(value):
    score = make_record().scores[0].model_dump()
    with pytest.raises(ValidationError):
        Score.model_validate({**score, "value": value})


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_no_nan_is_read(saved, value):
    saved.write_text(saved.read_text().replace('"seconds": 1.5', f'"seconds": {value}', 1))
    with pytest.raises(UserError, match=r"field phases\.0\.seconds"):
        read_record(saved)


def test_no_nan_is_written(saved):
    before, record = saved.read_bytes(), make_record()
    score = record.scores[0].model_copy(update={"value": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(saved, record.model_copy(update={"scores": [score]}))
    assert saved.read_bytes() == before


def test_nan_of_the_machine_is_written_as_missing(saved):
    write_record(saved, make_record().model_copy(update={"env": {"memory_bytes": float("nan")}}))
    assert read_record(saved).env == {"memory_bytes": None}


def test_missing_counts_are_refused(saved):
    record = read_record(saved)
    (saved.parent / record.files["counts"].name).unlink()
    with pytest.raises(UserError) as error:
        read_counts(saved, record.files["counts"])
    one_line(error, f"missing, but {saved.name} names it")


def test_altered_counts_are_refused(saved):
    record = read_record(saved)
    counts = saved.parent / record.files["counts"].name
    counts.write_text(counts.read_text().replace("0001", "0009"))
    with pytest.raises(UserError) as error:
        read_counts(saved, record.files["counts"])
    one_line(error, f"differs from the SHA-256 in {saved.name}")


def test_results_that_cannot_be_written_to_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(UserError) as error:
        require_writable(file / "results")
    one_line(error, "file/results: cannot be written to (Not a directory); choose another folder")


def test_writable_results_are_not_created_by_asking(tmp_path):
    require_writable(tmp_path / "new" / "results")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_name_with_a_slash_is_one_folder(tmp_path):
    path = record_path(tmp_path, make_record().spec)
    assert path.parent.parent.name == "procedural-medical"
    assert counts_path(path) == path.with_name(f"{make_record().run_id}.counts.csv")


def test_pair_scores_come_back_and_equal_scores_give_equal_bytes(tmp_path):
    scores = np.random.default_rng(0).random((5, 5)).astype(np.float32)
    record, twin = tmp_path / "a.json", tmp_path / "b.json"
    file, other = write_pair_scores(record, scores), write_pair_scores(twin, scores)
    assert file.sha256 == other.sha256 == sha256_of(record.with_name(file.name))
    assert (read_pair_scores(record, file) == scores).all()
