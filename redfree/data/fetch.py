"""Fetching of datasets: their archives downloaded, verified and unpacked; or how to get them by hand."""

from __future__ import annotations

import textwrap
from pathlib import Path

from pydantic import ValidationError

from redfree.data.about import About, Archive, about_of
from redfree.data.archives import extract
from redfree.download import PATIENCE, Patience, alone, download
from redfree.errors import UserError
from redfree.files import write_text
from redfree.published import Sha256
from redfree.validation import Strict

# Beside the archives, and there from the beginning of a fetch on.
MARKER = "fetched.json"


class Unpacked(Strict):
    """An archive that was unpacked.

    Attributes:
        sha256: of the archive, 64 hex digits.
        members: names of its top-level files and folders.
    """

    sha256: Sha256
    members: tuple[str, ...]


class Fetched(Strict):
    """The marker of a dataset: its archives that were unpacked, by file name."""

    archives: dict[str, Unpacked]


def fetch_dataset(name: str, folder: Path, patience: Patience = PATIENCE) -> Path | str:
    """Downloads, verifies and unpacks the archives of a dataset; does nothing where that was done before.

    Goes on where it was stopped, archive by archive, and removes nothing: the archives stay beside what they hold.

    Args:
        name: a name of `abouts()`.
        folder: folder of datasets; the dataset comes into the folder of its name in it.
        patience: timeout and number of tries of each download.

    Returns:
        The dataset's folder; or, where it is not there and there is nothing to download, what to do by hand.

    Raises:
        MismatchError: an archive has another size or hash than published or locked.
        UserError: the name is unknown, a download fails, an archive is broken or unsafe, or there is too little space.
    """
    about = about_of(name)
    root = folder / name
    if not about.archives:
        return root if about.place == "root" and is_here(about, folder) else instructions(about, folder)
    if not _complete(about, root):
        root.mkdir(parents=True, exist_ok=True)
        with alone(root / MARKER):
            for archive in about.archives:
                _fetch_archive(archive, root, patience)
    return root


def _fetch_archive(archive: Archive, root: Path, patience: Patience) -> None:
    fetched = _read(root)
    if _has(fetched, archive, root):
        return
    _write(root, fetched)
    path = root / archive.filename
    sha256 = download(archive.published(), archive.url, path, patience)
    unpacked = Unpacked(sha256=sha256, members=extract(path, root))
    _write(root, Fetched(archives={**fetched.archives, archive.filename: unpacked}))


def is_here(about: About, folder: Path) -> bool:
    """Whether a dataset can be read: fetched to the end, put there by hand, or a part of a package.

    Args:
        about: its facts.
        folder: folder of datasets.

    Raises:
        UserError: its marker cannot be read.
    """
    root = folder / about.name
    if (root / MARKER).exists():
        return _complete(about, root)
    return about.place == "package" or (
        about.place == "root" and root.is_dir() and _holds_more_than_archives(about, root)
    )


def _holds_more_than_archives(about: About, root: Path) -> bool:
    archives = {archive.filename for archive in about.archives}
    return any(path.name not in archives and not path.name.startswith(".") for path in root.iterdir())


def instructions(about: About, folder: Path) -> str:
    """How a dataset that cannot be downloaded comes to be here, in several lines.

    Args:
        about: its facts.
        folder: folder of datasets.
    """
    if about.place == "package":
        return f"{about.name}: nothing to fetch ({about.terms})"
    tree = f"\n{textwrap.indent(about.tree.rstrip(), '  ')}" if about.tree else ""
    if about.place == "path":
        return f"{about.name}: nothing to fetch, pass the path of your own{':' if tree else ''}{tree}"
    return (
        f"{about.name}: no open download; get it from its owner\n"
        f"page:    {about.page}\n"
        f"licence: {about.licence}\n"
        f"terms:   {about.terms}\n"
        f"unpack it into {folder / about.name}, so that it holds:{tree}"
    )


def _complete(about: About, root: Path) -> bool:
    fetched = _read(root)
    return all(_has(fetched, archive, root) for archive in about.archives)


def _has(fetched: Fetched, archive: Archive, root: Path) -> bool:
    unpacked = fetched.archives.get(archive.filename)
    return unpacked is not None and all((root / member).exists() for member in unpacked.members)


def _read(root: Path) -> Fetched:
    path = root / MARKER
    if not path.exists():
        return Fetched(archives={})
    try:
        return Fetched.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{path}: not a marker of redfree ({reason}); remove it and fetch the dataset again") from None


def _write(root: Path, fetched: Fetched) -> None:
    write_text(root / MARKER, fetched.model_dump_json(indent=2) + "\n")
