"""Hugging Face datasets whose rows are read only when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets


def lazy_rows(
    ids: Sequence[str], features: datasets.Features, read: Callable[[str, frozenset[str]], dict[str, Any]]
) -> datasets.Dataset:
    """Rows that hold nothing but ids until they are read.

    `rows.select_columns("id")` reads ids alone, and `rows.select_columns("image")` images without their targets.

    Args:
        ids: ids of the rows, in order.
        features: columns that a row has once it is read; "id" is one of them.
        read: from an id and the columns asked for to at least these.
    """

    def transform(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        if set(batch) == {"id"}:
            return dict(batch)
        found = [read(id_, frozenset(batch)) for id_ in next(iter(batch.values()))]
        return {column: [row[column] for row in found] for column in batch}

    # Every column holds the id, so that reading one column alone still finds its sample.
    columns = {name: list(ids) for name in features}
    stored = datasets.Features(dict.fromkeys(features, datasets.Value("string")))
    return datasets.Dataset.from_dict(columns, features=stored).with_transform(transform)
