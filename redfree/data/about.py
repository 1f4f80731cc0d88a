"""Facts of the datasets: owner, terms, expected files, published counts and archives.

Imports neither torch nor Hugging Face's datasets.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from redfree.errors import unknown
from redfree.files import cache_folder
from redfree.published import ByteCount, Filename, HttpUrl, Md5, PublishedFile, Sha256
from redfree.validation import Strict, read_registry

REGISTRY = Path(__file__).with_name("datasets.yaml")

Line = Annotated[str, Field(pattern=r"^\S([^\n]*\S)?$")]
ImageCount = Annotated[int, Field(gt=0)]


class Archive(Strict):
    """A file to download and to unpack.

    Attributes:
        url: where it is downloaded from, without registration.
        filename: name of the file, the same as its owner's.
        bytes: size of the file in bytes; null where it is not known.
        md5: 32 hex digits, checked where no SHA-256 is published.
        sha256: 64 hex digits; where neither hash is published, it is locked at the first download.
        source: where url, bytes and hashes come from.
    """

    url: HttpUrl
    filename: Filename
    bytes: ByteCount | None = None
    md5: Md5 | None = None
    sha256: Sha256 | None = None
    source: Line

    def published(self) -> PublishedFile:
        """What its file is checked by."""
        return PublishedFile(self.filename, self.filename, bytes=self.bytes, md5=self.md5, sha256=self.sha256)


class About(Strict):
    """What is known of a dataset before it is there.

    Attributes:
        name: key of the registry, such as "isic2016".
        title: what its owner calls it.
        task: what its targets are for; with `huggingface` they may be for any.
        page: the owner's page; null where there is no owner but the user or redfree.
        licence: SPDX identifier, or in words; "none stated" where the owner states none.
        terms: what the owner allows or asks for.
        citation: authors, title, venue and year.
        encoding: what the files of the targets hold.
        place: where its files are: in the folder of its name under the folder of datasets (root), where the user
            says (path), or a part of an installed package or generated (package).
        tree: the expected files as the owner's archives unpack, some of each kind; empty where there are none.
        layouts: names of the layouts that are read.
        splits: published number of images with a target, of each part as the owner divides them; "all" where the owner
            does not.
        confirmed: whether the counts were found in the owner's or several independent sources.
        archives: what can be downloaded without registration; none where the owner's page is the only way.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9-]+(/[a-z]+)?$")]
    title: Line
    task: Literal["segmentation", "depth", "classification"]
    page: HttpUrl | None = None
    licence: Line
    terms: Line
    citation: Line
    encoding: Line
    place: Literal["root", "path", "package"] = "root"
    tree: str
    layouts: Annotated[tuple[Line, ...], Field(min_length=1)]
    splits: dict[str, ImageCount]
    confirmed: bool
    archives: tuple[Archive, ...] = ()

    @model_validator(mode="after")
    def _can_be_placed(self) -> About:
        if self.place == "root" and not (self.page and self.tree):
            raise ValueError(f"{self.name} lies in the folder of datasets, but lacks page or tree; give both")
        return self


@functools.cache
def abouts() -> Mapping[str, About]:
    """Every known dataset by its name, read from `datasets.yaml` on the first call."""
    return read_registry(About, REGISTRY, "datasets")


def about_of(name: str) -> About:
    """The facts of a named dataset.

    Raises:
        UserError: there is none; the nearest name is given.
    """
    if name not in abouts():
        raise unknown("dataset", name, abouts())
    return abouts()[name]


def data_folder(option: Path | None = None) -> Path:
    """The folder of datasets: the option, else REDFREE_DATA, else "datasets" in the cache.

    A dataset whose place is the root lies in the folder of its name in it.
    """
    return option or Path(os.environ.get("REDFREE_DATA") or cache_folder() / "datasets")
