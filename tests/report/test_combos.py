import numpy as np
import pandas as pd
import pytest

from redfree.records.statistics import bootstrap_mean_ci95
from redfree.report.combos import combines, compare_combos, cost_combos

NAMES = ("tuner_gain", "swap_gain", "both_gain", "added_gain", "interaction")
# Gains of three images, by method and seed.
ALONE = {0: [0.25, 0.125, 0.0], 1: [0.5, 0.25, 0.125]}
SWAP = {0: [0.125, 0.0, 0.0625], 1: [0.0, 0.125, 0.0625]}
BOTH = {0: [0.25, 0.25, 0.125], 1: [0.25, 0.5, 0.125]}


def row(label, seed, gains, order=("a", "b", "c"), **values):
    gain = None if gains is None else pd.Series(dict(zip("abc", gains, strict=True)))[list(order)]
    swapped = label.endswith("swap")
    return {
        "status": "ok",
        "model": "sam_nano",
        "dataset": "procedural/medical",
        "label": label,
        "seed": seed,
        "image_gain": gain,
        "inserted_params": None if swapped else 100,
        "trained_params": None if swapped else 90,
        "declared_params": None if swapped else 4100,
        "fit_seconds": None if swapped else 10.0 + seed * 4,
        "scoring_seconds": 3.0 + seed if swapped else None,
        "peak_rss_bytes": (2 + seed) * 2**20,
        "artefact_bytes": None if swapped else 2**19,
        "guard_accepted": seed == 0 if swapped else None,
        **values,
    }


def rows_of(label, gains, **values):
    return [row(label, seed, gains[seed], **values) for seed in gains]


def frame_of(*groups):
    return pd.DataFrame([one for group in groups for one in group], dtype=object)


@pytest.fixture
def rows():
    return rows_of("samed", ALONE), rows_of("swap", SWAP), rows_of("samed+swap", BOTH)


def over_seeds(*seeds):
    """The five differences of each image, averaged over seeds, by hand."""
    alone, swap, both = (np.mean([gains[s] for s in seeds], axis=0) for gains in (ALONE, SWAP, BOTH))
    return dict(zip(NAMES, (alone, swap, both, both - alone, both - alone - swap), strict=True))


def check(found, expected):
    for name, per_image in expected.items():
        assert found[name] == pytest.approx(per_image.mean())
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(bootstrap_mean_ci95(per_image))


def test_a_suite_combines_where_a_swap_lies_on_a_tuner(rows):
    alone, swap, both = rows
    assert combines(frame_of(alone, swap, both))
    assert not combines(frame_of(alone, swap))


def test_gains_and_their_interaction_are_those_by_hand(rows):
    (found,) = compare_combos(frame_of(*rows)).to_dict("records")
    assert (found["model"], found["dataset"], found["tuner"]) == ("sam_nano", "procedural/medical", "samed")
    assert found["seeds"] == 2
    # Sums over images and seeds: tuner 1.25, swap 0.375, both 1.5.
    assert [found[name] * 6 for name in NAMES] == pytest.approx([1.25, 0.375, 1.5, 0.25, -0.125])
    check(found, over_seeds(0, 1))


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_only_seeds_that_every_part_has_are_paired(rows, lacking):
    groups = [group[:1] if k == lacking else group for k, group in enumerate(rows)]
    (found,) = compare_combos(frame_of(*groups)).to_dict("records")
    assert found["seeds"] == 1
    check(found, over_seeds(0))


def test_images_are_paired_by_their_id_and_not_by_their_place(rows):
    alone, swap, _ = rows
    both = rows_of("samed+swap", BOTH, order="cab")
    (found,) = compare_combos(frame_of(alone, swap, both)).to_dict("records")
    check(found, over_seeds(0, 1))


def test_a_missing_part_leaves_no_figures(rows):
    alone, _, both = rows
    (found,) = compare_combos(frame_of(alone, both)).to_dict("records")
    assert found["seeds"] == 0
    assert all(found[f"{name}{part}"] is None for name in NAMES for part in ("", "_low", "_high"))


@pytest.mark.parametrize("change", [{"status": "oom"}, {"image_gain": None}])
def test_a_seed_that_failed_or_has_no_baseline_is_no_part(rows, change):
    alone, swap, both = rows
    (found,) = compare_combos(frame_of(alone, swap, [both[0], {**both[1], **change}])).to_dict("records")
    assert found["seeds"] == 1
    check(found, over_seeds(0))


def test_a_tuner_without_a_swap_on_it_is_left_out(rows):
    found = compare_combos(frame_of(*rows, rows_of("dora", ALONE)))
    assert list(found["tuner"]) == ["samed"]


def test_models_and_datasets_are_apart(rows):
    other = [[{**one, "dataset": "digits", "image_gain": one["image_gain"] * 2} for one in group] for group in rows]
    first, second = compare_combos(frame_of(*rows, *other)).to_dict("records")
    assert (first["dataset"], second["dataset"]) == ("procedural/medical", "digits")
    assert second["interaction"] == pytest.approx(2 * first["interaction"])


def test_a_swap_that_is_always_used_is_paired_with_the_tuner_alone(rows):
    unguarded = rows_of("samed+swap-unguarded", {0: [0.0, 0.125, 0.25], 1: [0.5, 0.0, 0.125]})
    (found,) = compare_combos(frame_of(*rows, unguarded)).to_dict("records")
    per_image = np.mean([[-0.25, 0.0, 0.25], [0.0, -0.25, 0.0]], axis=0)
    check(found, {**over_seeds(0, 1), "unguarded": per_image})
    (without,) = compare_combos(frame_of(*rows)).to_dict("records")
    assert [without[f"unguarded{part}"] for part in ("", "_low", "_high")] == [None] * 3
    (one_seed,) = compare_combos(frame_of(*rows, unguarded[:1])).to_dict("records")
    check(one_seed, {"unguarded": np.array([-0.25, 0.0, 0.25])})


def test_the_guard_is_that_of_the_swap_on_the_tuned_model(rows):
    (found,) = compare_combos(frame_of(*rows)).to_dict("records")
    assert (found["guard_accepted"], found["guard_judged"]) == (1, 2)


def test_costs_of_a_tuner_are_its_own_but_for_the_search_on_top(rows):
    swap, samed = cost_combos(frame_of(*rows)).to_dict("records")
    assert (swap["method"], samed["method"]) == ("swap", "samed")
    assert (samed["inserted_params"], samed["trained_params"], samed["declared_params"]) == (100, 90, 4100)
    assert (samed["fit_seconds"], samed["scoring_seconds"]) == (12.0, 3.5)
    assert (samed["peak_memory_mib"], samed["search_peak_memory_mib"], samed["artefact_mib"]) == (3.0, 3.0, 0.5)
    assert (swap["scoring_seconds"], swap["fit_seconds"], swap["declared_params"], swap["artefact_mib"]) == (
        3.5,
        *[None] * 3,
    )


def test_costs_without_a_swap_alone_or_a_tuner_with_one(rows):
    alone, _, both = rows
    found = cost_combos(frame_of(alone, both, rows_of("dora", ALONE)))
    assert list(found["method"]) == ["samed"]
