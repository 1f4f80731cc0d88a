import json

import pytest

from redfree.measure.tuner_cost import StepCost, TunerCost, TunerCounts
from redfree.report.tuners import PUBLISHED, REASONS, agreement, write_tuner_costs
from redfree.tuners.catalogue import TUNERS

SAMED = TunerCounts("samed", 147_456, 4_212_016, 147_456)
MEDSAM = TunerCounts("medsam", 0, 93_729_252, 93_177_216)
TURNS = (StepCost(40.04, 3 * 2**30), StepCost(39.0, 2**30), StepCost(50.0, 2**30))
COSTS = [
    TunerCost("sam_vit_b", 2, SAMED, 1, TURNS, (4.004, 3.5, 5.25)),
    TunerCost("sam_vit_b", 2, MEDSAM, 1, (), ()),
]


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.parametrize(
    ("tuner", "inserted", "declared", "expected"),
    [
        ("samed", 147_456, 4_212_016, "yes: inserted"),
        ("samed", 148_000, 4_212_016, "no: not known why"),
        ("samed", 146_999, 4_212_016, "no: not known why"),
        ("encoder-only", 0, 89_670_912, "yes: original"),
        ("sam-parser", 512, 4_058_852, "yes: inserted"),
        ("sam-parser", 600, 4_058_852, "no: not known why"),
        ("decoder-only", 0, 4_058_340, f"no: {REASONS['decoder-only']}"),
        ("decoder-only", 0, 4_057_060, "yes: original"),
        ("dora", 165_888, 4_224_228, "-"),
    ],
)
def test_a_published_count_agrees_where_ours_cut_off_is_the_same(tuner, inserted, declared, expected):
    assert agreement(TunerCounts(tuner, inserted, declared, 1)) == expected


def test_published_counts_are_of_tuners():
    assert PUBLISHED.keys() | REASONS.keys() <= TUNERS.keys()


def test_a_killed_process_is_a_row_of_the_table(tmp_path):
    table = write_tuner_costs(COSTS, [SAMED, MEDSAM], 3, tmp_path)
    done, killed = table.splitlines()[2:]
    assert cells(done)[2:] == [
        "samed",
        "147,456",
        "4,212,016",
        "147,456",
        "40",
        "4.00 (3.50 to 5.25)",
        "3,072 MiB",
        "ok",
    ]
    assert cells(killed)[2:] == ["medsam", "0", "93,729,252", "93,177,216", "-", "-", "-", "out of memory"]


def test_the_text_holds_both_tables_and_what_repeats_them(tmp_path):
    table = write_tuner_costs(COSTS, [SAMED, MEDSAM], 3, tmp_path)
    text = (tmp_path / "tuners.md").read_text()
    assert table in text
    assert "`redfree speed --tuners sam_vit_b --threads 2 --rounds 3`" in text
    assert "3 rounds, in each of which every row has" in text
    assert "steps that are timed, 1 of sam_vit_b;" in text
    samed, medsam = text.split("## Parameters")[1].strip().splitlines()[-2:]
    assert cells(samed) == ["samed", "147,456", "4,212,016", "147", "yes: inserted"]
    assert cells(medsam) == ["medsam", "0", "93,729,252", "93,735", f"no: {REASONS['medsam']}"]


def test_the_file_holds_what_was_measured(tmp_path):
    write_tuner_costs(COSTS, [SAMED, MEDSAM], 3, tmp_path)
    data = json.loads((tmp_path / "tuners.json").read_text())
    assert (data["rounds"], data["costs"][0]["timed"]) == (3, 1)
    assert [cost["status"] for cost in data["costs"]] == ["ok", "out of memory"]
    assert data["costs"][0]["turns"][0] == {"seconds": 40.04, "peak_rss_bytes": 3 * 2**30}
    assert data["costs"][0]["ratios"] == [4.004, 3.5, 5.25]
    assert data["vit_b"][0]["inserted"] == 147_456
    assert data["env"]["packages"]["torch"]
