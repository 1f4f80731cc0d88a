"""The verbs of the command line that are about tuners."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redfree.cli_options import DataRoot, dataset_of, settings_of, use_data_root


def evaluate(
    model: Annotated[str, typer.Option(help="Name of the model.")] = "sam_nano",
    data: Annotated[Path | None, typer.Option(help="Images and masks: folder or .jsonl.")] = None,
    dataset: Annotated[str | None, typer.Option(help="In place of --data: its test split.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of --dataset.")] = None,
    dataset_options: Annotated[list[str] | None, typer.Option("--dataset-option", help="search_pool=30.")] = None,
    tuner: Annotated[Path | None, typer.Option(help="A tuner.safetensors.")] = None,
    swap: Annotated[Path | None, typer.Option(help="A swap.json.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights file, in place of the one by name.")] = None,
    options: Annotated[list[str] | None, typer.Option("--option", help="Of the model: attention=official.")] = None,
    mask_threshold: Annotated[int | None, typer.Option(min=1, help="Masks: values from this on are object.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    data_root: DataRoot = None,
) -> None:
    """Scores a model on images, with a fitted tuner and a swap on it."""
    from redfree.bench.evaluation import EvalOptions
    from redfree.bench.evaluation import evaluate as score
    from redfree.report.markdown import interval, percent

    use_data_root(data_root)
    chosen = EvalOptions(
        model=model,
        checkpoint=checkpoint,
        model_options=settings_of("--option", options, "attention=official"),
        tuner=tuner,
        swap=swap,
        data=data,
        dataset=dataset_of(dataset, root, dataset_options),
        mask_threshold=mask_threshold,
        threads=threads,
    )
    for one in score(chosen):
        typer.echo(f"{one.metric:14}  {percent(one.value):>6}  {interval(*one.ci95)}  {one.n} images")


def merge(
    tuner: Annotated[Path, typer.Argument(help="A tuner.safetensors.")],
    out: Annotated[
        Path, typer.Option(help="The safetensors file to write: weights of the plain model.", dir_okay=False)
    ],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights that it was fitted on; those by name.")] = None,
) -> None:
    """Folds a fitted tuner into the weights of its model, where that is exact: --checkpoint takes the file."""
    from redfree.records.store import require_writable
    from redfree.tuners.merging import write_merged

    require_writable(out.parent)
    write_merged(tuner, out, checkpoint)
    typer.echo(str(out))


def tuner_costs(models: list[str], threads: list[int], rounds: int, out: Path) -> str:
    """Measures and writes what every tuner takes on some models, beside a swap; returns the table."""
    from redfree.measure.tuner_cost import count_parameters, measure_tuners
    from redfree.report.tuners import write_tuner_costs
    from redfree.tuners.catalogue import TUNERS

    costs = [row for name in models for count in threads for row in measure_tuners(name, count, rounds)]
    return write_tuner_costs(costs, [count_parameters("sam_vit_b", tuner) for tuner in TUNERS], rounds, out)
