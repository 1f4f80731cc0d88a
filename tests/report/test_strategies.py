from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from record_samples import make_counts, make_record, save

from redfree.records import schema
from redfree.records.statistics import bootstrap_mean_ci95
from redfree.report.anytime import curve, draw_anytime
from redfree.report.frame import load_frame
from redfree.report.strategies import compare_strategies, compares_strategies, searches
from redfree.report.table import write_leaderboard
from redfree.tasks.segmentation import image_iou

PASSES = {"exhaustive": 5000, "greedy": 50, "racing": 500}
TOPS = {"exhaustive": [(1, 2), (3, 1)], "greedy": [(3, 1), (1, 4)], "racing": [(5, 6)]}
SCORES = {"exhaustive": 0.75, "greedy": 0.8125, "racing": 0.6875}


def step(stage, passes, best):
    return schema.TraceRecord(stage=stage, evaluations=1, decoder_passes=passes, seconds=2.0, best_score=best)


def record(strategy, seed, counts, guard="none"):
    plain = make_record("swap", counts, seed=seed)
    label = strategy if guard == "none" else f"{strategy}-guarded"
    params = {"strategy": strategy, "options": {}, "guard": guard, "select_on": "search"}
    method = schema.MethodSpec(name="swap", label=label, params=params)
    spec = plain.spec.model_copy(update={"method": method})
    trace = [step("identity", 4, 0.5), step("race" if strategy == "racing" else "moves", PASSES[strategy] - 4, 0.9)]
    found = {"top": TOPS[strategy], "search_score": SCORES[strategy], "trace": trace, "guard": None}
    result = plain.result.model_copy(update=found)
    return plain.model_copy(update={"spec": spec, "run_id": spec.run_id(), "result": result})


@pytest.fixture
def frame(tmp_path):
    """Greedy and racing on two seeds, the exhaustive search on the first alone."""
    save(tmp_path, make_record("baseline", make_counts()), make_counts())
    for seed in (0, 1):
        for strategy in ("exhaustive", "greedy", "racing")[seed:]:
            counts = make_counts(len(strategy), 10 + seed + PASSES[strategy])
            save(tmp_path, record(strategy, seed, counts), counts)
    guarded = make_counts(0, 99)
    save(tmp_path, record("greedy", 0, guarded, "one_standard_error"), guarded)
    return load_frame(tmp_path, "demo")


def test_only_unguarded_searches_are_compared(frame):
    assert set(searches(frame)["label"]) == {"exhaustive", "greedy", "racing"}
    assert compares_strategies(frame)
    assert not compares_strategies(frame[frame["strategy"] != "greedy"].iloc[:1])


def test_figures_against_the_exhaustive_search_are_of_the_seeds_that_have_one(frame):
    table = compare_strategies(frame).set_index("label")
    greedy = table.loc["greedy"]
    assert (greedy["seeds"], greedy["compared_seeds"]) == (2, 1)
    assert greedy["passes_ratio"] == 100
    assert greedy["score_difference"] == 0.0625
    assert greedy["top_overlap"] == 1
    assert table.loc["racing", "top_overlap"] == 0
    own, best = (image_iou(make_counts(len(s), 10 + PASSES[s]))[0] for s in ("greedy", "exhaustive"))
    assert greedy["test_difference"] == pytest.approx((own - best).mean())
    assert (greedy["test_low"], greedy["test_high"]) == pytest.approx(bootstrap_mean_ci95(own - best))


def test_the_exhaustive_search_is_not_compared_with_itself(frame):
    truth = compare_strategies(frame).set_index("label").loc["exhaustive"]
    assert truth["passes_ratio"] is truth["top_overlap"] is truth["test_difference"] is None
    assert truth["search_passes"] == 5000
    assert truth["search_gain"] == 0.25


def test_the_leaderboard_shows_the_strategies(frame, tmp_path):
    markdown, _ = write_leaderboard(load_frame(tmp_path, "demo"), "demo", "Demo", tmp_path / "out")
    section = markdown.read_text().split("## Search strategies")[1].split("## Records")[0]
    (line,) = [line for line in section.splitlines() if "| greedy " in line]
    cells = [cell.strip() for cell in line.split("|")]
    assert {"100 x", "+6.25", "81.25"} <= set(cells)


def test_a_curve_rises_and_ignores_scores_of_some_images():
    trace = [step("identity", 4, 0.5), step("race", 10, 0.99), step("moves", 6, 0.7), step("moves", 5, 0.6)]
    assert curve(trace) == ([4, 14, 20, 25], [0.5, 0.5, 0.7, 0.7])


def test_the_picture_shows_a_line_for_every_strategy(frame, tmp_path):
    draw_anytime(frame, "Demo", tmp_path / "plot.png")
    colours = {tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).reshape(-1, 3)}
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)} & colours
    draw_anytime(frame, "Demo", tmp_path / "again.png")
    assert (tmp_path / "plot.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_a_trace_is_of_records_or_of_steps():
    assert curve([SimpleNamespace(stage="identity", decoder_passes=1, best_score=0.5)]) == ([1], [0.5])
