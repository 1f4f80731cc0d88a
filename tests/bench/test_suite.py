from itertools import product
from pathlib import Path

import pytest

from redfree.bench.suite import find_suite, load_suite, plan
from redfree.data.prompts import PromptRule
from redfree.data.registry import DatasetUse
from redfree.data.splits import AUTHORS
from redfree.errors import UserError
from redfree.records.schema import Protocol
from redfree.search.guard import RULES
from redfree.tuners.fit_options import FitParams

ROOT = Path(__file__).parents[2]
SUITE = """
suite: trial
title: A trial
task: segmentation
models: [sam_nano]
datasets: [procedural/natural, procedural/medical]
methods:
  - {name: baseline}
  - {name: swap, label: free, params: {guard: none}}
seeds: [4, 5, 6]
protocol: {n_search: 3, n_test: 7, folds: 2}
"""


@pytest.fixture(autouse=True)
def _repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def write(tmp_path):
    def write(text, name="trial.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.fixture
def suite(write):
    return load_suite(write(SUITE))


def refusal(path, overrides=None):
    """The one line with which a suite is refused."""
    with pytest.raises(UserError) as refused:
        plan(load_suite(path, overrides))
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_the_plan_is_the_product_with_methods_next_to_each_other(suite):
    cells = plan(suite)
    seeds_first = product([4, 5, 6], [dataset.name for dataset in suite.datasets], ["baseline", "free"])
    expected = [(dataset, seed, label) for seed, dataset, label in seeds_first]
    assert [(cell.dataset, cell.seed, cell.method.label) for cell in cells] == expected
    assert {(cell.suite, cell.model) for cell in cells} == {("trial", "sam_nano")}
    assert {(cell.protocol.n_search, cell.protocol.n_test, cell.protocol.n_pairs) for cell in cells} == {(3, 7, 10)}
    assert cells[0].title == "sam_nano/procedural/natural/baseline/4"


def test_params_are_complete_in_the_plan(suite):
    baseline, swap = (cell.method for cell in plan(suite)[:2])
    assert (baseline.name, baseline.params) == ("baseline", {})
    complete = {"strategy": "greedy", "options": {}, "guard": "none", "select_on": "search"}
    assert (swap.name, swap.label, swap.params) == ("swap", "free", complete)


def test_the_deactivation_control_has_no_strategy(write):
    suite = load_suite(write(SUITE.replace("name: swap", "name: zero")))
    assert plan(suite)[1].method.params == {"subsets": "climb", "guard": "none", "select_on": "search"}
    text = SUITE.replace("name: swap", "name: zero").replace("guard: none", "strategy: greedy")
    assert "method free: params: unknown field 'strategy'" in refusal(write(text))


@pytest.mark.parametrize("parts", [1, 2, 4, 6])
def test_shards_partition_the_plan_and_keep_groups_whole(suite, parts):
    shards = [plan(suite, shard=(i, parts)) for i in range(1, parts + 1)]
    titles = [[cell.title for cell in shard] for shard in shards]
    assert sorted(t for shard in titles for t in shard) == sorted(cell.title for cell in plan(suite))
    groups = [{(cell.model, cell.dataset, cell.seed) for cell in shard} for shard in shards]
    assert sum(map(len, groups)) == 6
    assert [len(shard) for shard in shards] == [2 * len(group) for group in groups]
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_a_shard_without_a_group_says_so(suite):
    with pytest.raises(UserError, match=r"shard 7/9 is empty: the suite has 6 groups"):
        plan(suite, shard=(7, 9))


def test_only_keeps_cells_whose_title_holds_the_text(suite):
    kept = plan(suite, only="medical/free")
    assert [cell.title for cell in kept] == [f"sam_nano/procedural/medical/free/{seed}" for seed in (4, 5, 6)]
    with pytest.raises(UserError, match="--only 'nothing' matches none of 12 cells"):
        plan(suite, only="nothing")


def test_overrides_change_single_fields(write):
    suite = load_suite(write(SUITE), {"protocol.n_search": 20, "seeds": [9], "methods.1.params.guard": "none"})
    assert (suite.protocol.n_search, suite.protocol.n_test, suite.seeds) == (20, 7, [9])


def test_the_shipped_suites():
    seg, smoke = load_suite("seg"), load_suite("benchmarks/smoke.yaml")
    assert len(plan(seg)) == len(seg.models) * len(seg.datasets) * len(seg.seeds) * len(seg.methods)
    assert {"baseline", "oracle", "swap"} <= {cell.method.label for cell in plan(seg)}
    assert find_suite("smoke") == find_suite("benchmarks/smoke.yaml")
    assert smoke.methods == seg.methods, "smoke inherits the methods of its _base_"
    assert (smoke.suite, smoke.seeds, smoke.protocol.n_search) == ("smoke", [0], 4)
    assert smoke.protocol.threads == seg.protocol.threads == 1, "a nested field that smoke does not name is inherited"
    assert seg.protocol.threads != Protocol.model_fields["threads"].default


def test_the_exhaustive_rows_join_those_of_seg():
    seg, exhaustive = load_suite("seg"), load_suite("seg-exhaustive")
    own = {"methods", "models"}
    assert exhaustive.model_dump(exclude=own) == seg.model_dump(exclude=own)
    assert {model.name for model in exhaustive.models} < {model.name for model in seg.models}
    cells = [*plan(seg), *plan(exhaustive)]
    assert len({cell.title for cell in cells}) == len(cells), "no cell is measured twice"
    assert {cell.method.params["strategy"] for cell in plan(exhaustive)} == {"exhaustive"}
    assert {cell.method.params["strategy"] for cell in plan(seg) if cell.method.name == "swap"} == {"greedy"}


def test_the_guard_suite_has_every_rule():
    rules = [cell.method.params.get("guard") for cell in plan(load_suite("guard"))]
    assert {rule: rules.count(rule) for rule in rules} == dict.fromkeys((None, "none", *RULES), 30)


class TestDatasets:
    """Datasets with options, a root and fields of the protocol that differ."""

    def suite(self, write, datasets):
        return load_suite(write(SUITE.replace("[procedural/natural, procedural/medical]", datasets)))

    def refusal(self, write, datasets):
        return refusal(write(SUITE.replace("[procedural/natural, procedural/medical]", datasets)))

    def test_all_of_it_reaches_the_cells(self, write):
        entry = "{name: coco2017, options: {min_area: 64, search_pool: 9}, root: sets/coco, protocol: {n_test: 5}}"
        coco, camo = plan(self.suite(write, f"[{entry}, camo]"))[:4:2]
        assert (coco.dataset, coco.dataset_options, coco.dataset_root) == (
            "coco2017",
            {"min_area": 64, "search_pool": 9},
            "sets/coco",
        )
        assert coco.dataset_use == DatasetUse("coco2017", {"min_area": 64, "search_pool": 9}, "sets/coco")
        assert (coco.protocol.n_test, coco.protocol.n_search) == (5, 3)
        assert (camo.dataset_options, camo.dataset_root, camo.protocol.n_test) == ({}, None, 7)
        assert coco.title == "sam_nano/coco2017/baseline/4"

    def test_prompts_are_set_in_the_protocol_and_differ_by_dataset(self, write):
        entry = "{name: camo, protocol: {prompt: box, box_jitter: 5, prompt_seed: 3}}"
        camo, cod10k = plan(self.suite(write, f"[{entry}, cod10k]"))[:4:2]
        assert camo.prompt == PromptRule("box", seed=3, jitter=5)
        assert cod10k.prompt == PromptRule()
        assert camo.protocol.prompt_components == "all"

    def test_whole_test_splits(self, write):
        suite = self.suite(write, "[{name: camo, protocol: {n_test: null}}]")
        assert plan(suite)[0].protocol.n_test is None

    @pytest.mark.parametrize(
        ("datasets", "complaint"),
        [
            ("[nyuv2]", "datasets: nyuv2 is for depth, the suite for segmentation; remove one of them"),
            ("[{name: huggingface, root: x, options: {task: depth}}]", "datasets: huggingface is for depth"),
            ("[camoo]", "datasets: unknown dataset 'camoo'; did you mean 'camo'?"),
            ("[{name: camo, option: {}}]", "unknown field 'datasets.0.option'; did you mean 'datasets.0.options'?"),
            ("[{name: camo, options: {min_area: 3}}]", "datasets: dataset camo: options: unknown field 'min_area'"),
            ("[{name: camo, options: {protocol: ours}}]", "field protocol: Input should be 'official' or 'authors'"),
            ("[{name: camo, protocol: {n_tests: 3}}]", "protocol of camo: unknown field 'n_tests'"),
            ("[{name: camo, protocol: {n_search: 1}}]", "protocol of camo: 2 folds cannot be made of 1 search images"),
            ("[{name: chameleon, options: {search_from: cod}}]", "search_from: unknown dataset 'cod'"),
            ("[{name: chameleon, options: {search_from: kitti}}]", "search_from: kitti is for depth, chameleon for"),
            ("[{name: procedural/natural, root: x}]", "is drawn, so it has neither options nor a root; remove them"),
        ],
    )
    def test_a_mistake_is_one_line(self, write, datasets, complaint):
        assert complaint in self.refusal(write, datasets)


class TestPaperSuites:
    def test_segmentation_is_nine_datasets_seven_backbones_and_two_methods(self):
        cells = plan(load_suite("seg-paper"))
        assert len({cell.title for cell in cells}) == len(cells) == 126 == 9 * 7 * 2
        assert {cell.dataset for cell in cells} == {
            *("coco2017", "voc2012", "perseg", "isic2016", "busi", "kvasir-seg", "camo", "cod10k", "chameleon")
        }
        assert {cell.method.label for cell in cells} == {"baseline", "swap"}
        assert not any(cell.model.startswith("sam2.1") or "nano" in cell.model for cell in cells)

    def test_their_protocols_fit_their_datasets(self):
        protocols = {cell.dataset: cell.protocol for cell in plan(load_suite("seg-paper"))}
        assert (protocols["coco2017"].n_test, protocols["isic2016"].n_test) == (778, None)
        assert (protocols["perseg"].n_search, protocols["isic2016"].n_search) == (40, 50)

    def test_the_exhaustive_rows_differ_in_the_search_alone(self):
        paper, exhaustive = load_suite("seg-paper"), load_suite("seg-paper-exhaustive")
        assert exhaustive.model_dump(exclude={"methods"}) == paper.model_dump(exclude={"methods"})
        (swap,) = {cell.method.label: cell.method for cell in plan(exhaustive)}.values()
        assert (swap.params["strategy"], swap.params["guard"]) == ("exhaustive", "none")
        titles = {cell.title for suite in (paper, exhaustive) for cell in plan(suite)}
        assert len(titles) == 126 + 63

    def test_the_authors_rows_have_their_splits(self):
        suite = load_suite("seg-paper-authors")
        assert {dataset.name for dataset in suite.datasets} == set(AUTHORS)
        assert all(dataset.options["protocol"] == "authors" for dataset in suite.datasets)
        assert suite.protocol.semantics == "sequential"
        assert len(plan(suite)) == 8 * 7 * 2

    def test_tuners_are_the_papers_eight_alone_and_with_a_swap_trained_as_it_says(self):
        cells = [cell for name in ("peft-paper", "peft-paper-coco") for cell in plan(load_suite(name))]
        assert len({cell.title for cell in cells}) == len(cells) == 9 * 18
        assert {cell.dataset for cell in cells} == {cell.dataset for cell in plan(load_suite("seg-paper"))}
        assert ({cell.suite for cell in cells}, {cell.model for cell in cells}) == ({"peft-paper"}, {"sam_vit_b"})
        of_combos = {cell.method.label for cell in plan(load_suite("combos"))}
        assert {cell.method.label for cell in cells} == of_combos
        fits = [cell.tuner[1] for cell in cells if cell.tuner]
        assert {fit.fit for fit in fits} == {FitParams()}
        assert {fit.n_train for fit in fits} == {None, AUTHORS["coco2017"].train}
        assert all((cell.dataset == "coco2017") == (cell.tuner[1].n_train == 1814) for cell in cells if cell.tuner)

    def test_unguarded_combos_differ_in_the_guard_alone(self):
        combos, unguarded = load_suite("combos"), load_suite("combos-unguarded")
        assert unguarded.model_dump(exclude={"methods"}) == combos.model_dump(exclude={"methods"})
        guarded = {cell.title: cell for cell in plan(combos) if cell.method.name.endswith("swap")}
        found = {cell.title.replace("-unguarded", ""): cell for cell in plan(unguarded)}
        assert found.keys() == guarded.keys()
        for title, cell in found.items():
            assert cell.searched[1] == {**guarded[title].searched[1], "guard": "none"}
            assert cell.tuner == guarded[title].tuner

    @pytest.mark.parametrize(
        ("name", "task", "cells"), [("depth-paper", "depth", 4), ("cls-paper", "classification", 4)]
    )
    def test_depth_and_classification_can_be_planned(self, name, task, cells):
        planned = plan(load_suite(name))
        assert len(planned) == cells
        assert {cell.task for cell in planned} == {task}


def test_a_base_file_is_read_from_beside_the_suite(write):
    write(SUITE)
    child = load_suite(write("_base_: trial.yaml\nsuite: child\nprotocol: {n_test: 2}\n", "child.yaml"))
    assert (child.suite, child.seeds, child.protocol.n_search, child.protocol.n_test) == ("child", [4, 5, 6], 3, 2)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[sam_nano]", "[sam_nanoo]", "models: unknown model 'sam_nanoo'; did you mean 'sam_nano'?"),
        ("natural", "naturl", "datasets: unknown dataset 'procedural/naturl'; did you mean 'procedural/natural'?"),
        ("name: swap", "name: swop", "methods: unknown method 'swop'; did you mean 'swap'?"),
        ("seeds", "seed", "unknown field 'seed'; did you mean 'seeds'?"),
        ("label", "lable", "unknown field 'methods.1.lable'; did you mean 'methods.1.label'?"),
        ("n_search", "n_serch", "unknown field 'protocol.n_serch'; did you mean 'protocol.n_search'?"),
        ("guard:", "gard:", "method free: params: unknown field 'gard'; did you mean 'guard'?"),
        ("guard: none", "guard: nine", "method free: params: field guard: Input should be"),
        ("guard: none", "strategy: greedi", "method free: params: field strategy: Input should be"),
        (
            "guard: none",
            "options: {keep: 3}",
            "greedy has no option 'keep'; it has: budget, patience, scored, together",
        ),
        ("guard: none", "options: {scored: -1}", "method free: params: option scored is -1; give 1 or more"),
        ("guard: none", "options: {scored: many}", "method free: params: field options.scored: Input should be"),
        ("guard: none", "strategy: exhaustive, options: {scored: 3}", "has no option 'scored'; it has: none"),
        ("n_search: 3", "n_search: 0", "field protocol.n_search: Input should be greater"),
        ("n_search: 3", "n_search: many", "field protocol.n_search: Input should be a valid integer"),
        ("seeds: [4, 5, 6]", "seeds: []", "field seeds: List should have at least 1 item"),
        ("task: segmentation", "task: detection", "field task:"),
        ("title: A trial\n", "", "field title: Field required"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line_that_names_it(write, old, new, complaint):
    assert old in SUITE
    assert complaint in refusal(write(SUITE.replace(old, new)))


@pytest.mark.parametrize(
    "text",
    [
        "a: [1,",
        "- a\n- b\n",
        "",
        "words",
        b"\x89PNG\r\n\x1a\n\x00",
        "_base_: nothing.yaml\n",
        "_base_: trial.yaml\n",
        "3: x\n",
        "filename: x\n",
    ],
)
def test_what_is_no_suite_is_one_line_that_names_the_file(write, text):
    path = write(text)
    assert refusal(path).startswith(f"{path}: not a suite (")


def test_yaml_that_cannot_be_parsed_names_the_line(write):
    assert "line 3" in refusal(write("suite: x\nmodels: [a\nseeds: 1\n"))


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ({"protocol.n_serch": 3}, "did you mean 'protocol.n_search'?"),
        ({"protocol.n_search": -1}, "field protocol.n_search"),
        ({"protocol.n_search.x": 1}, "not a suite"),
        ({"models.7": "sam_nano"}, "not a suite"),
    ],
)
def test_a_mistake_in_an_override(write, override, complaint):
    assert complaint in refusal(write(SUITE), override)


@pytest.mark.parametrize(
    ("name", "hint"), [("smok", "did you mean 'smoke'"), ("xyz", "known: "), ("benchmarks/sog.yaml", "unknown suite")]
)
def test_an_unknown_suite_names_the_nearest(name, hint):
    assert hint in refusal(name)
