import datasets
import numpy as np
import pytest
from PIL import Image

from redfree.data.lazy import lazy_rows

FEATURES = datasets.Features(
    {"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Value("int64")}
)
IDS = ["b", "a", "ü 3"]


class Reader:
    """Remembers what was asked for; returns more than that."""

    def __init__(self):
        self.asked = []

    def __call__(self, id_, columns):
        self.asked.append((id_, columns))
        number = IDS.index(id_)
        return {"id": id_, "image": Image.new("RGB", (2, 3), (number, 0, 0)), "label": number}


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def rows(reader):
    return lazy_rows(IDS, FEATURES, reader)


def test_nothing_is_read_before_a_row_is(rows, reader):
    assert len(rows) == 3
    assert rows.column_names == ["id", "image", "label"]
    assert list(rows.select_columns("id")["id"]) == IDS
    assert reader.asked == []


def test_a_row_is_read_whole_and_by_itself(rows, reader):
    row = rows[1]
    assert (row["id"], row["label"]) == ("a", 1)
    assert np.asarray(row["image"])[0, 0, 0] == 1
    assert reader.asked == [("a", frozenset(FEATURES))]


@pytest.mark.parametrize("column", ["image", "label"])
def test_of_one_column_only_that_is_asked_for_though_the_id_is_none_of_it(rows, reader, column):
    row = rows.select_columns(column)[2]
    assert set(row) == {column}
    assert reader.asked == [("ü 3", frozenset({column}))]


def test_a_slice_and_an_iteration_read_in_order(rows, reader):
    assert rows[1:]["label"] == [1, 2]
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert [id_ for id_, _ in reader.asked] == [*IDS[1:], *IDS]


def test_rows_that_are_chosen_or_reordered_still_find_their_samples(rows):
    assert [row["id"] for row in rows.select([2, 0])] == ["ü 3", "b"]
    assert [row["label"] for row in rows.shard(3, 1)] == [1]


def test_a_row_is_read_anew_each_time(rows, reader):
    for _ in range(2):
        _ = rows[0]
    assert len(reader.asked) == 2


def test_an_empty_split_has_the_columns(reader):
    rows = lazy_rows([], FEATURES, reader)
    assert (len(rows), rows.column_names) == (0, list(FEATURES))
