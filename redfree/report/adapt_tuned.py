"""What `redfree adapt --method TUNER` found, as a page."""

from __future__ import annotations

from pathlib import Path

from redfree.bench.adapt_tuned import TunedAdaptation
from redfree.files import write_text
from redfree.report.markdown import percent, with_interval
from redfree.tasks.segmentation import METRICS, Counts


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
        _row("unchanged model", alone.before, found),
        _row("swap alone (`swap-alone.json`)", alone.after, found),
        _row(f"{tuner} (`tuner.safetensors`)", found.tuner_counts, found),
    ]
    if method != tuner:
        rows.append(_row(f"{method} (`tuner.safetensors`, `swap.json`)", found.tuned_counts, found))
    phases = "\n".join(f"| {p.name} | {p.seconds:.1f} | {p.peak_rss_bytes / 2**20:.0f} |" for p in record.phases)
    parameters = record.cost.trainable_params
    return f"""# {method} for {record.spec.model.name} on {record.spec.dataset.name}

{verdict(found)}

Scores on {len(found.tuned_counts)} test images, which had no part in fitting or choosing anything (percent):

| | {" | ".join(metric.name for metric in METRICS)} | mIoU gain, 95% interval |
{"|---" * (len(METRICS) + 2)}|
{chr(10).join(rows)}

The tuner was fitted to the {record.spec.protocol.n_search} search images, and the swap was chosen on the same ones.

- parameters inserted: {parameters.inserted:,}; moved by the optimiser: {parameters.total:,}
- fit: {record.cost.fit_seconds or 0:.1f} s; file: {(record.cost.artefact_bytes or 0) / 2**20:.2f} MiB
- run {record.run_id}, seed {record.spec.seed}, weights {record.spec.model.checkpoint_sha256[:16]}

| phase | seconds | peak resident MiB |
|---|---|---|
{phases}

    redfree eval --model {record.spec.model.name} --tuner tuner.safetensors --swap swap.json --data FOLDER
"""


def _row(name: str, counts: Counts, found: TunedAdaptation) -> str:
    gain, (low, high) = found.alone.gain(counts)
    shown = "" if counts is found.alone.before else with_interval(gain, low, high)
    return f"| {name} | " + " | ".join(percent(metric.summarise(counts)) for metric in METRICS) + f" | {shown} |"


def write_report(found: TunedAdaptation, out: Path) -> None:
    """Writes `report.md`."""
    write_text(out / "report.md", render_page(found))
