"""Checkpoint files of published models: where each comes from, its bytes and hashes, and their check.

Imports no torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from redfree.errors import UserError, unknown
from redfree.files import cache_folder
from redfree.published import ByteCount, Filename, HttpsUrl, HttpUrl, Md5, PublishedFile, Sha256, verify_file
from redfree.validation import Strict, read_registry

REGISTRY = Path(__file__).with_name("checkpoints.yaml")
# Folder of features in the cache.
FEATURES = "features"

HexPrefix = Annotated[str, Field(pattern="^[0-9a-f]{6,32}$")]


class Checkpoint(Strict):
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
        md5: 32 hex digits, to recognise the file by; checked where no SHA-256 is published.
        md5_prefix: first hex digits of the MD5, where only these are published.
        licence: SPDX identifier, or the name of the licence.
        gated: whether its publisher asks for consent before a download.
        container: what the file holds: a plain state dict, one under the key "model" or "state_dict", or a
            TorchScript archive; null where it is not known.
        source: where url, bytes and hashes come from.
    """

    name: str
    family: Literal["sam", "sam2", "mobile_sam", "dinov2", "dinov3", "clip", "mae"]
    url: HttpUrl | None = None
    page: HttpsUrl | None = None
    filename: Filename
    bytes: ByteCount | None = None
    sha256: Sha256 | None = None
    sha256_prefix: HexPrefix | None = None
    md5: Md5 | None = None
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

    def published(self) -> PublishedFile:
        """What its file is checked by."""
        return PublishedFile(
            name=self.name,
            filename=self.filename,
            bytes=self.bytes,
            sha256=self.sha256,
            sha256_prefix=self.sha256_prefix,
            md5=self.md5,
            md5_prefix=self.md5_prefix,
        )


@functools.cache
def checkpoints() -> Mapping[str, Checkpoint]:
    """Every known checkpoint by its name, read from `checkpoints.yaml` on the first call."""
    return read_registry(Checkpoint, REGISTRY, "checkpoints")


def checkpoint_of(name: str) -> Checkpoint:
    """The checkpoint of a name.

    Raises:
        UserError: there is none; the nearest name is given.
    """
    if name not in checkpoints():
        raise unknown("checkpoint", name, checkpoints())
    return checkpoints()[name]


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
    return verify_file(path, checkpoint.published(), lock_folder, mend)
