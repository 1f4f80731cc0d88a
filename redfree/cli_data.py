"""The verbs of the command line that are about data, weights and the cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from redfree.cli_options import (
    Cache,
    DataRoot,
    Only,
    Results,
    Set,
    Weights,
    cache_of,
    dataset_of,
    overrides,
    use_data_root,
)
from redfree.errors import UserError


def fetch(
    names: Annotated[list[str], typer.Argument(help="Names of checkpoints and datasets: sam_vit_b, isic2016.")],
    weights: Weights = None,
    data_root: DataRoot = None,
) -> None:
    """Downloads checkpoints and datasets, checks them, and shows their paths; goes on where it was stopped.

    Of a dataset without an open download it says how to get it by hand, and exits with 1 unless it is here.
    """
    from redfree.data.about import abouts, data_folder
    from redfree.data.fetch import fetch_dataset
    from redfree.errors import unknown
    from redfree.models.checkpoints import checkpoints, weights_folder
    from redfree.models.fetch import fetch as fetch_checkpoint

    known = {**checkpoints(), **abouts()}
    for name in names:
        if name not in known:  # better said before gigabytes than after them
            raise unknown("checkpoint or dataset", name, known)
    missing = False
    for name in names:
        if name in abouts():
            found = fetch_dataset(name, data_folder(data_root))
            missing |= isinstance(found, str) and abouts()[name].place == "root"
        else:
            found = fetch_checkpoint(name, weights_folder(weights))
        typer.echo(str(found))
    if missing:
        raise typer.Exit(1)


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove the features; scores and weights stay.")] = False,
    folder: Cache = None,
) -> None:
    """Shows what features on disk take, and removes them on demand."""
    from redfree.models import feature_cache
    from redfree.models.checkpoints import FEATURES

    features = cache_of(folder) / FEATURES
    if clear:
        feature_cache.clear(features)
    count, size = feature_cache.size(features)
    typer.echo(f"{features}: features of {count} images, {size / 2**20:,.1f} MiB")


def sheet(
    dataset: str,
    out: Annotated[Path, typer.Option(help="The PNG to write.", dir_okay=False)],
    split: Annotated[str, typer.Option(help="search, train, validation or test.")] = "train",
    count: Annotated[int, typer.Option(min=1)] = 32,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data_root: DataRoot = None,
) -> None:
    """Draws a contact sheet of a dataset: every image above itself with outline and prompt."""
    from redfree.data.registry import DatasetUse, open_dataset, task_of
    from redfree.data.schema import read_samples
    from redfree.records.store import require_writable
    from redfree.report.sheet import write_sheet

    use_data_root(data_root)
    if (task := task_of(DatasetUse(dataset))) != "segmentation":
        raise UserError(f"dataset {dataset}: is for {task}; a sheet shows masks, so name one for segmentation")
    require_writable(out.parent)
    write_sheet(list(read_samples(open_dataset(dataset).load(split, count, seed))), out)
    typer.echo(str(out))


def verify(
    dataset: Annotated[str, typer.Argument(help="A name of `redfree list datasets`.")],
    root: Annotated[
        str | None, typer.Option(help="Its folder as unpacked; the one of its name in --data-root.")
    ] = None,
    options: Annotated[list[str] | None, typer.Option("--dataset-option", help="mask_threshold=128.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Reads every file of a dataset and says what is there, how it is divided, and what is wrong."""
    from redfree.data.registry import open_dataset
    from redfree.report.datasets import description

    use_data_root(data_root)
    use = dataset_of(dataset, root, options)
    assert use is not None
    found = open_dataset(use)
    defects = found.verify()
    for defect in defects:
        typer.echo(defect)
    typer.echo(f"{len(defects)} defects")
    with suppress(UserError):  # that the images cannot be divided is one of the defects
        typer.echo(description(found.describe()))
    if defects:
        raise typer.Exit(1)


def check(
    suite: str,
    results: Results = Path("results"),
    cache: Cache = None,
    only: Only = None,
    quick: Annotated[bool, typer.Option("--quick", help="Neither read every file nor time the models.")] = False,
    data_root: DataRoot = None,
    settings: Set = None,
) -> None:
    """Says whether a suite can run here: data, weights, memory, disk, and the time it would take at most."""
    from redfree.bench.check import check as look
    from redfree.bench.suite import load_suite, plan

    use_data_root(data_root)
    requests = plan(load_suite(suite, overrides(settings)), only)
    findings = look(requests, cache_of(cache), results, verify=not quick, probes=not quick)
    for finding in findings:
        typer.echo(f"{'ready  ' if finding.ready else 'MISSING'}  {finding.subject}: {finding.detail}")
    lacking = sum(not finding.ready for finding in findings)
    typer.echo(f"{suite}: {lacking} of {len(findings)} findings stand in the way" if lacking else f"{suite}: ready")
    if lacking:
        raise typer.Exit(1)


def reading_speeds(processes: list[int], rounds: int, out: Path) -> str:
    """Measures and writes how fast samples are read and in what memory; returns the tables."""
    from redfree.measure.reading_speed import MARKS, measure_memory, measure_reading
    from redfree.report.reading import write_reading

    memory = measure_memory(MARKS[-1], MARKS)  # first, while nothing else has grown this process
    return write_reading([row for count in processes for row in measure_reading(count, rounds)], memory, rounds, out)


data_verbs = (fetch, verify, check, cache, sheet)
