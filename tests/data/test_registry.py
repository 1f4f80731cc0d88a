import subprocess
import sys

import pytest
from trees import folder, isic2016

from redfree.data.about import abouts
from redfree.data.procedural import ProceduralDataset
from redfree.data.prompts import PromptRule
from redfree.data.registry import (
    DATASETS,
    GENERIC,
    SOURCES,
    DatasetUse,
    check_options,
    open_dataset,
    root_of,
    task_of,
)
from redfree.errors import UserError


def message(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def use(name, root=None, /, **options):
    return DatasetUse(name, options, root)


class TestNames:
    def test_each_has_facts_and_each_of_the_facts_a_name(self):
        assert set(DATASETS) == set(abouts())
        assert set(SOURCES) > GENERIC

    def test_an_unknown_one_names_the_nearest(self):
        assert message(open_dataset, "isic2017") == "unknown dataset 'isic2017'; did you mean 'isic2016'?"
        assert message(check_options, use("kvasir")).endswith("did you mean 'kvasir-seg'?")

    def test_no_adapter_is_imported_before_it_is_opened(self):
        code = (
            "import sys; from redfree.data.registry import open_dataset; "
            "print([name for name in sys.modules if name.startswith('redfree.data.adapters.')])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestOptions:
    def test_of_the_source_and_of_the_division_come_together(self, tmp_path):
        found = open_dataset(use("kvasir-seg", str(tmp_path), mask_threshold=200, search_pool=7, protocol="authors"))
        assert found.source.rule.threshold == 200
        assert (found.division.search_pool, found.division.protocol) == (7, "authors")
        assert found.options == {"mask_threshold": 200}

    @pytest.mark.parametrize(
        ("name", "options", "expected"),
        [
            ("kvasir-seg", {"mask_treshold": 9}, "unknown field 'mask_treshold'; did you mean 'mask_threshold'?"),
            ("isic2016", {"mask_threshold": 9}, "unknown field 'mask_threshold'; known: "),
            ("kvasir-seg", {"mask_threshold": 256}, "field mask_threshold: Input should be less than or equal to 255"),
            ("isic2016", {"search_pool": 0}, "field search_pool: Input should be greater than or equal to 1"),
            ("isic2016", {"search_pool": "all"}, "field search_pool: Input should be a valid integer"),
            ("isic2016", {"protocol": "author"}, "field protocol: Input should be 'official' or 'authors'"),
        ],
    )
    def test_mistakes_are_one_line_without_any_files(self, name, options, expected):
        assert message(check_options, use(name, **options)).startswith(f"dataset {name}: options: {expected}")
        assert message(open_dataset, use(name, "nowhere", **options)).startswith(f"dataset {name}: options: {expected}")

    @pytest.mark.parametrize("given", [use("procedural/natural", "folder"), use("procedural/natural", seed=3)])
    def test_what_is_drawn_has_neither_options_nor_a_root(self, given):
        assert message(check_options, given) == (
            "dataset procedural/natural: is drawn, so it has neither options nor a root; remove them"
        )

    def test_the_authors_used_no_such_dataset(self, tmp_path):
        found = open_dataset(use("folder", str(folder.build(tmp_path)), protocol="authors"))
        assert message(found.load, "test", None, 0).startswith("unknown dataset of the authors 'folder'")


class TestSearchFrom:
    @pytest.mark.parametrize("other", ["cod10", "procedural/natural", "folder", "huggingface"])
    def test_an_unknown_or_generic_dataset_is_refused(self, other):
        expected = f"dataset chameleon: options: search_from: unknown dataset '{other}'"
        assert message(check_options, use("chameleon", search_from=other)).startswith(expected)
        assert message(open_dataset, use("chameleon", search_from=other)).startswith(expected)

    def test_a_dataset_of_another_task_is_refused(self):
        assert message(check_options, use("chameleon", search_from="nyuv2")) == (
            "dataset chameleon: options: search_from: nyuv2 is for depth, chameleon for segmentation; "
            "name one of the same task"
        )

    def test_it_lies_in_the_data_folder_and_has_the_same_prompts(self, tmp_path):
        rule = PromptRule("random")
        found = open_dataset(use("chameleon", "elsewhere", search_from="cod10k"), rule, tmp_path)
        assert (found.tested.source.root, found.searched.source.root) == (tmp_path / "elsewhere", tmp_path / "cod10k")
        assert found.tested.prompt == found.searched.prompt == rule

    def test_the_options_are_those_of_the_tested_dataset(self):
        found = open_dataset(use("chameleon", search_from="cod10k", mask_threshold=200))
        assert (found.tested.source.rule.threshold, found.searched.source.rule.threshold) == (200, 128)


class TestRoot:
    @pytest.mark.parametrize("name", ["folder", "image-folder", "huggingface"])
    def test_a_generic_dataset_needs_one(self, name):
        expected = f"dataset {name}: field root is missing; name the folder of the images"
        assert message(open_dataset, name) == message(root_of, use(name)) == expected

    def test_a_dataset_of_the_hub_needs_none(self):
        found = open_dataset(use("huggingface", path="owner/polyps"))
        assert found.name == "huggingface/owner/polyps"

    def test_is_absolute_or_below_the_data_folder_whose_default_is_the_name(self, tmp_path):
        data = tmp_path / "data"
        assert root_of(use("isic2016"), data) == data / "isic2016"
        assert root_of(use("isic2016", "medical/isic"), data) == data / "medical" / "isic"
        assert root_of(use("isic2016", str(tmp_path / "isic")), data) == tmp_path / "isic"

    def test_the_data_folder_is_the_one_given_then_that_of_the_environment_then_in_the_cache(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("REDFREE_DATA", raising=False)
        assert root_of(use("camo")) == tmp_path / "cache" / "datasets" / "camo"
        monkeypatch.setenv("REDFREE_DATA", str(tmp_path / "environment"))
        assert root_of(use("camo")) == tmp_path / "environment" / "camo"
        assert root_of(use("camo"), tmp_path / "given") == tmp_path / "given" / "camo"

    def test_datasets_are_read_from_there(self, tmp_path, monkeypatch):
        isic2016.build(tmp_path / "isic2016")
        monkeypatch.setenv("REDFREE_DATA", str(tmp_path))
        assert len(open_dataset("isic2016").load("test", None, 0)) == 4

    @pytest.mark.parametrize(("root", "name"), [("mine", "mine"), ("set-1.5", "set-1.5"), ("mine.jsonl", "mine")])
    def test_ones_own_images_are_called_by_their_folder_or_manifest(self, root, name):
        assert open_dataset(use("folder", root)).name == f"folder/{name}"


class TestTask:
    def test_is_that_of_the_dataset(self):
        assert [task_of(use(name)) for name in ("procedural/natural", "camo", "kitti", "cifar10")] == [
            *["segmentation"] * 2,
            "depth",
            "classification",
        ]

    def test_is_chosen_for_a_table(self):
        assert task_of(use("huggingface")) == "segmentation"
        chosen = use("huggingface", "tables", task="depth")
        assert task_of(chosen) == open_dataset(chosen).about.task == "depth"


def test_the_prompt_rule_reaches_the_adapter():
    rule = PromptRule("box", jitter=3)
    assert open_dataset("camo", rule).prompt == rule
    assert isinstance(open_dataset("procedural/medical", rule), ProceduralDataset)
    assert open_dataset("procedural/medical", rule).describe()["prompt_rule"] == rule.name
