"""The leaderboard as Markdown, for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from redfree.report.combos import combines, compare_combos, cost_combos
from redfree.report.strategies import compare_strategies, compares_strategies

LEGEND = """\
- **method**: `baseline` is the unchanged model; `swap` is the searched swap, used only where the guard accepts it;
  `swap-unguarded` is always used (the paper's rule); `zero` sets searched channels to zero; `random-swap` averages
  random swaps; `oracle` chooses on the test images themselves, which only measures leakage.
- **records**: how many seeds were measured, and what became of the others.
- **mIoU**, **mDice**: foreground IoU and Dice of each test image in percent, averaged over images, then seeds.
  **dataset IoU**, **dataset Dice**: of the counts summed over images.
- **gain**: mIoU minus the baseline's on the same images, in points, averaged over seeds, with the 95% bootstrap
  interval over images (paired: the gain of each image is averaged over seeds, then images are resampled).
- **gain by seed**, **seeds**: the gain of each seed; how many seeds have an interval above 0 (+) and below 0 (-).
- **search gain**: the gain on the images that chose, before any guard; it is optimistic.
- **leakage**: the oracle's gain minus that of `swap-unguarded`.
- **guard**: on how many of the seeds the guard accepted the swap; otherwise the model is left unchanged.
- **pairs**: mean number of pairs that were evaluated; of zeroed channels for `zero`.
- **decoder passes**: maps times images that search and guard scored. **scoring s**: median over seeds of the seconds
  that this took, also where another cell had done it and left it in the search log. **peak MiB**: the largest resident
  memory of any phase of any seed. **inserted**, **trained**: parameters.
- **verdict**: `better` or `worse` where the seed's interval excludes 0, else `undecided`; `same` where no image
  changed. **record**: the run id, which names the record's file."""

STRATEGY_LEGEND = """\
Unguarded searches on the search images, mean over seeds. **search mIoU**: of the swap on the images that chose it.
**vs exhaustive**, **test vs exhaustive**: the difference to the paper's exhaustive search of the same seeds, the latter
paired on the test images. **true Top-N found**: how many of the exhaustive Top-N are among its own. **maps**: maps
scored on all search images. **passes**: decoder passes of the search; a screen's forward and backward pass count as 3
an image. **fewer passes**: how many times fewer than the exhaustive search. **seconds**: median scoring time, without
the guard."""


COMBO_LEGEND = """\
Gains in points of mIoU over the unchanged model, paired on the same test images and seeds, mean over seeds. **swap on
the tuned model**: tuner + swap minus tuner, the swap used where the guard accepts it; **always used**: the paper's
rule, without a guard. **interaction**: the gain of tuner + swap minus the gains of both alone:
below 0 they find the same, above 0 they help each other. **guard**: on how many seeds it accepted the swap of the
tuned model. **inserted**: parameters that the tuner adds. **by its authors' account**: all that the method trains.
**moved**: those that the optimiser moves, which leaves out what a single mask never reaches. **fit s**, **search s**:
medians over seeds, also where another cell had done it; the search of a tuner is that of the swap on the tuned model.
**peak MiB**: the largest resident memory of any phase of any seed, **with search** that of the cells that searched too.
**file MiB**: what was fitted, on disk; a swap is a list of pairs."""


def render(title: str, frame: pd.DataFrame, board: pd.DataFrame) -> str:
    """The text of a leaderboard.

    Args:
        title: heading.
        frame: one row a record, what `redfree.report.frame.load_frame` returned.
        board: what `redfree.report.table.leaderboard` made of it.
    """
    parts = [f"# {title}", _origin(frame), _machine(frame)]
    for (model, dataset), rows in board.groupby(["model", "dataset"], sort=False):
        of_pair = frame[(frame["model"] == model) & (frame["dataset"] == dataset)]
        parts += [f"## {dataset}, {model}", _sizes(of_pair), _table(rows, _score_cells), _table(rows, _cost_cells)]
    if compares_strategies(frame):
        parts += ["## Search strategies", _table(compare_strategies(frame), _strategy_cells), STRATEGY_LEGEND]
    if combines(frame):
        tables = [_table(compare_combos(frame), _combo_cells), _table(cost_combos(frame), _combo_cost_cells)]
        parts += ["## Tuners and the swap", *tables, COMBO_LEGEND]
    parts += ["## Records", _table(frame, _record_cells), "## Columns", LEGEND]
    return "\n\n".join(parts) + "\n"


def _distinct(column: pd.Series[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in column.dropna()))


def _origin(frame: pd.DataFrame) -> str:
    lines = [f"Data: {'; '.join(_distinct(frame['source']))}."]
    nano = [name for name in _distinct(frame["model"]) if "_nano" in name]
    if nano:
        lines.append(
            f"Model: {', '.join(nano)} (nano: the real architecture at a small size, trained on procedural images); "
            "its figures are no statement about the official checkpoints."
        )
    return " ".join(lines)


def _machine(frame: pd.DataFrame) -> str:
    measured = frame[frame["status"] == "ok"]
    shown = measured if len(measured) else frame
    facts = {
        "CPU": _cpus(shown),
        "device": _distinct(shown["device"]),
        "threads": _distinct(shown["threads"]),
        "torch": _distinct(shown["torch"]),
        "git commit": _commits(shown),
    }
    lines = [f"- {name}: {', '.join(values) or 'unknown'}" for name, values in facts.items()]
    several = len(facts["CPU"]) > 1
    machines = f"{len(facts['CPU'])} kinds of machine" if several else "one machine"
    limit = "only between records of the same machine (see the CSV)" if several else "only within this table"
    return "\n".join([f"Times were measured on {machines}; compare them {limit}.", "", *lines])


def _cpus(frame: pd.DataFrame) -> list[str]:
    pairs = zip(frame["cpu"], frame["cpu_count"], strict=True)
    return list(dict.fromkeys(f"{cpu} ({cores} cores)" for cpu, cores in pairs if cpu))


def _commits(frame: pd.DataFrame) -> list[str]:
    pairs = zip(frame["git_commit"], frame["git_dirty"], strict=True)
    return list(dict.fromkeys(f"{commit}{' (modified)' if dirty else ''}" for commit, dirty in pairs if commit))


def _sizes(frame: pd.DataFrame) -> str:
    test = ", ".join(_distinct(frame["n_test"]))
    choosing = frame[frame["label"] != "oracle"]["n_choosing"]
    return f"{test} test images; {', '.join(_distinct(choosing)) or 'no'} search images a seed."


def _table(rows: pd.DataFrame, cells: Callable[[pd.Series[Any]], dict[str, str]]) -> str:
    table = pd.DataFrame([cells(row) for _, row in rows.iterrows()])
    align = [
        "left" if name in ("method", "dataset", "model", "tuner", "verdict") else "right" for name in table.columns
    ]
    # Without disable_numparse, tabulate would reformat "+5.01" and run ids that look like numbers.
    return table.to_markdown(index=False, disable_numparse=True, colalign=align)


def _score_cells(row: pd.Series[Any]) -> dict[str, str]:
    gains = row["gain_by_seed"]
    measured = row["mIoU"] is not None
    seeds = f"{row['seeds_better']}/{len(gains)} +, {row['seeds_worse']}/{len(gains)} -" if gains else ""
    return {
        "method": row["label"],
        "records": row["status"],
        "mIoU %": percent(row["mIoU"]) if measured else row["status"].split()[-1],
        "gain [95% interval]": with_interval(row["gain"], row["gain_low"], row["gain_high"]),
        "gain by seed": ", ".join(points(gain) for gain in gains.values()),
        "seeds": seeds,
        "search gain": points(row["search_gain"]),
        "leakage": points(row["leakage"]),
        "guard": "" if row["guard_judged"] is None else f"{row['guard_accepted']}/{row['guard_judged']}",
        "pairs": number(row["pairs"], ".1f"),
        "mDice %": percent(row["mDice"]),
        "dataset IoU %": percent(row["dataset_IoU"]),
        "dataset Dice %": percent(row["dataset_Dice"]),
    }


def _cost_cells(row: pd.Series[Any]) -> dict[str, str]:
    return {
        "method": row["label"],
        "decoder passes": number(row["decoder_passes"], ",.0f"),
        "scoring s": number(row["scoring_seconds"], ",.1f"),
        "peak MiB": number(row["peak_memory_mib"], ",.0f"),
        "inserted": number(row["inserted_params"], ",d"),
        "trained": number(row["trained_params"], ",d"),
    }


def _strategy_cells(row: pd.Series[Any]) -> dict[str, str]:
    return {
        "model": row["model"],
        "dataset": row["dataset"],
        "method": row["label"],
        "seeds": str(row["seeds"]),
        "search mIoU %": percent(row["search_score"]),
        "vs exhaustive": points(row["score_difference"]),
        "test mIoU %": percent(row["test_score"]),
        "test vs exhaustive [95% interval]": with_interval(row["test_difference"], row["test_low"], row["test_high"]),
        "true Top-N found": number(row["top_overlap"], ".1f"),
        "maps": number(row["candidates_scored"], ",.0f"),
        "passes": number(row["search_passes"], ",.0f"),
        "fewer passes": "" if row["passes_ratio"] is None else f"{row['passes_ratio']:.0f} x",
        "seconds": number(row["search_seconds"], ",.1f"),
        "peak MiB": number(row["peak_memory_mib"], ",.0f"),
    }


def _combo_cells(row: pd.Series[Any]) -> dict[str, str]:
    def gain(name: str) -> str:
        return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"])

    return {
        "model": row["model"],
        "dataset": row["dataset"],
        "tuner": row["tuner"],
        "seeds": str(row["seeds"]),
        "tuner [95% interval]": gain("tuner_gain"),
        "swap": gain("swap_gain"),
        "tuner + swap": gain("both_gain"),
        "swap on the tuned model": gain("added_gain"),
        "the same, always used": gain("unguarded"),
        "interaction": gain("interaction"),
        "guard": f"{row['guard_accepted']}/{row['guard_judged']}",
    }


def _combo_cost_cells(row: pd.Series[Any]) -> dict[str, str]:
    return {
        "model": row["model"],
        "dataset": row["dataset"],
        "method": row["method"],
        "inserted": number(row["inserted_params"], ",d"),
        "by its authors' account": number(row["declared_params"], ",d"),
        "moved": number(row["trained_params"], ",d"),
        "fit s": number(row["fit_seconds"], ",.1f"),
        "search s": number(row["scoring_seconds"], ",.1f"),
        "peak MiB": number(row["peak_memory_mib"], ",.0f"),
        "with search": number(row["search_peak_memory_mib"], ",.0f"),
        "file MiB": number(row["artefact_mib"], ",.2f"),
    }


def _record_cells(row: pd.Series[Any]) -> dict[str, str]:
    complaint = f"{row['status']}: {row['error']}".replace("|", "\\|").replace("\n", " ")
    mean = "" if row["mIoU"] is None else f"{percent(row['mIoU'])} {interval(row['mIoU_low'], row['mIoU_high'])}"
    return {
        "model": row["model"],
        "dataset": row["dataset"],
        "method": row["label"],
        "seed": str(row["seed"]),
        "mIoU % [95% interval]": mean,
        "gain [95% interval]": with_interval(row["gain"], row["gain_low"], row["gain_high"]),
        "verdict": (row["verdict"] or "") if row["status"] == "ok" else complaint,
        "guard": {None: "", True: "accepted", False: "rejected"}[row["guard_accepted"]],
        "record": row["run_id"],
    }


def number(value: float | None, form: str) -> str:
    """A number in a format; nothing where it is missing."""
    return "" if value is None else format(value, form)


def percent(fraction: float | None) -> str:
    """A fraction in percent, such as 61.76; nothing where it is missing."""
    return "" if fraction is None else format(_hundredths(fraction), ".2f")


def points(fraction: float | None) -> str:
    """A difference of fractions in signed points, such as +5.01; nothing where it is missing."""
    return "" if fraction is None else format(_hundredths(fraction), "+.2f")


def interval(low: float, high: float) -> str:
    """An interval in percent, such as [4.08, 5.96]."""
    return f"[{percent(low)}, {percent(high)}]"


def with_interval(value: float | None, low: float, high: float) -> str:
    """A gain and its interval, such as +5.01 [4.08, 5.96]; nothing where it is missing."""
    return "" if value is None else f"{points(value)} {interval(low, high)}"


def _hundredths(fraction: float) -> float:
    return round(100 * fraction, 2) + 0.0  # adding 0.0 turns -0.0 into 0.0
