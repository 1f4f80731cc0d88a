"""Files that others published: their bytes and hashes, and their check.

Where no hash is published, the one of the first download is locked beside the file and enforced from then on.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from redfree.errors import UserError
from redfree.files import sha256_of, write_text
from redfree.validation import Strict

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
HttpUrl = Annotated[str, Field(pattern="^https?://")]
HttpsUrl = Annotated[str, Field(pattern="^https://")]
Filename = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
ByteCount = Annotated[int, Field(gt=0)]


class MismatchError(UserError):
    """A file that is not the one that it should be: other bytes or another hash."""


@dataclass(frozen=True)
class PublishedFile:
    """What is known of a file before it is there.

    Attributes:
        name: what messages call it.
        filename: name of the file, the same as its publisher's.
        bytes: size of the file in bytes; None where it is not known.
        sha256: 64 hex digits; None where none is published.
        sha256_prefix: first hex digits of the SHA-256, where only these are known.
        md5: 32 hex digits, checked where no SHA-256 is published.
        md5_prefix: first hex digits of the MD5, where only these are published.
    """

    name: str
    filename: str
    bytes: int | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    md5: str | None = None
    md5_prefix: str | None = None

    @property
    def hashed(self) -> bool:
        """Whether a whole hash is published, so that the file can be told from any other."""
        return self.sha256 is not None or self.md5 is not None


class Lock(Strict):
    """The hash of a file for which none is published, as it was at the first download.

    Attributes:
        sha256: 64 hex digits.
        bytes: size of the file in bytes.
        date: day of the first download, UTC.
    """

    sha256: Sha256
    bytes: int
    date: datetime.date


def verify_file(path: Path, file: PublishedFile, lock_folder: Path | None = None, mend: str | None = None) -> str:
    """Checks that a file is the published one: its size first, then its hash.

    Reads the whole file at every call: some seconds for 2.5 GB, which keep wrong files out of the records.

    Args:
        path: an existing file, wherever it lies and whatever its name.
        file: what it should be.
        lock_folder: where `<filename>.sha256.json` stands in for a hash that is not published, and is written, trusting
            this file, if it is missing; None for the folder of the file.
        mend: what the message asks of the user; None for replacing the file.

    Returns:
        The SHA-256 of the file, 64 hex digits.

    Raises:
        MismatchError: size or hash differ from what is published or locked.
        UserError: the lock cannot be read.
    """
    size, mend = path.stat().st_size, mend or f"remove the file and get {file.name} again"
    if file.bytes not in (None, size):
        raise MismatchError(f"{path}: {size} bytes, but {file.name} has {file.bytes}; {mend}")
    found = sha256_of(path)
    if file.sha256 is not None:
        _require_hash(path, "SHA-256", found, file.sha256, mend=mend)
    elif file.md5 is not None:
        _require_hash(path, "MD5", _md5_of(path), file.md5, mend=mend)
    else:
        _require_locked(path, found, file, lock_folder or path.parent, mend)
    return found


def _require_locked(path: Path, found: str, file: PublishedFile, folder: Path, mend: str) -> None:
    lock_path = folder / f"{file.filename}.sha256.json"
    if lock_path.exists():
        lock = _read_lock(lock_path)
        _require_hash(path, "SHA-256", found, lock.sha256, mend=mend, origin=f"locked on {lock.date} in {lock_path}")
        return
    if file.sha256_prefix is not None:
        _require_hash(path, "SHA-256", found, file.sha256_prefix, mend=mend)
    if file.md5_prefix is not None:
        _require_hash(path, "MD5", _md5_of(path), file.md5_prefix, mend=mend)
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
        raise UserError(f"{path}: not a lock ({reason}); remove it to trust the file beside it anew") from None
