"""Checkpoint files of published models: where each comes from, its bytes and hashes, and their check.

Imports no torch.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from redfree.errors import UserError, unknown
from redfree.files import sha256_of, write_text
from redfree.validation import validate

REGISTRY = Path(__file__).with_name("checkpoints.yaml")
# Folder of features in the cache.
FEATURES = "features"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
HexPrefix = Annotated[str, Field(pattern="^[0-9a-f]{6,32}$")]


class MismatchError(UserError):
    """A file that is not the checkpoint that it should be: other bytes or another hash."""


class Checkpoint(BaseModel):
    """A file of weights that others published.

    Attributes:
        name: key of the registry, such as "sam_vit_b".
        family: the code that published it.
        url: where it is downloaded from, http or https; null where nothing can be downloaded without asking.
        page: where to ask for a file that has no url.
        filename: name of the file, the same as its publisher's.
        bytes: size of the file in bytes; null where it is not known.
        sha256: 64 hex digits; null where none is published: then it is locked at the first download.
        sha256_prefix: first hex digits of the SHA-256, where only these are known.
        md5: 32 hex digits, to recognise the file by; what is checked is the SHA-256.
        md5_prefix: first hex digits of the MD5, where only these are published.
        licence: SPDX identifier, or the name of the licence.
        gated: whether its publisher asks for consent before a download.
        container: what the file holds: a plain state dict, one under the key "model" or "state_dict", or a
            TorchScript archive; null where it is not known.
        source: where url, bytes and hashes come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: Literal["sam", "sam2", "mobile_sam", "dinov2", "dinov3", "clip", "mae"]
    url: Annotated[str, Field(pattern="^https?://")] | None = None
    page: Annotated[str, Field(pattern="^https://")] | None = None
    filename: str = Field(pattern=r"^\w[\w.-]*$")
    bytes: Annotated[int, Field(gt=0)] | None = None
    sha256: Sha256 | None = None
    sha256_prefix: HexPrefix | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    md5_prefix: HexPrefix | None = None
    licence: str
    gated: bool = False
    container: Literal["plain", "model", "state_dict", "jit"] | None = None
    source: str

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Checkpoint:
        if self.url is None and self.page is None:
            raise ValueError(f"{self.name} has neither url nor page; give one of them")
        if self.gated and self.url is not None:
            raise ValueError(f"{self.name} is gated, so nothing may be downloaded; give page in place of url")
        return self


class Lock(BaseModel):
    """The hash of a checkpoint for which none is published, as it was at the first download.

    Attributes:
        sha256: 64 hex digits.
        bytes: size of the file in bytes.
        date: day of the first download, UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    bytes: int
    date: datetime.date


@functools.cache
def checkpoints() -> Mapping[str, Checkpoint]:
    """Every known checkpoint by its name, read from `checkpoints.yaml` on the first call."""
    entries = yaml.safe_load(REGISTRY.read_text("utf-8"))["checkpoints"]
    where = REGISTRY.name
    known = {name: validate(Checkpoint, {"name": name, **entry}, f"{where}: {name}") for name, entry in entries.items()}
    return MappingProxyType(known)


def checkpoint_of(name: str) -> Checkpoint:
    """The checkpoint of a name.

    Raises:
        UserError: there is none; the nearest name is given.
    """
    if name not in checkpoints():
        raise unknown("checkpoint", name, checkpoints())
    return checkpoints()[name]


def cache_folder(option: Path | None = None) -> Path:
    """The folder of everything that can be made again: the option, else REDFREE_CACHE, else ~/.cache/redfree."""
    return option or Path(os.environ.get("REDFREE_CACHE") or Path.home() / ".cache" / "redfree")


def weights_folder(option: Path | None = None) -> Path:
    """The folder of downloaded checkpoints: the option, else REDFREE_WEIGHTS, else "weights" in the cache."""
    return option or Path(os.environ.get("REDFREE_WEIGHTS") or cache_folder() / "weights")


def checkpoint_path(name: str, folder: Path) -> Path:
    """Where a checkpoint lies in a folder of checkpoints.

    Raises:
        UserError: there is no checkpoint of that name.
    """
    return folder / checkpoint_of(name).filename


def verified(path: Path, checkpoint: Checkpoint, lock_folder: Path | None = None, mend: str | None = None) -> str:
    """Checks that a file is a checkpoint: its size first, then its hash.

    Reads the whole file at every call: some seconds for 2.5 GB, which keep wrong weights out of the records.

    Args:
        path: the file, wherever it lies and whatever its name.
        checkpoint: what it should be.
        lock_folder: where `<filename>.sha256.json` stands in for a hash that is not published, and is written, trusting
            this file, if it is missing; null for the folder of the file.
        mend: what the message asks of the user; null for replacing the file.

    Returns:
        The SHA-256 of the file, 64 hex digits.

    Raises:
        MismatchError: size or hash differ from what is published or locked.
        UserError: there is no such file, or its lock cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file; give the path of an existing one")
    size, mend = path.stat().st_size, mend or f"remove the file and get {checkpoint.name} again"
    if checkpoint.bytes not in (None, size):
        raise MismatchError(f"{path}: {size} bytes, but {checkpoint.name} has {checkpoint.bytes}; {mend}")
    found = sha256_of(path)
    if checkpoint.sha256 is not None:
        _require_hash(path, "SHA-256", found, checkpoint.sha256, mend=mend)
    else:
        _require_locked(path, found, checkpoint, lock_folder or path.parent, mend)
    return found


def _require_locked(path: Path, found: str, checkpoint: Checkpoint, folder: Path, mend: str) -> None:
    lock_path = folder / f"{checkpoint.filename}.sha256.json"
    if lock_path.exists():
        lock = _read_lock(lock_path)
        _require_hash(path, "SHA-256", found, lock.sha256, mend=mend, origin=f"locked on {lock.date} in {lock_path}")
        return
    if checkpoint.sha256_prefix is not None:
        _require_hash(path, "SHA-256", found, checkpoint.sha256_prefix, mend=mend)
    if checkpoint.md5_prefix is not None:
        _require_hash(path, "MD5", _md5_of(path), checkpoint.md5_prefix, mend=mend)
    today = datetime.datetime.now(datetime.UTC).date()
    write_text(lock_path, Lock(sha256=found, bytes=path.stat().st_size, date=today).model_dump_json(indent=2) + "\n")


def _require_hash(
    path: Path, algorithm: str, found: str, expected: str, *, mend: str, origin: str = "published"
) -> None:
    if not found.startswith(expected):
        raise MismatchError(f"{path}: {algorithm} is {found}, expected {expected} ({origin}); {mend}")


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _read_lock(path: Path) -> Lock:
    try:
        return Lock.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{path}: not a lock ({reason}); remove it to trust the checkpoint beside it anew") from None
