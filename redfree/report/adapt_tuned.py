"""What `redfree adapt --method TUNER` found, as a page."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from redfree.bench.adapt_tuned import TunedAdaptation
from redfree.channels import ChannelMap
from redfree.files import write_text
from redfree.report.adaptation import guard_verdict, phase_table, score_table
from redfree.report.examples import Segmentation, draw_examples
from redfree.report.markdown import with_interval
from redfree.report.plot import save_png


def verdict(found: TunedAdaptation) -> str:
    """One sentence: whether tuning was worth it against the swap alone."""
    gain, (low, high) = found.worth
    worth = "was worth it" if low > 0 else "did harm" if high < 0 else "made no difference that these images can show"
    method, shown = found.tuned.record.spec.method.name, with_interval(gain, low, high)
    return f"{method} against the swap alone, {len(found.tuned_counts)} test images: {shown} mIoU; tuning {worth}."


def render_page(found: TunedAdaptation) -> str:
    """The report as Markdown."""
    record, alone = found.tuned.record, found.alone
    assert record.cost is not None
    method = record.spec.method.name
    tuner = method.partition("+")[0]
    rows = [
        ("unchanged model", alone.before),
        ("swap alone (`swap-alone.json`)", alone.after),
        (f"{tuner} (`tuner.safetensors`)", found.tuner_counts),
    ]
    if method != tuner:
        rows.append((f"{method} (`tuner.safetensors`, `swap.json`)", found.tuned_counts))
    parameters = record.cost.trainable_params
    return f"""# {method} for {record.spec.model.name} on {record.spec.dataset.name}

{verdict(found)}

Scores on {len(found.tuned_counts)} test images, which had no part in fitting or choosing anything (percent):

{score_table(rows, alone.before)}

![what each makes of test images](report.png)

Rows are test images at fixed quantiles of the gain of {method} over the swap alone.

![loss of the fit](loss.png)

The tuner was fitted to the {record.spec.protocol.n_search} search images, and swaps were chosen on the same ones.

{_guards(found)}

- parameters inserted: {parameters.inserted:,}; moved by the optimiser: {parameters.total:,}
- fit: {record.cost.fit_seconds or 0:.1f} s; file: {(record.cost.artefact_bytes or 0) / 2**20:.2f} MiB
- run {record.run_id}, seed {record.spec.seed}, weights {record.spec.model.checkpoint_sha256[:16]}

{phase_table(record)}

    redfree eval --model {record.spec.model.name} --tuner tuner.safetensors --swap swap.json --data FOLDER
"""


def _guards(found: TunedAdaptation) -> str:
    """What the guards say of the swap alone, and of the one on the tuned model where there is one."""
    lines = [f"- Swap alone: {guard_verdict(found.alone.measurement.choice.guard, 'swap-alone.json')}"]
    if "+" in found.tuned.record.spec.method.name:
        lines.append(f"- Swap on the tuned model: {guard_verdict(found.tuned.choice.guard)}")
    return "\n".join(lines)


def draw_picture(found: TunedAdaptation, path: Path) -> None:
    """Draws test images at fixed quantiles of the gain over the swap alone: image, unchanged, swap, tuner, both."""
    alone, tuned = found.alone.measurement, found.tuned
    identity = ChannelMap(alone.setup.model.channels)
    tuner, plus, _ = tuned.record.spec.method.name.partition("+")
    ways = [
        Segmentation("unchanged", alone.setup.test, identity, found.alone.before),
        Segmentation("swap alone", alone.setup.test, alone.choice.maps[0], found.alone.after),
        Segmentation(tuner, tuned.setup.test, identity, found.tuner_counts),
    ]
    if plus:
        ways.append(Segmentation("with the swap on top", tuned.setup.test, tuned.choice.maps[0], found.tuned_counts))
    draw_examples(ways, 1, verdict(found), path)


def draw_losses(found: TunedAdaptation, path: Path) -> None:
    """Draws the training loss of each epoch, and which epoch was taken."""
    assert found.tuned.tuned is not None
    report = found.tuned.tuned.report
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    taken = report.best_epoch or len(report.losses)
    axes.plot(range(1, len(report.losses) + 1), report.losses, marker=".")
    axes.axvline(taken, linestyle=":", color="grey")
    axes.set(xlabel=f"epoch; taken: {taken}", ylabel="training loss, Dice + BCE")
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_png(figure, path, dpi=90)


def write_report(found: TunedAdaptation, out: Path) -> None:
    """Writes `report.png`, `loss.png` and `report.md`."""
    draw_picture(found, out / "report.png")
    draw_losses(found, out / "loss.png")
    write_text(out / "report.md", render_page(found))
