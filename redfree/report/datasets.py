"""The datasets by name, as a table; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from redfree.data.about import About, abouts
from redfree.data.fetch import is_here

HEADINGS = ("dataset", "task", "licence", "published images", "fetchable", "here")


def datasets_table(folder: Path) -> str:
    """Every dataset with its published splits, whether `redfree fetch` gets it, and whether it is here.

    Args:
        folder: folder of datasets.

    Raises:
        UserError: the marker of a fetched dataset cannot be read.
    """
    return tabulate([_row(about, folder) for about in abouts().values()], HEADINGS, tablefmt="simple")


def description(facts: Mapping[str, Any]) -> str:
    """What `describe` of a dataset returned, one fact a line."""
    return "\n".join(f"{name}: {_text(fact)}" for name, fact in facts.items() if fact not in (None, {}))


def _text(fact: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in fact.items()) if isinstance(fact, Mapping) else str(fact)


def _row(about: About, folder: Path) -> tuple[str, str, str, str, str, str]:
    doubt = "" if about.confirmed else " (not confirmed)"
    splits = ", ".join(f"{split} {count:,}" for split, count in about.splits.items()) + doubt
    fetchable = "-" if about.place != "root" else "yes" if about.archives else "no"
    here = "-" if about.place == "path" else "yes" if is_here(about, folder) else "no"
    return about.name, about.task, about.licence, splits or "-", fetchable, here
