"""What `redfree adapt` found, as a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redfree.bench.adapt import Adaptation, paired_gain
from redfree.channels import ChannelMap
from redfree.files import write_text
from redfree.records.schema import Record
from redfree.report.examples import Segmentation, draw_examples
from redfree.report.markdown import percent, with_interval
from redfree.search.guard import GuardVerdict
from redfree.tasks.segmentation import METRICS, Counts


def verdict(adaptation: Adaptation) -> str:
    """One sentence: what the guard says and what that means for the user."""
    return guard_verdict(adaptation.measurement.choice.guard)


def guard_verdict(guard: GuardVerdict | None, file: str = "swap.json") -> str:
    """One sentence: what a guard says of the swap in a file."""
    if guard is None:
        return "No guard was asked for: the search's choice is used whatever it does on other images."
    held_out = (
        f"held-out gain {with_interval(guard.gain, *guard.gain_ci95)} over {guard.folds} folds of the search images"
    )
    if guard.accepted:
        return f"The guard accepts the swap: {held_out}."
    return f"The guard answers **no swap**: {held_out}, not above its standard error. `{file}` changes nothing."


def score_table(rows: Sequence[tuple[str, Counts]], before: Counts) -> str:
    """Every metric of some named counts in percent, and their gains over those of the unchanged model."""
    lines = [
        "| | " + " | ".join(metric.name for metric in METRICS) + " | mIoU gain, 95% interval |",
        "|---" * (len(METRICS) + 2) + "|",
    ]
    for name, counts in rows:
        gain, interval = paired_gain(counts, before)
        shown = "" if counts is before else with_interval(gain, *interval)
        cells = [name, *(percent(metric.summarise(counts)) for metric in METRICS), shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def phase_table(record: Record) -> str:
    """Seconds and peak memory of each phase."""
    rows = (f"| {p.name} | {p.seconds:.1f} | {p.peak_rss_bytes / 2**20:.0f} |" for p in record.phases)
    return "\n".join(["| phase | seconds | peak resident MiB |", "|---|---|---|", *rows])


def _score_rows(adaptation: Adaptation) -> list[tuple[str, Counts]]:
    rows = [("unchanged model", adaptation.before), ("handed out (`swap.json`)", adaptation.after)]
    guard = adaptation.measurement.choice.guard
    if guard is not None and not guard.accepted:
        rows.append(("what the search chose, refused", adaptation.searched))
    return rows


def render_page(adaptation: Adaptation) -> str:
    """The report as Markdown."""
    record, choice = adaptation.measurement.record, adaptation.measurement.choice
    assert record.cost is not None
    spec, found = record.spec, choice.searched
    assert found is not None
    pairs = ", ".join(f"{i} <- {j}" for i, j in found.channel_map.pairs) or "none"
    return f"""# A swap for {spec.model.name} on {spec.dataset.name}

{verdict(adaptation)}

Scores on {spec.protocol.n_test} test images, which had no part in choosing anything (percent):

{score_table(_score_rows(adaptation), adaptation.before)}

On the {spec.protocol.n_search} search images the search went from {percent(found.baseline_score)} to \
{percent(found.search_score)} mIoU; that number is optimistic, the table above is not.

- channels replaced by the search: {pairs}
- parameters trained: {record.cost.trainable_params.total}
- maps scored: {record.cost.candidates_scored}, decoder passes with the guard: {record.cost.decoder_passes}
- seed {spec.seed}, prompt rule {spec.protocol.prompt}, run {record.run_id}, weights {spec.model.checkpoint_sha256[:16]}

![before and after](report.png)

{phase_table(record)}

Times are of this run; scores found in the search log of an earlier one are not computed again \
(scoring itself took {record.cost.scoring_seconds:.1f} s).

    import redfree
    redfree.load_swap("swap.json").attach(sam)   # sam: the segment_anything model; SamPredictor(sam) now uses the swap
"""


def draw_picture(adaptation: Adaptation, path: Path) -> None:
    """Draws test images at fixed quantiles of the gain: image, before, and after the search's choice."""
    test, found = adaptation.measurement.setup.test, adaptation.measurement.choice.searched
    assert found is not None
    ways = [
        Segmentation("before", test, ChannelMap(test.model.channels), adaptation.before),
        Segmentation("with the search's swap", test, found.channel_map, adaptation.searched),
    ]
    guard = adaptation.measurement.choice.guard
    refused = " (refused by the guard)" if guard is not None and not guard.accepted else ""
    gain, interval = adaptation.gain(adaptation.searched)
    draw_examples(ways, 0, f"mIoU gain on {len(test)} test images {with_interval(gain, *interval)}{refused}", path)


def write_report(adaptation: Adaptation, out: Path) -> None:
    """Writes `report.png` and `report.md`."""
    draw_picture(adaptation, out / "report.png")
    write_text(out / "report.md", render_page(adaptation))
