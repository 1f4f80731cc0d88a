import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from trees import busi, isic2016, kvasir_seg

from redfree import cli
from redfree.data import division
from redfree.data.splits import Pools, write_split_list
from redfree.models import weights

SUITE = """
suite: trial
title: A trial
task: segmentation
models: [tiny]
datasets: [isic2016, camo, procedural/natural]
methods: [{name: baseline}, {name: swap, params: {guard: none}}]
seeds: [0]
protocol: {n_search: 2, n_test: 3, n_pairs: 2, folds: 2, threads: 1}
"""
DEPTH = """
suite: depths
title: Depths
task: depth
models: [dino_nano]
datasets: [nyuv2]
methods: [{name: baseline}]
seeds: [0]
protocol: {n_search: 2, n_test: 3, folds: 2}
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tiny_model, tiny_sam):
    """A working folder with a tiny shipped model and ISIC in the data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))
    # `--data-root` sets it, which must not outlive the test.
    monkeypatch.setenv("REDFREE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path / "weights")
    for folder in ("weights", "benchmarks"):
        Path(folder).mkdir()
    save_file(tiny_sam.state_dict(), "weights/tiny.safetensors")
    Path("benchmarks/trial.yaml").write_text(SUITE)
    Path("benchmarks/depths.yaml").write_text(DEPTH)
    isic2016.build(tmp_path / "data" / "isic2016")
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code, lines of standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["redfree", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        written = capsys.readouterr()
        return left.value.code, written.out.splitlines(), written.err

    return call


@pytest.fixture
def refusal(call):
    """The one line with which a command is refused."""

    def refusal(*arguments):
        code, lines, error = call(*arguments)
        assert (code, lines) == (2, [])
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1
        return error

    return refusal


class TestVerify:
    def test_lists_defects_their_number_and_the_description_and_exits_with_1(self, call):
        code, lines, _ = call("verify", "isic2016")
        assert code == 1
        assert lines[:3] == [
            "isic2016: train: 6 images, 900 are published; unpack the archive anew",
            "isic2016: test: 4 images, 379 are published; unpack the archive anew",
            "2 defects",
        ]
        assert {"name: isic2016", "division: the owner's", "prompt_rule: distance_transform"} <= set(lines)
        assert "splits: train 900, test 379" in lines
        assert any(line.startswith("licence: CC0-1.0") for line in lines)

    def test_a_sound_dataset_exits_with_0(self, call):
        code, lines, _ = call("verify", "digits")
        assert (code, lines[0]) == (0, "0 defects")
        assert not any(line.startswith(("prompt_rule", "overlap")) for line in lines), "digits have no prompts"

    def test_the_root_is_a_folder_relative_to_this_one(self, call, workplace):
        busi.build(workplace / "unpacked" / "busi")
        _, lines, error = call("verify", "busi", "--root", "unpacked/busi")
        assert error == ""
        assert "busi: benign: 7 images, 437 are published; unpack the archive anew" in lines

    def test_the_data_folder_is_an_option(self, call, refusal, monkeypatch, workplace):
        monkeypatch.setenv("REDFREE_DATA", str(workplace / "elsewhere"))
        assert str(workplace / "elsewhere" / "isic2016") in refusal("verify", "isic2016")
        assert call("verify", "isic2016", "--data-root", "data")[0] == 1

    def test_options_are_those_of_the_dataset(self, call, workplace):
        root = kvasir_seg.build(workplace / "data" / "kvasir-seg")
        mask = next((root / "Kvasir-SEG" / "masks").glob("*.jpg"))
        with Image.open(mask) as image:
            Image.fromarray(np.asarray(image) // 4).save(mask)
        defects = {}
        for threshold in (32, 128):
            lines = call("verify", "kvasir-seg", "--dataset-option", f"mask_threshold={threshold}")[1]
            defects[threshold] = [line for line in lines if str(mask) in line]
            assert f"options: mask_threshold {threshold}, protocol official" in lines
        assert [len(found) for found in defects.values()] == [0, 1]

    def test_images_that_cannot_be_divided_do_not_hide_the_other_defects(self, call, workplace, monkeypatch):
        folder = busi.build(workplace / "data" / "busi") / busi.TOP / "malignant"
        stems = busi.stems()
        write_split_list(workplace / "busi.json", "busi", "by hand", 0, Pools(tuple(stems[:5]), tuple(stems[5:])))
        monkeypatch.setattr(division, "SPLIT_LISTS", workplace)
        (folder / "malignant (1).png").unlink()
        (folder / "malignant (53)_mask.png").write_bytes(b"text")
        code, lines, error = call("verify", "busi")
        assert (code, error) == (1, "")
        assert [line for line in lines if "malignant (53)_mask.png: not a readable image" in line]
        assert [line for line in lines if "1 listed images are missing (malignant (1))" in line]
        assert lines[-1] == "4 defects"

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["isic2017"], "unknown dataset 'isic2017'; did you mean 'isic2016'?"),
            (["isic2016", "--root", "nowhere"], "nowhere/ISBI2016_ISIC_Part1_Training_Data: is missing"),
            (["folder"], "dataset folder: field root is missing; name the folder of the images"),
            (["isic2016", "--dataset-option", "search_pool"], "--dataset-option 'search_pool' is not NAME=VALUE"),
            (["isic2016", "--dataset-option", "pool=3"], "dataset isic2016: options: unknown field 'pool'"),
        ],
    )
    def test_a_mistake_is_one_line(self, refusal, arguments, complaint):
        assert complaint in refusal("verify", *arguments)


class TestPlan:
    def test_cells_without_data_are_blocked_and_the_others_have_run_ids(self, call):
        code, lines, _ = call("plan", "trial")
        assert code == 0
        *cells, total = lines
        states = {line.split()[2]: (line.split()[0], line.split()[1]) for line in cells}
        assert len(states) == 6
        for title, (run_id, state) in states.items():
            here = "camo" not in title
            assert state == ("open" if here else "blocked")
            assert re.fullmatch("[0-9a-f]{16}" if here else "-{16}", run_id)
        assert total == "6 cells, 4 open, 2 blocked: see `redfree check trial`"

    def test_nothing_is_blocked_where_all_is_here(self, call):
        assert call("plan", "trial", "--only", "isic2016")[1][-1] == "2 cells, 2 open"

    def test_the_reason_is_asked_for_once_a_dataset_and_model(self, call, monkeypatch):
        from redfree.bench import run

        asked, real = [], run.identify
        monkeypatch.setattr(run, "identify", lambda request: asked.append(request.title) or real(request))
        call("plan", "trial", "--only", "camo")
        assert len(asked) == 1

    def test_a_depth_suite_can_be_planned(self, call):
        assert call("plan", "depths")[1] == [
            "-" * 16 + "  blocked  dino_nano/nyuv2/baseline/0",
            "1 cells, 0 open, 1 blocked: see `redfree check depths`",
        ]


class TestRun:
    def test_a_depth_suite_is_refused(self, refusal, workplace):
        assert refusal("run", "depths") == (
            "error: task depth: its suites can be planned and checked, but not measured yet; run a segmentation one\n"
        )
        assert not (workplace / "results").exists()

    def test_a_missing_dataset_is_refused_before_anything_is_measured(self, refusal, workplace):
        assert str(workplace / "data" / "camo") in refusal("run", "trial")
        assert not (workplace / "results").exists()


class TestCheck:
    def test_a_depth_suite_can_be_checked(self, call):
        code, lines, _ = call("check", "depths", "--quick")
        assert code == 1
        assert lines[0].startswith("MISSING  dataset nyuv2: ")
        assert lines[1].startswith("ready    model dino_nano: ")

    def test_what_is_missing_is_told_from_what_is_here(self, call):
        code, lines, _ = call("check", "trial", "--quick")
        assert code == 1
        assert [line.split()[:3] for line in lines[:3]] == [
            ["ready", "dataset", "isic2016:"],
            ["MISSING", "dataset", "camo:"],
            ["ready", "dataset", "procedural/natural:"],
        ]
        assert re.fullmatch("trial: 1 of [0-9]+ findings stand in the way", lines[-1])


class TestSheet:
    def test_shows_a_dataset_of_the_data_folder(self, call, monkeypatch, workplace):
        monkeypatch.setenv("REDFREE_DATA", "nowhere")
        code, lines, _ = call("sheet", "isic2016", "--out", "x.png", "--count", 3, "--data-root", "data")
        assert (code, lines) == (0, ["x.png"])
        with Image.open("x.png") as sheet:
            assert sheet.size == (8 * 56, 2 * 40)

    def test_images_may_differ_in_size(self, call, workplace):
        kvasir_seg.build(workplace / "data" / "kvasir-seg")
        assert call("sheet", "kvasir-seg", "--out", "x.png", "--count", 2, "--split", "test")[0] == 0

    def test_depth_has_no_masks_to_show(self, refusal, workplace):
        assert "dataset nyuv2: is for depth; a sheet shows masks" in refusal("sheet", "nyuv2", "--out", "x.png")
        assert not (workplace / "x.png").exists()

    def test_an_unknown_dataset_names_the_nearest(self, refusal):
        assert "did you mean 'isic2016'?" in refusal("sheet", "isic2017", "--out", "x.png")


def test_the_list_of_datasets_says_what_is_here(call):
    rows = {line.split()[0]: line for line in call("list", "datasets", "--data-root", "data")[1][2:]}
    assert rows["isic2016"].split()[-2:] == ["yes", "yes"]
    assert rows["camo"].split()[-2:] == ["no", "no"]
