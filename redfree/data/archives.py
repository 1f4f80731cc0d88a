"""Unpacking of archives that nobody here has made: no member leaves the folder, and no half of one is left in it."""

from __future__ import annotations

import filecmp
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from redfree.errors import UserError
from redfree.progress import track

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
# What the standard library raises on broken, cut, encrypted (RuntimeError) and oddly compressed archives.
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
)
_MEND = "it was not unpacked: get the archive from its owner"


@dataclass(frozen=True)
class _Member:
    """What an archive declares of a member; `plain`: a file or a folder, neither a link nor a device."""

    name: str
    size: int
    plain: bool


def extract(archive: Path, folder: Path) -> tuple[str, ...]:
    """Unpacks an archive into a folder.

    The members come into a hidden folder beside their places first, and are moved when all of them have come. What a
    killed process leaves is either hidden or whole, and a second call finishes it. Files that are there already and
    equal the archive's stay; folders that are there are added to.

    Args:
        archive: a .zip, .tar, .tar.gz or .tgz file.
        folder: where to; made if it is missing.

    Returns:
        Names of the top-level files and folders of the archive, sorted.

    Raises:
        UserError: the file is no such archive or is broken; a member is absolute, leads out of the folder, is a link
            or a device; the declared size exceeds the free space; or another file is in the place of a member.
    """
    if not archive.name.endswith(SUFFIXES):
        raise UserError(f"{archive}: is none of {', '.join(SUFFIXES)}; unpack it by hand into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f".{archive.name}.unpacking"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        (_unzip if archive.suffix == ".zip" else _untar)(archive, hidden)
        names = tuple(sorted(path.name for path in hidden.iterdir()))
        _move(hidden, folder, archive)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{archive}: cannot be unpacked ({reason}); remove it and get it again") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return names


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        _require_safe(archive, [_Member(i.filename, i.file_size, _is_plain(i)) for i in infos], folder)
        for info in track(infos, len(infos), f"unpack {archive.name}"):
            opened.extract(info, folder)


def _is_plain(info: zipfile.ZipInfo) -> bool:
    """By the mode that Unix archivers store in the upper half of the attributes; others leave it 0."""
    return stat.S_IFMT(info.external_attr >> 16) in {0, stat.S_IFREG, stat.S_IFDIR}


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:" if archive.suffix == ".tar" else "r:gz") as opened:
        infos = opened.getmembers()
        _require_safe(archive, [_Member(i.name, i.size, i.isreg() or i.isdir()) for i in infos], folder)
        opened.extractall(folder, members=track(infos, len(infos), f"unpack {archive.name}"), filter="data")


def _require_safe(archive: Path, members: Sequence[_Member], folder: Path) -> None:
    """Refuses an archive as a whole, before anything of it is written."""
    for member in members:
        # Read as on Windows a name has more ways out: backslashes and drives.
        path = PureWindowsPath(member.name)
        if path.anchor or ".." in path.parts:
            raise UserError(f"{archive}: member {member.name!r} leads out of the folder; {_MEND}")
        if not member.plain:
            # Links within the folder are refused as well: chains of them led round tarfile's own filter before
            # Python 3.11.13, and no dataset of the registry needs any.
            raise UserError(f"{archive}: member {member.name!r} is a link or a device; {_MEND}")
    needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{archive}: unpacks to {needed} bytes, but {folder.parent} has {free} free; free space there")


def _move(source: Path, target: Path, archive: Path) -> None:
    """Moves what a folder holds, each member at once where its place is free."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if not os.path.lexists(place):
            os.replace(path, place)
        elif path.is_dir() and place.is_dir():
            _move(path, place, archive)
        elif not (path.is_file() and place.is_file() and filecmp.cmp(path, place, shallow=False)):
            raise UserError(f"{place}: is there already and is not the one of {archive}; move it away")
