"""The command line: one verb a function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from redfree.cli_data import data_verbs, reading_speeds
from redfree.cli_options import (
    Cache,
    DataRoot,
    Only,
    Results,
    Set,
    Shard,
    Weights,
    cache_of,
    dataset_of,
    overrides,
    settings_of,
    shard_of,
    use_data_root,
)
from redfree.cli_tuners import evaluate, merge, tuner_costs
from redfree.errors import UserError

if TYPE_CHECKING:
    from redfree.bench.adapt import AdaptOptions
    from redfree.bench.run import Outcome

# One of each family and size of input, trained where the weights ship.
EXACT = ("sam_nano", "sam2_nano", "dino_nano", "sam_vit_b", "sam2_hiera_tiny", "sam2.1_hiera_tiny", "dinov2_vits14")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for verb in data_verbs:
    app.command()(verb)
app.command("eval")(evaluate)
app.command()(merge)


@app.command("list")
def list_names(
    kind: Annotated[str | None, typer.Argument(help="suites, models, datasets or methods, in full.")] = None,
    weights: Weights = None,
    data_root: DataRoot = None,
) -> None:
    """Lists suites, models, datasets and methods; of models and datasets also sizes, licences and what is here."""
    from redfree.bench.catalogue import METHOD_PARAMS
    from redfree.data.about import abouts, data_folder
    from redfree.errors import unknown
    from redfree.models.catalogue import MODELS
    from redfree.models.checkpoints import weights_folder
    from redfree.report.datasets import datasets_table
    from redfree.report.models import models_table

    suites = sorted(path.stem for path in Path("benchmarks").glob("*.yaml"))
    groups = {"suites": suites, "models": MODELS, "datasets": abouts(), "methods": METHOD_PARAMS}
    if kind is not None and kind not in groups:
        raise unknown("kind", kind, groups)
    if kind == "models":
        typer.echo(models_table(weights_folder(weights)))
        return
    if kind == "datasets":
        typer.echo(datasets_table(data_folder(data_root)))
        return
    for each in [kind] if kind else groups:
        typer.echo(f"{each}: {', '.join(groups[each]) or '(none here; run inside a checkout)'}")


@app.command()
def plan(
    suite: str,
    results: Results = Path("results"),
    only: Only = None,
    shard: Shard = "1/1",
    data_root: DataRoot = None,
    settings: Set = None,
) -> None:
    """Shows the cells of a suite and which of them have a record."""
    from redfree.bench.run import Job, survey
    from redfree.bench.suite import load_suite
    from redfree.bench.suite import plan as expand

    use_data_root(data_root)
    found = survey(expand(load_suite(suite, overrides(settings)), only, shard_of(shard)), results)
    jobs = [one for one in found if isinstance(one, Job)]
    for one in found:
        state = ("done" if one.done else "open") if isinstance(one, Job) else "blocked"
        typer.echo(f"{one.spec.run_id() if isinstance(one, Job) else '-' * 16}  {state}  {one.request.title}")
    blocked = f", {len(found) - len(jobs)} blocked: see `redfree check {suite}`" if len(found) > len(jobs) else ""
    typer.echo(f"{len(found)} cells, {sum(not job.done for job in jobs)} open{blocked}")


@app.command()
def run(
    suite: str,
    results: Results = Path("results"),
    cache: Cache = None,
    policy: Annotated[str, typer.Option(help="only-missing, always or never.")] = "only-missing",
    parallel: Annotated[int, typer.Option(min=1, help="Cells measured at a time.")] = 1,
    only: Only = None,
    shard: Shard = "1/1",
    feature_cache: Annotated[bool, typer.Option(help="Keep features on disk and take them from there.")] = False,
    data_root: DataRoot = None,
    settings: Set = None,
) -> None:
    """Measures the cells of a suite, one process and one record each; goes on where it was stopped."""
    from redfree.bench import run as execution
    from redfree.bench.request import require_measurable
    from redfree.bench.suite import load_suite
    from redfree.bench.suite import plan as expand
    from redfree.errors import unknown
    from redfree.models.checkpoints import FEATURES
    from redfree.records.store import require_writable

    if policy not in execution.POLICIES:
        raise unknown("policy", policy, execution.POLICIES)
    require_writable(cache_of(cache))
    use_data_root(data_root)
    loaded = load_suite(suite, overrides(settings))
    require_measurable(loaded.task)
    requests = expand(loaded, only, shard_of(shard))
    jobs = execution.jobs_of(requests, results)
    features = cache_of(cache) / FEATURES if feature_cache else None
    outcomes = execution.run(jobs, results, cache_of(cache), policy, _say, parallel=parallel, features=features)
    bad = [outcome for outcome in outcomes if outcome.status in ("failed", "oom")]
    typer.echo(f"{len(outcomes)} cells, {len(bad)} failed")
    if bad:
        raise typer.Exit(1)


def _say(outcome: Outcome) -> None:
    reason = f"  {outcome.error}" if outcome.error else ""
    typer.echo(f"{outcome.status:8}  {outcome.job.request.title}  {outcome.job.spec.run_id()}{reason}")


@app.command()
def adapt(
    out: Annotated[Path, typer.Option(help="Folder of swap.json, record and report.")],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "sam_nano",
    data: Annotated[Path | None, typer.Option(help="Images and masks, split by seed: folder or .jsonl.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A name of `redfree list datasets`, in place of --data.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of --dataset; the one of its name in --data-root.")] = None,
    dataset_options: Annotated[list[str] | None, typer.Option("--dataset-option", help="search_pool=30.")] = None,
    data_root: DataRoot = None,
    search: Annotated[Path | None, typer.Option(help="Images that choose, in place of --data.")] = None,
    test: Annotated[Path | None, typer.Option(help="Images that are scored, in place of --data.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights file, in place of the one by name.")] = None,
    options: Annotated[list[str] | None, typer.Option("--option", help="Of the model: attention=official.")] = None,
    n_search: Annotated[int | None, typer.Option(min=2, help="Images that choose; 50, or half of fewer.")] = None,
    n_pairs: Annotated[int, typer.Option(min=1, max=16, help="N of the Top-N.")] = 10,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the guard.")] = 5,
    method: Annotated[str, typer.Option(help="swap, a tuner such as samed, or samed+swap.")] = "swap",
    fit: Annotated[list[str] | None, typer.Option(help="Of a tuner's training: epochs=50, batch=2.")] = None,
    tuner_options: Annotated[list[str] | None, typer.Option("--tuner-option", help="rank=8.")] = None,
    guard: Annotated[str, typer.Option(help="one_standard_error, k_fold, split_half or none.")] = "one_standard_error",
    strategy: Annotated[str, typer.Option(help="greedy, shortlist, racing or exhaustive.")] = "greedy",
    mask_threshold: Annotated[int | None, typer.Option(min=1, help="Masks: values from this on are object.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split and folds.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    feature_cache: Annotated[bool, typer.Option(help="Keep features on disk; `redfree cache` shows them.")] = True,
    cache: Cache = None,
) -> None:
    """Searches a swap on your own images and says whether it can be trusted."""
    from redfree.bench.adapt import AdaptOptions
    from redfree.bench.catalogue import STRATEGY_OPTIONS, GuardRule
    from redfree.errors import unknown

    for kind, given, known in (("guard", guard, get_args(GuardRule)), ("strategy", strategy, STRATEGY_OPTIONS)):
        if given not in known:
            raise unknown(kind, given, known)
    use_data_root(data_root)
    chosen = AdaptOptions(
        dataset=dataset_of(dataset, root, dataset_options),
        model=model,
        out=out,
        checkpoint=checkpoint,
        model_options=settings_of("--option", options, "attention=official"),
        data=data,
        search=search,
        test=test,
        n_search=n_search,
        n_pairs=n_pairs,
        folds=folds,
        guard=guard,
        strategy=strategy,
        mask_threshold=mask_threshold,
        seed=seed,
        threads=threads,
        feature_cache=feature_cache,
        method=method,
        fit=settings_of("--fit", fit, "epochs=50"),
        tuner_options=settings_of("--tuner-option", tuner_options, "rank=8"),
    )
    typer.echo((_adapt_swap if method == "swap" else _adapt_tuned)(chosen, cache_of(cache)))
    typer.echo(f"report: {out / 'report.md'}")


def _adapt_swap(options: AdaptOptions, cache: Path) -> str:
    from redfree.bench.adapt import adapt, write_adaptation
    from redfree.report.adaptation import verdict, write_report

    found = adapt(options, cache)
    write_adaptation(found, options.out)
    write_report(found, options.out)
    return verdict(found)


def _adapt_tuned(options: AdaptOptions, cache: Path) -> str:
    from redfree.bench.adapt_tuned import adapt_tuned, write_tuned_adaptation
    from redfree.report.adapt_tuned import verdict, write_report

    found = adapt_tuned(options, cache)
    write_tuned_adaptation(found, options.out)
    write_report(found, options.out)
    return verdict(found)


def _title(suite: str) -> str:
    import yaml

    named = (file for file in sorted(Path("benchmarks").glob("*.yaml")) if f"\nsuite: {suite}\n" in file.read_text())
    path: Path | None = next(named, Path("benchmarks") / f"{suite}.yaml")
    while path is not None and path.is_file():
        data = yaml.safe_load(path.read_text("utf-8"))
        if "title" in data:
            return str(data["title"])
        path = path.parent / data["_base_"] if isinstance(data.get("_base_"), str) else None
    return suite


@app.command()
def table(
    suite: str, results: Results = Path("results"), out: Annotated[Path, typer.Option()] = Path("leaderboards")
) -> None:
    """Writes the leaderboard of a suite from its records and shows its main figures."""
    from redfree.records.store import require_writable
    from redfree.report.anytime import draw_anytime
    from redfree.report.plot import draw_gains
    from redfree.report.strategies import compares_strategies
    from redfree.report.table import leaderboard, load_frame, main_figures, write_leaderboard

    require_writable(out)
    title = _title(suite)
    frame = load_frame(results, suite)
    board = leaderboard(frame)
    written = [*write_leaderboard(frame, suite, title, out), out / f"{suite}.png"]
    draw_gains(board, title, written[-1])
    if compares_strategies(frame):
        written.append(out / f"{suite}-anytime.png")
        draw_anytime(frame, title, written[-1])
    typer.echo(main_figures(board))
    typer.echo("\n".join(str(path) for path in written))


@app.command()
def speed(
    out: Annotated[Path, typer.Option(help="Folder of the JSON and Markdown files.")] = Path("leaderboards"),
    shape: Annotated[list[str] | None, typer.Option(help="Whose decoder: sam_vit_b, sam_nano256, sam_nano.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="Whose encoder, in place of decoders: sam_vit_b.")] = None,
    tuners: Annotated[list[str] | None, typer.Option(help="Tuners on a model, in place of decoders: sam_nano.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads; may be repeated.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates a round.")] = 32,
    reading: Annotated[bool, typer.Option("--reading", help="Reading of samples, in place of decoders.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, after one that warms up.")] = 5,
) -> None:
    """Times our decoders, the attention of our encoders, or our reading, against the plain code, side by side.

    With --tuners it times training steps of every tuner beside encoding for a swap, by default with 2 threads.
    """
    from redfree.errors import unknown
    from redfree.measure.decoder_speed import SHAPES, measure_decoders
    from redfree.measure.encoder_speed import ENCODERS, measure_encoders
    from redfree.models.loading import promptable_names
    from redfree.records.store import require_writable
    from redfree.report.decoders import write_decoder_speeds
    from redfree.report.encoders import write_encoder_speeds

    asked = (("shape", shape, SHAPES), ("encoder", encoder, ENCODERS), ("model", tuners, promptable_names()))
    for kind, names, known in asked:
        for name in names or []:
            if name not in known:
                raise unknown(kind, name, known)
    require_writable(out)
    if tuners:
        typer.echo(tuner_costs(tuners, threads or [2], rounds, out))
        return
    counts = threads or [1, 2]
    if reading:
        typer.echo(reading_speeds(counts, rounds, out))
        return
    if encoder:
        encoders = [row for name in encoder for count in counts for row in measure_encoders(name, count, rounds)]
        typer.echo(write_encoder_speeds(encoders, rounds, out))
        return
    shapes = shape or list(SHAPES)
    found = [row for name in shapes for count in counts for row in measure_decoders(name, count, candidates, rounds)]
    typer.echo(write_decoder_speeds(found, candidates, rounds, out))


@app.command()
def exactness(
    models: Annotated[list[str] | None, typer.Argument(help="Names of models; one of each family.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of exactness.json and exactness.md.")] = Path("leaderboards"),
) -> None:
    """Shows how far our encoding and decoding are from the official code, on random weights where none are here."""
    from redfree.measure.exactness import measure_exactness
    from redfree.models.loading import check_name
    from redfree.progress import track
    from redfree.records.store import require_writable
    from redfree.report.exactness import write_exactness

    for name in (names := models or list(EXACT)):
        check_name(name)
    require_writable(out)
    rows = [row for name in track(names, len(names), "compare") for row in measure_exactness(name)]
    typer.echo(write_exactness(rows, out))


@app.command()
def pretrain(
    recipe: Annotated[Path, typer.Argument(help="A recipe of benchmarks/pretrain/.")],
    out: Annotated[Path, typer.Option(help="Folder of checkpoint and weights; training goes on from it.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Trains a nano model by its recipe."""
    import torch

    from redfree.models.recipes import follow_recipe, read_recipe
    from redfree.records.store import require_writable

    chosen = read_recipe(recipe)
    require_writable(out)
    torch.set_num_threads(threads)
    typer.echo(str(follow_recipe(chosen, out)))


def main() -> None:
    """Runs the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except ChildProcessError as error:
        typer.echo(f"error: {error}; free memory, or leave it out", err=True)
        sys.exit(2)
    except OSError as error:
        reason = error.strerror or str(error)
        typer.echo(f"error: {error.filename or 'a file'}: {reason}; free space or choose another folder", err=True)
        sys.exit(2)
