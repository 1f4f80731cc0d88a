"""Listing the image files of folders, without opening them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from redfree.errors import UserError

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


def natural(name: str) -> tuple[list[str | int], str]:
    """Sorting key that compares runs of digits as numbers: 9 before 10."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def visible_files(folder: Path) -> list[Path]:
    """Files of a folder, sorted by name, without those that operating systems hide (`.DS_Store`, `._NAME`)."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def visible_folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted by name, without hidden ones and the `__MACOSX` of archives."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and path.name != "__MACOSX" and not path.name.startswith(".")
    )


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder, known by their extension, sorted by name."""
    return [path for path in visible_files(folder) if path.suffix.lower() in IMAGE_EXTENSIONS]


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by stem, in natural order.

    Raises:
        UserError: two files have the same stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise UserError(f"{path}: {found[path.stem].name} has the same name; rename or remove one of them")
        found[path.stem] = path
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))
