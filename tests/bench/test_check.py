import os
import shutil
import sys
from collections import Counter

import psutil
import pytest
from trees import chameleon, cod10k, isic2016

from redfree import cli
from redfree.bench import check as checking
from redfree.bench.check import STEP_TO_ENCODING, check
from redfree.bench.suite import load_suite, plan
from redfree.data import indexed
from redfree.data.adapters.isic2016 import Isic2016
from redfree.files import write_text
from redfree.measure import probe as probing
from redfree.measure.probe import Probe, probe
from redfree.models import weights
from redfree.models.checkpoints import checkpoint_of

SUITE = """
suite: trial
title: A trial
task: segmentation
models: [tiny]
datasets: [isic2016]
methods: [{name: baseline}, {name: swap}]
seeds: [0]
protocol: {n_search: 2, n_test: 3, n_pairs: 2, folds: 2, threads: 1}
"""
COSTS = Probe(encode_seconds=36.0, pass_seconds=0.0, feature_bytes=2**30, peak_rss_bytes=2**31)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tiny_model):
    """A data folder with ISIC and others, of published sizes as small as the trees."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REDFREE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("REDFREE_WEIGHTS", raising=False)
    monkeypatch.setattr(indexed.IndexedDataset, "_miscounts", lambda _: iter(()))
    for tree, name in ((isic2016, "isic2016"), (chameleon, "chameleon"), (cod10k, "cod10k")):
        tree.build(tmp_path / "data" / name)
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """Counts how often each dataset was verified."""
    found, real = Counter(), indexed.IndexedDataset.verify

    def verify(self):
        found[self.name] += 1
        return real(self)

    monkeypatch.setattr(indexed.IndexedDataset, "verify", verify)
    return found


@pytest.fixture
def timed(monkeypatch):
    """Fakes the probe; returns the models that were timed, and what the probe finds."""
    calls, found = [], {"costs": COSTS}
    monkeypatch.setattr(checking, "probe", lambda *call: calls.append(call) or found["costs"])
    return calls, found


def findings(tmp_path, text=SUITE, *, verify=False, probes=False, **changes):
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    write_text(tmp_path / "trial.yaml", text)
    requests = plan(load_suite(str(tmp_path / "trial.yaml")))
    found = check(requests, tmp_path / "cache", tmp_path / "results", verify=verify, probes=probes)
    assert not any("\n" in one.detail for one in found)
    return found


def of(found, subject):
    return [(one.ready, one.detail) for one in found if one.subject.startswith(subject)]


class TestDatasets:
    def test_one_that_is_here_is_listed_once_with_its_splits(self, tmp_path):
        found = findings(tmp_path, seeds=("seeds: [0]", "seeds: [0, 1, 2]"))
        assert of(found, "dataset") == [(True, "2 search and 3 test samples; files not read, 0 defects")]

    def test_a_missing_one_says_where_it_is_expected(self, tmp_path):
        found = findings(tmp_path, data=("[isic2016]", "[isic2016, camo]"))
        (ready, detail) = of(found, "dataset camo")[0]
        assert not ready
        assert str(tmp_path / "data" / "camo") in detail
        assert of(found, "dataset isic2016")[0][0]

    def test_one_with_fewer_images_than_asked_for(self, tmp_path):
        found = findings(tmp_path, size=("n_test: 3", "n_test: 30"))
        assert of(found, "dataset") == [(False, "isic2016: test has 4 images, 30 needed; ask for at most 4")]

    def test_one_without_training_images_is_ready_where_nothing_is_searched(self, tmp_path):
        searched = findings(tmp_path, data=("[isic2016]", "[chameleon]"))
        assert "search has 0 images" in of(searched, "dataset")[0][1]
        alone = {"data": ("[isic2016]", "[chameleon]"), "methods": (", {name: swap}", "")}
        assert of(findings(tmp_path, **alone), "dataset") == [(True, "3 test samples; files not read, 0 defects")]

    def test_a_generic_one_is_looked_for_at_its_root(self, tmp_path):
        found = findings(tmp_path, data=("[isic2016]", "[{name: folder, root: nowhere}]"))
        assert of(found, "dataset folder")[0][1].startswith(f"{tmp_path / 'data' / 'nowhere'}: no such folder")

    def test_defects_are_counted_and_the_first_five_listed(self, tmp_path):
        for mask in (tmp_path / "data" / "isic2016").glob("*Training_GroundTruth/*"):
            mask.unlink()
        found = of(findings(tmp_path, verify=True), "dataset")
        assert found[0] == (False, "2 search and 3 test samples; every file read, 6 defects")
        assert [detail.endswith("restore the file") for _, detail in found[1:]] == [True] * 5

    def test_procedural_ones_are_always_ready(self, tmp_path, read):
        found = findings(tmp_path, verify=True, data=("[isic2016]", "[procedural/natural]"))
        assert of(found, "dataset") == [(True, "2 search and 3 test samples; every file read, 0 defects")]
        assert not read


class TestVerifiedOnce:
    def test_a_sound_dataset_is_not_read_again_until_a_file_changes(self, tmp_path, read):
        for _ in range(2):
            assert of(findings(tmp_path, verify=True), "dataset")[0][0]
        assert read == {"isic2016": 1}
        mask = next((tmp_path / "data" / "isic2016").glob("*Test_GroundTruth/ISIC*"))
        os.utime(mask, ns=(1, 1))
        findings(tmp_path, verify=True)
        assert read == {"isic2016": 2}
        mask.unlink()
        assert not of(findings(tmp_path, verify=True), "dataset")[0][0]
        assert read == {"isic2016": 3}

    def test_a_defective_dataset_is_read_each_time(self, tmp_path, read):
        next((tmp_path / "data" / "isic2016").glob("*Test_GroundTruth/ISIC*")).unlink()
        for _ in range(2):
            assert not of(findings(tmp_path, verify=True), "dataset")[0][0]
        assert read == {"isic2016": 2}

    @pytest.mark.parametrize(
        "change",
        [("[isic2016]", "[{name: isic2016, options: {search_pool: 3}}]"), ("n_pairs: 2", "n_pairs: 2, prompt: box")],
    )
    def test_other_options_or_prompts_are_verified_for_themselves(self, tmp_path, read, change):
        findings(tmp_path, verify=True)
        findings(tmp_path, verify=True, change=change)
        assert read == {"isic2016": 2}

    def test_a_change_of_the_dataset_that_is_searched_counts(self, tmp_path, read):
        change = ("[isic2016]", "[{name: chameleon, options: {search_from: cod10k}}]")
        for _ in range(2):
            assert of(findings(tmp_path, verify=True, data=change), "dataset")[0][0]
        assert read == {"chameleon": 1, "cod10k": 1}
        os.utime(next((tmp_path / "data" / "cod10k").rglob("*-CAM-*.jpg")), ns=(1, 1))
        findings(tmp_path, verify=True, data=change)
        assert read == {"chameleon": 2, "cod10k": 2}


class TestModels:
    def test_weights_that_are_here(self, tmp_path):
        assert of(findings(tmp_path), "model tiny") == [(True, str(weights.shipped_weights("tiny")))]

    def test_missing_weights_say_how_to_get_them_and_need_space(self, tmp_path):
        found = findings(tmp_path, models=("[tiny]", "[tiny, sam_vit_b]"))
        (ready, detail) = of(found, "model sam_vit_b")[0]
        assert not ready
        assert "run `redfree fetch sam_vit_b`" in detail
        size = checkpoint_of("sam_vit_b").bytes / 2**30
        assert f"{size:.1f} GiB for 1 checkpoints that are not here" in of(found, "disk of weights")[0][1]
        assert [ready for ready, _ in of(found, "disk")] == [True] * 3

    def test_a_disk_that_is_too_small_stands_in_the_way(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checking.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        found = findings(tmp_path, models=("[tiny]", "[sam_vit_b]"))
        assert [ready for ready, _ in of(found, "disk of weights")] == [False]

    def test_the_folder_of_weights_is_the_one_whose_disk_is_looked_at(self, tmp_path, monkeypatch):
        monkeypatch.setenv("REDFREE_WEIGHTS", str(tmp_path / "elsewhere"))
        assert of(findings(tmp_path), "disk of weights")[0][1].startswith(f"{tmp_path / 'elsewhere'}: ")


class TestProbes:
    def test_are_not_made_in_a_quick_check(self, tmp_path, timed):
        found = findings(tmp_path)
        assert timed[0] == []
        assert of(found, "memory") == of(found, "time") == []

    def test_each_model_is_timed_once_with_its_options(self, tmp_path, timed):
        findings(
            tmp_path, probes=True, seeds=("seeds: [0]", "seeds: [0, 1]"), data=("[isic", "[procedural/natural, isic")
        )
        assert timed[0] == [("tiny", {}, 1)]
        findings(tmp_path, probes=True, models=("[tiny]", "[tiny, {name: tiny, options: {batch: 2}}]"))
        assert timed[0][1:] == [("tiny", {}, 1), ("tiny", {"batch": 2}, 1)]

    @pytest.mark.parametrize(("free", "ready"), [(8, True), (7, False)])
    def test_memory_is_that_of_the_process_and_of_the_features_of_the_largest_cell(
        self, tmp_path, timed, monkeypatch, free, ready
    ):
        memory = type("Memory", (), {"available": free * 2**30})()
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        detail = f"about 7.0 GiB with the features of 5 images, {free}.0 GiB are free"
        assert of(findings(tmp_path, probes=True), "memory of tiny") == [(ready, detail)]

    def test_a_probe_that_does_not_end_well_stands_in_the_way(self, tmp_path, timed):
        timed[1]["costs"] = None
        found = findings(tmp_path, probes=True)
        assert of(found, "memory of tiny") == [(False, "its probe ended early; free memory or leave it out")]
        assert of(found, "time") == []

    def test_time_is_that_of_encoding_without_a_search(self, tmp_path, timed):
        """3 test images of the baseline and 3 + 2 of the swap at 36 s each."""
        found = findings(tmp_path, probes=True)
        assert of(found, "time")[0][1].startswith("at most 0.1 h for 2 of 2 cells, one at a time;")
        more = findings(tmp_path, probes=True, size=("n_test: 3", "n_test: null"))
        assert of(more, "time")[0][1].startswith("at most 0.1 h for 2 of 2 cells")
        seeds = findings(tmp_path, probes=True, seeds=("seeds: [0]", f"seeds: {list(range(25))}"))
        assert of(seeds, "time")[0][1].startswith("at most 2.0 h for 50 of 50 cells")

    @pytest.mark.parametrize(
        ("params", "passes"),
        [
            ("{strategy: exhaustive, guard: none}", (16 * 15 + 2**2) * 2),
            ("{strategy: exhaustive}", (16 * 15 + 2**2) * 2 * 2),
            ("{strategy: greedy, guard: none}", 480 * 2),
        ],
    )
    def test_time_of_a_search_is_that_of_all_its_passes(self, tmp_path, timed, params, passes):
        timed[1]["costs"] = Probe(encode_seconds=0.0, pass_seconds=3600.0, feature_bytes=1, peak_rss_bytes=1)
        found = of(
            findings(tmp_path, probes=True, methods=("{name: swap}", f"{{name: swap, params: {params}}}")), "time"
        )
        hours = float(found[0][1].split()[2])
        assert hours == passes

    def test_a_swap_on_a_tuned_model_takes_as_many_passes_as_one_on_the_plain_model(self, tmp_path, timed):
        timed[1]["costs"] = Probe(encode_seconds=0.0, pass_seconds=3600.0, feature_bytes=1, peak_rss_bytes=1)
        params = "{tuner: {n_train: 2}, swap: {strategy: exhaustive}}"
        methods = ("{name: swap}", f"{{name: samed+swap, params: {params}}}")
        found = of(findings(tmp_path, probes=True, methods=methods), "time")
        assert float(found[0][1].split()[2]) == (16 * 15 + 2**2) * 2 * 2

    @pytest.mark.parametrize(
        ("train", "images"),
        [("n_train: 2", 2), ("train_on: search", 2), ("n_train: null", 3)],
        ids=["some", "search", "all"],
    )
    def test_time_of_a_fit_counts_once_for_a_tuner_and_the_swap_on_top(self, tmp_path, timed, train, images):
        timed[1]["costs"] = Probe(encode_seconds=360.0, pass_seconds=0.0, feature_bytes=1, peak_rss_bytes=1)
        params = f"{{{train}, fit: {{epochs: 3}}}}"
        both = f"{{name: samed, params: {params}}}, {{name: samed+swap, params: {{tuner: {params}}}}}"
        methods = ("{name: swap}", both)
        found = of(findings(tmp_path, probes=True, methods=methods), "time")
        encoded = 3 + 3 + (3 + 2)  # of the baseline, of the tuner, and of both
        assert float(found[0][1].split()[2]) == pytest.approx((encoded + 3 * images * STEP_TO_ENCODING) / 10, abs=0.06)
        (memory,) = of(findings(tmp_path, probes=True, methods=methods), "memory of tiny")
        assert memory[1].endswith("; training takes more, see leaderboards/tuners.md")

    def test_test_images_that_are_not_here_count_as_none(self, tmp_path, timed):
        timed[1]["costs"] = Probe(encode_seconds=3600.0, pass_seconds=0.0, feature_bytes=1, peak_rss_bytes=1)
        change = {"data": ("[isic2016]", "[camo]"), "size": ("n_test: 3", "n_test: null")}
        found = of(findings(tmp_path, probes=True, **change), "time")
        assert found[0][1].startswith("at most 2.0 h for 2 of 2 cells"), "the two search images of the swap"

    def test_a_dataset_is_opened_no_more_often_for_more_cells(self, tmp_path, timed, monkeypatch):
        opened, real = [], Isic2016.entries
        monkeypatch.setattr(Isic2016, "entries", lambda self: opened.append(1) or real(self))
        counts = []
        for seeds in ("[0]", f"{list(range(9))}"):
            opened.clear()
            findings(tmp_path, probes=True, seeds=("seeds: [0]", f"seeds: {seeds}"), size=("n_test: 3", "n_test: null"))
            counts.append(len(opened))
        assert counts[0] == counts[1]


class TestProbe:
    def test_measures_in_a_process_of_its_own(self):
        found = probe("sam_nano", {}, 1)
        assert found.encode_seconds > 0
        assert found.pass_seconds > 0
        assert found.feature_bytes == 64 * 8 * 8 * 4
        assert found.peak_rss_bytes > 2**26

    def test_a_process_that_fails_is_none(self, monkeypatch):
        monkeypatch.setattr(probing.sys, "executable", shutil.which("false"))
        assert probe("sam_nano", {}, 1) is None

    def test_a_model_without_decoder_has_no_passes(self, tiny_model):
        assert probing.measure_probe("dino_nano", {}, 1).pass_seconds is None


class TestCommandLine:
    @pytest.fixture
    def call(self, monkeypatch, capsys, tmp_path):
        def call(*arguments, text=SUITE):
            write_text(tmp_path / "trial.yaml", text)
            monkeypatch.setattr(sys, "argv", ["redfree", "check", "trial.yaml", *map(str, arguments)])
            with pytest.raises(SystemExit) as left:
                cli.main()
            written = capsys.readouterr()
            return left.value.code, written.out.splitlines(), written.err

        return call

    def test_a_suite_that_is_ready_exits_with_0(self, call, read, timed):
        code, lines, _ = call()
        assert code == 0
        assert lines[-1] == "trial.yaml: ready"
        assert all(line.startswith("ready    ") for line in lines[:-1])
        assert read == {"isic2016": 1}
        assert len(timed[0]) == 1

    def test_what_is_missing_is_marked_and_exits_with_1(self, call):
        code, lines, _ = call("--quick", text=SUITE.replace("[isic2016]", "[isic2016, camo]"))
        assert code == 1
        missing = [line for line in lines if line.startswith("MISSING  ")]
        assert len(missing) == 1
        assert missing[0].startswith("MISSING  dataset camo: ")
        assert lines[-1].startswith("trial.yaml: 1 of ")

    def test_quick_reads_no_file_and_times_nothing(self, call, read, timed):
        assert call("--quick")[0] == 0
        assert (read, timed[0]) == ({}, [])

    def test_the_data_folder_is_an_option(self, call, tmp_path, monkeypatch):
        monkeypatch.setenv("REDFREE_DATA", str(tmp_path / "elsewhere"))
        assert call("--quick")[0] == 1
        assert call("--quick", "--data-root", tmp_path / "data")[0] == 0

    def test_a_mistake_in_the_suite_exits_with_2_and_one_line(self, call):
        code, lines, error = call(text=SUITE.replace("[isic2016]", "[isic]"))
        assert (code, lines) == (2, [])
        assert error.startswith("error: trial.yaml: datasets: unknown dataset 'isic'")
        assert len(error.splitlines()) == 1
