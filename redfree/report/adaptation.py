"""What `redfree adapt` found, as a page and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from redfree.bench.adapt import Adaptation
from redfree.channels import ChannelMap
from redfree.data.stored import AnySegmentationSample
from redfree.files import replace_atomically, write_text
from redfree.search.evaluate import SegmentationEvaluator
from redfree.tasks.segmentation import METRICS, image_iou

_QUANTILES = (
    (0.0, "largest loss"),
    (0.25, "lower quartile"),
    (0.5, "median"),
    (0.75, "upper quartile"),
    (1.0, "largest gain"),
)
_TRUTH, _PREDICTED, _POINT = "#00e5ff", "#ffb000", "#ff2d55"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _gain(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:+.2f} [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"


def verdict(adaptation: Adaptation) -> str:
    """One sentence: what the guard says and what that means for the user."""
    guard = adaptation.measurement.choice.guard
    if guard is None:
        return "No guard was asked for: the search's choice is used whatever it does on other images."
    held_out = f"held-out gain {_gain(guard.gain, guard.gain_ci95)} over {guard.folds} folds of the search images"
    if guard.accepted:
        return f"The guard accepts the swap: {held_out}."
    return f"The guard answers **no swap**: {held_out}, not above its standard error. `swap.json` changes nothing."


def _score_table(adaptation: Adaptation) -> str:
    rows = [("unchanged model", adaptation.before), ("handed out (`swap.json`)", adaptation.after)]
    guard = adaptation.measurement.choice.guard
    if guard is not None and not guard.accepted:
        rows.append(("what the search chose, refused", adaptation.searched))
    lines = [
        "| | " + " | ".join(m.name for m in METRICS) + " | mIoU gain, 95% interval |",
        "|---" * (len(METRICS) + 2) + "|",
    ]
    for name, counts in rows:
        gain = "" if counts is adaptation.before else _gain(*adaptation.gain(counts))
        lines.append(f"| {name} | " + " | ".join(_percent(m.summarise(counts)) for m in METRICS) + f" | {gain} |")
    return "\n".join(lines)


def render_page(adaptation: Adaptation) -> str:
    """The report as Markdown."""
    record, choice = adaptation.measurement.record, adaptation.measurement.choice
    assert record.cost is not None
    spec, found = record.spec, choice.searched
    assert found is not None
    phases = "\n".join(f"| {p.name} | {p.seconds:.1f} | {p.peak_rss_bytes / 2**20:.0f} |" for p in record.phases)
    pairs = ", ".join(f"{i} <- {j}" for i, j in found.channel_map.pairs) or "none"
    return f"""# A swap for {spec.model.name} on {spec.dataset.name}

{verdict(adaptation)}

Scores on {spec.protocol.n_test} test images, which had no part in choosing anything (percent):

{_score_table(adaptation)}

On the {spec.protocol.n_search} search images the search went from {_percent(found.baseline_score)} to \
{_percent(found.search_score)} mIoU; that number is optimistic, the table above is not.

- channels replaced by the search: {pairs}
- parameters trained: {record.cost.trainable_params.total}
- maps scored: {record.cost.candidates_scored}, decoder passes with the guard: {record.cost.decoder_passes}
- seed {spec.seed}, prompt rule {spec.protocol.prompt}, run {record.run_id}, weights {spec.model.checkpoint_sha256[:16]}

![before and after](report.png)

| phase | seconds | peak resident MiB |
|---|---|---|
{phases}

Times are of this run; scores found in the search log of an earlier one are not computed again \
(scoring itself took {record.cost.scoring_seconds:.1f} s).

    import redfree
    redfree.load_swap("swap.json").attach(sam)   # sam: the segment_anything model; SamPredictor(sam) now uses the swap
"""


def _example_images(gains: NDArray[np.float64]) -> list[tuple[int, str]]:
    order = np.argsort(gains, kind="stable")
    chosen = {int(order[round(q * (len(order) - 1))]): name for q, name in _QUANTILES}
    return list(chosen.items())


def _masks(evaluator: SegmentationEvaluator, channel_map: ChannelMap, chosen: list[int]) -> list[NDArray[np.bool_]]:
    features = evaluator.features.select(chosen)
    features = features.with_maps(channel_map.apply(features.maps))
    logits = evaluator.model.decode(features, [evaluator.samples[d].prompt for d in chosen])
    return [np.asarray(one > 0) for one in logits]


def _draw(axes: Axes, sample: AnySegmentationSample, mask: NDArray[np.bool_] | None, title: str) -> None:
    axes.imshow(sample.image)
    if mask is not None:
        # An outline of a ragged mask would have as many corners as the mask has pixels, and take gigabytes.
        overlay = np.zeros((*mask.shape, 4), np.float32)
        overlay[mask] = to_rgba(_PREDICTED, alpha=0.5)
        axes.imshow(overlay, interpolation="nearest")
    axes.contour(sample.mask, levels=[0.5], colors=[_TRUTH], linewidths=1.2)
    axes.plot(*zip(*sample.prompt.points, strict=True), "o", color=_POINT, markeredgecolor="white", markersize=6)
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def draw_picture(adaptation: Adaptation, path: Path) -> None:
    """Draws test images at fixed quantiles of the gain: image, before, and after the search's choice."""
    test, found = adaptation.measurement.setup.test, adaptation.measurement.choice.searched
    assert found is not None
    before, after = image_iou(adaptation.before), image_iou(adaptation.searched)
    examples = _example_images(after - before)
    chosen = [d for d, _ in examples]
    columns = (_masks(test, ChannelMap(test.model.channels), chosen), _masks(test, found.channel_map, chosen))
    figure = Figure(figsize=(8, 2.6 * len(examples) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for row, (d, name), old, new in zip(grid, examples, *columns, strict=True):
        _draw(row[0], test.samples[d], None, f"{test.samples[d].id}: {name}")
        _draw(row[1], test.samples[d], old, f"before: IoU {_percent(before[d])}")
        _draw(row[2], test.samples[d], new, f"with the search's swap: IoU {_percent(after[d])}")
    guard = adaptation.measurement.choice.guard
    refused = " (refused by the guard)" if guard is not None and not guard.accepted else ""
    gain = _gain(*adaptation.gain(adaptation.searched))
    figure.suptitle(
        f"mIoU gain on {len(test)} test images {gain}{refused}\ncyan: truth, orange: prediction, red: prompt"
    )
    with replace_atomically(path) as file:
        figure.savefig(file, format="png", dpi=90)


def write_report(adaptation: Adaptation, out: Path) -> None:
    """Writes `report.png` and `report.md`."""
    draw_picture(adaptation, out / "report.png")
    write_text(out / "report.md", render_page(adaptation))
