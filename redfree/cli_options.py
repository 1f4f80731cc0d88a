"""Options that several verbs of the command line share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redfree.errors import UserError

if TYPE_CHECKING:
    from redfree.data.registry import DatasetUse

Results = Annotated[Path, typer.Option(help="Folder of the records.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of the search log; REDFREE_CACHE or ~/.cache/redfree.")]
Weights = Annotated[Path | None, typer.Option(help="Folder of checkpoints; REDFREE_WEIGHTS or weights in the cache.")]
Only = Annotated[str | None, typer.Option(help="Only cells whose model/dataset/method/seed contains this text.")]
Shard = Annotated[str, typer.Option(help="i/n: the i-th of n parts, from 1.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of datasets; REDFREE_DATA or datasets in the cache.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a field: protocol.n_search=20.")]


def cache_of(option: Path | None) -> Path:
    """The folder of everything that can be made again."""
    from redfree.files import cache_folder

    return cache_folder(option)


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        UserError: the text is not of this form, or i not from 1 to n.
    """
    part, _, total = text.partition("/")
    if not (part.isdecimal() and total.isdecimal() and 1 <= int(part) <= int(total)):
        raise UserError(f"--shard {text!r} is not i/n with 1 <= i <= n, such as 1/4")
    return int(part), int(total)


def settings_of(flag: str, settings: list[str] | None, example: str) -> dict[str, Any]:
    """The values of NAME=VALUE settings, read as YAML.

    Args:
        flag: what they were given with, for messages.
        settings: the settings.
        example: a setting that is right, for messages.

    Raises:
        UserError: a setting has no name or value, or is not YAML.
    """
    import yaml

    pairs = [setting.partition("=") for setting in settings or []]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise UserError(f"{flag} {name!r} is not NAME=VALUE, such as {example}")
    try:
        return {name: yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{flag}: a value is not YAML ({reason}); quote it, or write lists as [1, 2]") from None


def overrides(settings: list[str] | None) -> dict[str, Any]:
    """The fields of a suite that --set changes."""
    return settings_of("--set", settings, "protocol.n_search=20")


def use_data_root(option: Path | None) -> None:
    """Makes a folder the folder of datasets, of this process and of those that it starts."""
    if option is not None:
        os.environ["REDFREE_DATA"] = str(option.absolute())


def dataset_of(name: str | None, root: str | None, options: list[str] | None) -> DatasetUse | None:
    """The dataset that options of the command line name; None where they name none.

    Raises:
        UserError: a root or an option is given without a dataset.
    """
    from redfree.data.registry import DatasetUse

    if name is None and (root or options):
        raise UserError("--root and --dataset-option belong to --dataset NAME; add it, or remove them")
    absolute = str(Path(root).absolute()) if root else None
    return DatasetUse(name, settings_of("--dataset-option", options, "search_pool=30"), absolute) if name else None
