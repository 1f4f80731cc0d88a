"""Records on disk: one JSON file a cell, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from redfree.errors import UserError
from redfree.files import replace_atomically, sha256_of, write_text
from redfree.records.schema import SCHEMA_VERSION, Record, RecordFile, Spec

COUNTS_SUFFIX = ".counts.csv"
PAIR_SCORES_SUFFIX = ".pairs.npy.gz"


def record_path(results: Path, spec: Spec) -> Path:
    """Where a record lies: results/suite/model/dataset/method label/run_id.json."""
    dataset = spec.dataset.name.replace("/", "-")
    return results / spec.suite / spec.model.name / dataset / spec.method.label / f"{spec.run_id()}.json"


def counts_path(record: Path) -> Path:
    """Where the raw counts of a record lie: beside it."""
    return record.with_name(record.stem + COUNTS_SUFFIX)


def require_writable(folder: Path) -> None:
    """Checks that files can be written below a folder, which need not exist and is not created.

    Raises:
        UserError: the folder, or the nearest one that exists above it, cannot be written to.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"{folder}: cannot be written to ({reason}); choose another folder") from None


def write_record(path: Path, record: Record) -> None:
    """Writes a record atomically, keys sorted, without NaN."""
    data = record.model_dump(mode="json")
    write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_counts(path: Path, counts: pd.DataFrame) -> RecordFile:
    """Writes raw counts beside a record, one row a draw and image, and returns their name and hash."""
    with replace_atomically(path) as file:
        file.write(counts.to_csv(index=False, lineterminator="\n").encode())
    return RecordFile(name=path.name, sha256=sha256_of(path))


def write_pair_scores(record: Path, scores: NDArray[np.float32]) -> RecordFile:
    """Writes the score of every pair beside a record, equal bytes for equal scores; returns its name and hash."""
    path, plain = record.with_name(record.stem + PAIR_SCORES_SUFFIX), BytesIO()
    np.save(plain, scores, allow_pickle=False)
    with replace_atomically(path) as file:
        file.write(gzip.compress(plain.getvalue(), mtime=0))
    return RecordFile(name=path.name, sha256=sha256_of(path))


def read_pair_scores(path: Path, file: RecordFile) -> NDArray[np.float32]:
    """Reads the (C, C) scores of pairs that lie beside a record.

    Args:
        path: the record's path.
        file: the record's entry for them.

    Raises:
        UserError: they are missing or differ from their hash.
    """
    plain = gzip.decompress(_checked(path, file).read_bytes())
    return np.asarray(np.load(BytesIO(plain), allow_pickle=False), np.float32)


def read_record(path: Path) -> Record:
    """Reads a record, upgrading an older schema.

    Raises:
        UserError: the file is not a record, or of a newer schema than this version knows.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        version = data["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a record ({type(error).__name__}: {error})") from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version {version} is newer than {SCHEMA_VERSION}; upgrade redfree to read it")
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: field {field}: {first['msg']}") from None


def read_counts(path: Path, file: RecordFile) -> pd.DataFrame:
    """Reads the raw counts of a record.

    Args:
        path: the record's path.
        file: the record's entry for them.

    Raises:
        UserError: they are missing or differ from their hash.
    """
    return pd.read_csv(_checked(path, file), dtype={"id": str}, keep_default_na=False)


def _checked(record: Path, file: RecordFile) -> Path:
    path = record.parent / file.name
    if not path.is_file():
        raise UserError(f"{path}: missing, but {record.name} names it; restore it or remove the record")
    if sha256_of(path) != file.sha256:
        raise UserError(f"{path}: differs from the SHA-256 in {record.name}; restore it or remove the record")
    return path


def find_records(results: Path, suite: str) -> Iterator[Path]:
    """Paths of the records of a suite, in a fixed order."""
    return iter(sorted((results / suite).rglob("*.json")))
