"""Files that are whole or absent: atomic writing and hashing; and the folder of what can be made again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that replaces it, synced to disk, only when the block ends without error.

    Raises:
        OSError: the file cannot be written, for want of space for instance; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Has errors name a file where they name none, as those of `write`, or its temporary one, which helps nobody."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(path.parent / f".{path.name}.")):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with replace_atomically(path) as file:
        file.write(text.encode())


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(option: Path | None = None) -> Path:
    """The folder of everything that can be made again: the option, else REDFREE_CACHE, else ~/.cache/redfree."""
    return option or Path(os.environ.get("REDFREE_CACHE") or Path.home() / ".cache" / "redfree")
