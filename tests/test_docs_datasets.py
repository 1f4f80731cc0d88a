"""The page on datasets says what the code does."""

import re
from pathlib import Path

import pytest
import yaml
from trees.every import accept_hashes, build, open_tree

from redfree.bench.suite import load_suite, plan
from redfree.data import division
from redfree.data.about import abouts
from redfree.data.registry import DATASETS, GENERIC, SOURCES, check_options, task_of
from redfree.data.splits import AUTHORS, SPLIT_LISTS, read_split_list

PAGE = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text("utf-8")
SUITE = {
    "suite": "trial",
    "title": "A trial",
    "methods": [{"name": "baseline"}],
    "seeds": [0],
    "protocol": {"n_search": 5, "n_test": 3},
}
MODELS = {"segmentation": "sam_nano", "classification": "dino_nano", "depth": "dino_nano"}


def table(heading):
    """Cells of the rows of the table whose first headings are given."""
    lines = PAGE.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def names_in(text):
    return set(re.findall(r"`([a-z0-9/-]+)`", text)) & set(DATASETS)


ADAPTERS = table("adapter")


def test_the_table_has_a_row_for_every_adapter():
    assert [row[0].strip("`") for row in ADAPTERS] == list(SOURCES)
    assert all(len(row) == 4 and all(row) for row in ADAPTERS)


@pytest.mark.parametrize(("name", "count"), [(row[0].strip("`"), int(row[2])) for row in ADAPTERS])
def test_the_samples_of_the_built_tree_are_counted(name, count, tmp_path, monkeypatch):
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(division, "SPLIT_LISTS", tmp_path)
    root = build(name, tmp_path / "tree")
    accept_hashes(monkeypatch, lambda _: root)
    assert len(open_tree(name, root).entries) == count


def test_each_dataset_is_named_under_its_task():
    tasks = {task: names_in(names) for task, names in table("task")}
    assert tasks["your own"] == GENERIC
    assert set().union(*tasks.values()) == set(DATASETS)
    for task in MODELS:
        assert tasks[task] == {name for name in set(SOURCES) - GENERIC if abouts()[name].task == task}


def test_every_source_of_segmentation_says_how_masks_are_read():
    rows = [names_in(row[0]) for row in table("dataset | the object")]
    wanted = {name for name in SOURCES if abouts()[name].task == "segmentation"}
    assert sum(map(len, rows)) == len(set().union(*rows))
    assert set().union(*rows) == wanted


def test_every_dataset_says_where_its_splits_come_from():
    rows = [names_in(row[1]) for row in table("where train and test come from")]
    assert set().union(*rows) == set(SOURCES) - GENERIC
    assert {about.name for about in abouts().values() if set(about.splits) in ({"test"}, {"val"})} == rows[1]


def test_fetch_gets_the_datasets_that_are_named():
    paragraph = PAGE.split("**`fetch`** downloads")[1].split("\n\n")[0]
    assert paragraph.split()[0] == "seven"
    assert names_in(paragraph) == {name for name, about in abouts().items() if about.archives}


def test_the_sizes_of_the_authors_splits():
    rows = table("dataset | search, train, test")
    found = {row[0].strip("`"): tuple(int(number) for number in row[1].split(",")) for row in rows}
    assert found == {name: (sizes.search, sizes.train, sizes.test) for name, sizes in AUTHORS.items()}
    for name, _, overlap in rows:
        source = AUTHORS[name.strip("`")].search_from
        assert overlap.startswith({"train": "train, ", "all": "train or test", "unknown": "not known"}[source])


def test_the_committed_list_of_busi():
    listed = read_split_list(SPLIT_LISTS / "busi.json")
    assert f"`busi`: {len(listed.train)} and {len(listed.test)}," in PAGE


EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_parts_of_suites(example, tmp_path):
    given = yaml.safe_load(example)
    given["protocol"] = {**SUITE["protocol"], **given.get("protocol", {})}
    first = given["datasets"][0]
    task = abouts()[first if isinstance(first, str) else first["name"]].task
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **given, "task": task, "models": [MODELS[task]]}))
    suite = load_suite(str(path))
    for dataset in suite.datasets:
        check_options(dataset.use)
        assert task_of(dataset.use) == task
    assert len(plan(suite)) == len(suite.datasets)


def test_each_generic_source_has_an_example():
    assert set().union(*(set(re.findall(r"name: ([a-z-]+)", example)) for example in EXAMPLES)) >= GENERIC
