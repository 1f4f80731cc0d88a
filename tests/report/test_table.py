import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from record_samples import IMAGES, make_counts, make_failed, make_record, save

from redfree.errors import UserError
from redfree.records.schema import ModelSpec
from redfree.records.statistics import bootstrap_mean_ci95
from redfree.report.frame import load_frame, model_label
from redfree.report.markdown import interval, percent, points
from redfree.report.table import leaderboard, write_leaderboard
from redfree.tasks.segmentation import image_iou

SHIFTS = {"baseline": 0, "swap-unguarded": 600, "zero": -300, "oracle": 900}


def seeded(label, seed):
    """Counts of a cell; the baseline's depend on no seed, as the test images do not."""
    return make_counts(SHIFTS.get(label, 600), 0 if label == "baseline" else 100 + seed)


@pytest.fixture
def results(tmp_path):
    """Two seeds of every method; the guard accepts on the first alone, and the second `zero` failed."""
    folder = tmp_path / "results"
    for seed in (0, 1):
        for label in ("baseline", "swap-unguarded", "oracle"):
            save(folder, make_record(label, seeded(label, seed), seed=seed), seeded(label, seed))
        save(folder, make_record("swap", seeded("swap", seed), accepted=seed == 0, seed=seed), seeded("swap", seed))
        draws = make_counts(50, 200 + seed, draws=3)
        save(folder, make_record("random-swap", draws, seed=seed), draws)
    save(folder, make_record("zero", seeded("zero", 0), peak=2**30), seeded("zero", 0))
    save(folder, make_failed("zero", "oom", seed=1))
    for seed in (0, 1):
        save(folder, make_failed("a-tuner", seed=seed))
    return folder


@pytest.fixture
def board(results):
    return leaderboard(load_frame(results, "demo")).set_index("label")


def ious(label, seed):
    return image_iou(seeded(label, seed))[0]


def gains(label, seed):
    return ious(label, seed) - ious("baseline", 0)


def test_rows_are_in_suite_order(board):
    expected = ["baseline", "swap", "swap-unguarded", "zero", "random-swap", "oracle", "a-tuner"]
    assert list(board.index) == expected


def test_scores_and_gains_equal_a_hand_computation(board):
    row = board.loc["swap-unguarded"]
    per_image = (gains("swap-unguarded", 0) + gains("swap-unguarded", 1)) / 2
    assert row["mIoU"] == pytest.approx((ious("swap", 0).mean() + ious("swap", 1).mean()) / 2, abs=1e-12)
    assert row["gain"] == pytest.approx(per_image.mean(), abs=1e-12)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(bootstrap_mean_ci95(per_image), abs=1e-12)
    by_seed = {seed: gains("swap-unguarded", seed).mean() for seed in (0, 1)}
    assert row["gain_by_seed"] == pytest.approx(by_seed, abs=1e-12)


def test_seeds_above_and_below_zero_are_counted(board):
    lows = [bootstrap_mean_ci95(gains("swap-unguarded", seed))[0] for seed in (0, 1)]
    assert min(lows) > 0
    assert (board.loc["swap-unguarded", "seeds_better"], board.loc["swap-unguarded", "seeds_worse"]) == (2, 0)
    assert bootstrap_mean_ci95(gains("zero", 0))[1] < 0
    assert (board.loc["zero", "seeds_better"], board.loc["zero", "seeds_worse"]) == (0, 1)


def test_draws_are_averaged_for_each_image(results):
    frame = load_frame(results, "demo").query("label == 'random-swap' and seed == 1").iloc[0]
    np.testing.assert_allclose(frame["iou"], image_iou(make_counts(50, 201, draws=3)).mean(0), atol=1e-12)
    assert frame["pairs"] == 2


def test_leakage_is_the_oracles_gain_minus_the_honest_one(board):
    expected = np.mean([(gains("oracle", s) - gains("swap-unguarded", s)).mean() for s in (0, 1)])
    assert board.loc["oracle", "leakage"] == pytest.approx(expected, abs=1e-12)
    assert board["leakage"].drop("oracle").isna().all()


def test_search_guard_and_cost(board):
    row = board.loc["swap"]
    assert (row["guard_accepted"], row["guard_judged"], row["pairs"]) == (1, 2, 1.0)
    assert (row["search_gain"], row["decoder_passes"], row["scoring_seconds"]) == (0.25, 1200.0, 3.0)
    assert (row["peak_memory_mib"], board.loc["zero", "peak_memory_mib"]) == (256.0, 1024.0)
    assert (row["inserted_params"], row["trained_params"]) == (0, 0)
    assert board.loc["baseline", ["gain", "search_gain", "guard_judged"]].isna().all()


def test_failed_cells_appear_in_place_of_numbers(board, results, tmp_path):
    assert board.loc["zero", "status"] == "1 ok, 1 oom"
    assert board.loc["a-tuner", "status"] == "2 failed"
    assert board.loc["a-tuner", ["mIoU", "gain", "pairs", "peak_memory_mib"]].isna().all()
    text = write_leaderboard(load_frame(results, "demo"), "demo", "Demo", tmp_path)[0].read_text()
    scored = next(line for line in text.splitlines() if line.startswith("| a-tuner"))
    cells = [cell.strip() for cell in scored.strip("|").split("|")]
    assert cells[:4] == ["a-tuner", "2 failed", "failed", ""]
    assert "oom: MemoryError: \\|no\\| memory" in text


def test_markdown_states_origin_machine_and_records(results, tmp_path):
    text = write_leaderboard(load_frame(results, "demo"), "demo", "Demo of swaps", tmp_path)[0].read_text()
    assert text.startswith(
        "# Demo of swaps\n\nData: procedural: drawn by redfree, not photographs. Model: sam_nano (nano"
    )
    for fact in ("Test CPU (2 cores)", "threads: 1", "torch: 2.14.1", "git commit: 0123456789abcdef"):
        assert fact in text
    assert "Times were measured on one machine; compare them only within this table." in text
    assert "2/2 +, 0/2 -" in text
    frame = load_frame(results, "demo")
    assert all(run_id in text for run_id in frame["run_id"])
    row = frame.query("label == 'oracle' and seed == 0").iloc[0]
    assert f"{points(row['gain'])} {interval(row['gain_low'], row['gain_high'])}" in text
    assert (
        f"| {IMAGES} test images; 4 search images a seed."
        in f"| {text.split('procedural/medical, sam_nano')[1].strip()}"
    )


def test_figures_are_percentages_with_two_decimals():
    assert (percent(0.617649), points(0.050149), points(-0.00001)) == ("61.76", "+5.01", "+0.00")
    assert interval(0.04081, -0.00001) == "[4.08, 0.00]"


def test_the_same_records_give_the_same_bytes(results, tmp_path):
    first = [
        path.read_bytes() for path in write_leaderboard(load_frame(results, "demo"), "demo", "Demo", tmp_path / "a")
    ]
    second = [
        path.read_bytes() for path in write_leaderboard(load_frame(results, "demo"), "demo", "Demo", tmp_path / "b")
    ]
    assert first == second
    assert b"2026-01-01" not in first[1]


def test_csv_holds_every_figure_unrounded(results, tmp_path):
    path = write_leaderboard(load_frame(results, "demo"), "demo", "Demo", tmp_path)[1]
    table = pd.read_csv(path, float_precision="round_trip", dtype={"run_id": str}).set_index("run_id")
    frame = load_frame(results, "demo").set_index("run_id")
    assert list(table.index) == list(frame.index)
    for column in ("mIoU", "dataset_Dice_high", "gain", "gain_low", "search_gain", "scoring_seconds", "peak_rss_bytes"):
        np.testing.assert_array_equal(table[column].to_numpy(float), frame[column].to_numpy(float))
    assert "created_at" not in table.columns


def test_several_machines_are_not_called_one(results, tmp_path):
    record = make_record("baseline", seeded("baseline", 0), dataset="procedural/natural")
    other = record.model_copy(update={"env": {**record.env, "machine": {"cpu": "Other CPU"}, "git_dirty": True}})
    save(results, other, seeded("baseline", 0))
    text = write_leaderboard(load_frame(results, "demo"), "demo", "Demo", tmp_path)[0].read_text()
    assert "2 kinds of machine; compare them only between records of the same machine" in text
    assert "0123456789abcdef (modified)" in text


def test_a_baseline_on_other_weights_gives_no_gain(tmp_path):
    save(tmp_path, make_record("baseline", make_counts(), weights="c" * 64), make_counts())
    save(tmp_path, make_record("swap", make_counts(600)), make_counts(600))
    row = load_frame(tmp_path, "demo").query("label == 'swap'").iloc[0]
    assert row["mIoU"] is not None
    assert row["gain"] is None


def test_an_unchanged_model_is_called_the_same(tmp_path):
    for label in ("baseline", "swap"):
        save(tmp_path, make_record(label, make_counts(), accepted=False), make_counts())
    row = load_frame(tmp_path, "demo").query("label == 'swap'").iloc[0]
    assert (row["gain"], row["verdict"]) == (0.0, "same")


def test_two_records_of_one_cell_are_refused(results):
    save(results, make_record("swap", weights="c" * 64), make_counts())
    with pytest.raises(UserError, match=r"both are sam_nano/procedural/medical/swap/0, .*remove one"):
        load_frame(results, "demo")


def test_a_suite_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^no records of suite seg in .*; run `redfree run seg` first$"):
        load_frame(tmp_path, "seg")


def test_a_record_without_counts_is_refused(tmp_path):
    save(tmp_path, make_record())
    with pytest.raises(UserError, match="names no per-image counts"):
        load_frame(tmp_path, "demo")


def test_tables_import_no_heavy_package():
    heavy = ("torch", "scipy", "mmengine", "datasets", "matplotlib", "segment_anything")
    code = f"import sys, redfree.report.table; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_variants_of_a_model_are_told_apart_by_their_options():
    usual = {"apply_postprocessing": False, "swap_at": "image_embed"}
    label = {**usual, "swap_at": "before_no_mem_embed", "precision": "bfloat16"}
    names = [model_label(ModelSpec(name="sam2_nano", checkpoint_sha256="0", options=o)) for o in (usual, label)]
    assert names == ["sam2_nano", "sam2_nano (precision=bfloat16, swap_at=before_no_mem_embed)"]
    assert model_label(ModelSpec(name="sam_nano", checkpoint_sha256="0")) == "sam_nano"
    custom = ModelSpec(name="a:b", checkpoint_sha256="0", options={"threshold": 0.8})
    assert model_label(custom) == "a:b (threshold=0.8)"
