import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns
from PIL import Image
from pydantic import ValidationError
from trees import huggingface as tree
from trees.paint import disc, photo

import redfree.data.adapters.huggingface as adapter_module
from redfree.data.about import about_of
from redfree.data.adapters.huggingface import Columns, HuggingFace
from redfree.data.indexed import IndexedDataset, require_size
from redfree.data.prompts import PromptRule
from redfree.data.schema import decode_depth_row, decode_labelled_row, read_samples
from redfree.errors import UserError
from redfree.validation import validate

IDS = [*((f"train-{row:07d}", "train") for row in range(4)), *((f"test-{row:07d}", "test") for row in range(3))]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("REDFREE_CACHE", str(folder := tmp_path_factory.mktemp("cache")))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tree.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return tree.build(tmp_path_factory.mktemp("parquet"))


def source(root, **options):
    columns = {name: options.pop(name) for name in Columns.model_fields if name in options}
    return HuggingFace(root, HuggingFace.Options(columns=columns, **options))


def first(found):
    return found.entries()[0]


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def seeds(entries):
    return [tree.seed_of(*entry.key) for entry in entries]


class TestTables:
    @pytest.mark.parametrize("kind", ["parquet", "saved"])
    def test_ids_splits_images_and_masks(self, request, kind):
        found = source(request.getfixturevalue(kind))
        assert [(entry.id, entry.split) for entry in found.entries()] == IDS
        assert all(entry.files == () and entry.group is None for entry in found.entries())
        assert found.counts() == {}
        for entry, seed in zip(found.entries(), seeds(found.entries()), strict=True):
            assert np.array_equal(found.image(entry), photo(seed))
            assert np.array_equal(found.target(entry).mask, disc(seed))
            assert found.target(entry).points is None

    def test_the_parquet_files_are_unpacked_into_the_cache(self, parquet, cache):
        source(parquet).entries()
        assert list((cache / "huggingface").rglob("*.arrow"))
        assert not list(parquet.rglob("*.arrow"))

    @pytest.mark.parametrize(
        "names",
        [
            {"train": "train.parquet", "test": "val.parquet"},
            {"train": "train/0.parquet", "test": "valid/0.parquet"},
            {"train": "sub/pets-train_0.parquet", "test": "test/dev/0.parquet"},
            {"train": "training-00000-of-00001.parquet", "test": "validation-00000-of-00001.parquet"},
        ],
    )
    def test_splits_are_told_by_the_names_of_files_and_folders(self, tmp_path, names):
        train = "training" if "training" in names["train"] else "train"
        found = source(tree.build(tmp_path, names), splits={"train": train, "test": "validation"})
        assert [(entry.id, entry.split) for entry in found.entries()] == [
            *((f"{train}-{row:07d}", "train") for row in range(4)),
            *((f"validation-{row:07d}", "test") for row in range(3)),
        ]
        assert np.array_equal(found.image(found.entries()[5]), photo(11))

    def test_trap_a_table_beside_them_is_no_part_of_it(self, tmp_path):
        """`load_dataset` by folder takes the `train.csv` for the training split, and the rows for none."""
        tree.build(tmp_path, {"train": "rows.parquet"})
        naive = get_data_patterns(str(tmp_path))
        assert DataFilesDict.from_patterns(naive, base_path=str(tmp_path)) == {"train": [str(tmp_path / "train.csv")]}
        assert len(source(tmp_path).entries()) == 4

    def test_a_file_of_no_split_among_others_is_refused(self, tmp_path):
        tree.build(tmp_path, {"train": "train.parquet", "test": "more.parquet"})
        assert message_of(source(tmp_path).entries) == (
            f"{tmp_path / 'more.parquet'}: is of no split, as others are; name it after one, such as train.parquet"
        )

    def test_shards_may_have_any_name(self, tmp_path):
        names = {"train": "data/search-00000-of-00001.parquet", "test": "data/test-00000-of-00001-abc.parquet"}
        found = source(tree.build(tmp_path, names), splits={"train": "search", "test": "test"})
        assert [entry.id for entry in found.entries()][3:5] == ["search-0000003", "test-0000000"]

    def test_files_that_change_are_read_anew(self, tmp_path):
        path = tmp_path / "train.parquet"
        tree.table("train").to_parquet(path)
        assert len(source(tmp_path).entries()) == 4
        tree.table("train").select([2, 3]).to_parquet(path)
        found = source(tmp_path)
        assert len(found.entries()) == 2
        assert np.array_equal(found.image(first(found)), photo(2))

    def test_one_split_is_not_divided(self, tmp_path):
        found = source(tree.build(tmp_path, {"train": "rows.parquet"}))
        assert [(entry.id, entry.split) for entry in found.entries()] == [(id_, None) for id_, _ in IDS[:4]]

    def test_a_table_saved_alone_is_not_divided(self, tmp_path):
        found = source(tree.save_alone(tmp_path))
        assert [(entry.id, entry.split) for entry in found.entries()] == [(f"all-{row:07d}", None) for row in range(4)]

    def test_splits_may_be_used_the_other_way_round_or_alone(self, saved):
        turned = source(saved, splits={"train": "test", "test": "train"})
        assert {(entry.key[0], entry.split) for entry in turned.entries()} == {
            ("train", "test"),
            ("test", "train"),
        }
        assert {entry.split for entry in source(saved, splits={"test": "train"}).entries()} == {"test"}

    def test_listing_decodes_nothing(self, parquet, monkeypatch):
        monkeypatch.setattr(Image, "open", None)
        assert len(source(parquet).entries()) == 7

    def test_one_row_is_read_without_decoding_the_others(self, saved, monkeypatch):
        opened, original = [], Image.open
        monkeypatch.setattr(Image, "open", lambda *arguments: opened.append(1) or original(*arguments))
        found = source(saved)
        found.image(found.entries()[2])
        assert len(opened) == 1

    def test_rows_are_samples_with_a_prompt_on_the_object(self, saved):
        data = IndexedDataset("huggingface/saved", about_of("huggingface"), source(saved))
        for sample in read_samples(data.load("test", None, 0)):
            (x, y), *_ = sample.prompt.points
            assert sample.mask[int(y), int(x)]


class TestTargets:
    def test_trap_a_map_of_classes_is_no_mask(self, saved):
        """Everything that is not 0 would be the object, void and other classes included."""
        found = source(saved, mask="classes", mask_value=tree.OBJECT)
        naive = np.asarray(tree.table("train")[0]["classes"]) != 0
        assert naive.all()
        for entry, seed in zip(found.entries(), seeds(found.entries()), strict=True):
            assert np.array_equal(found.target(entry).mask, tree.classes(seed) == tree.OBJECT)

    def test_a_map_of_classes_without_a_value_is_refused(self, saved):
        found = source(saved, mask="classes")
        assert message_of(found.target, first(found)).startswith(
            f"{saved}: train-0000000: column classes: the mask has 3 distinct values, "
        )

    def test_a_value_that_is_not_there(self, saved):
        found = source(saved, mask="classes", mask_value=5)
        assert message_of(found.target, first(found)) == (
            f"{saved}: train-0000000: column classes: no pixel is 5, but 2, 7, 255; correct mask_value"
        )

    def test_a_threshold(self, saved):
        found = source(saved, mask="classes", mask_threshold=7)
        assert np.array_equal(found.target(first(found)).mask, tree.classes(0) >= 7)

    @pytest.mark.parametrize("options", [{}, {"mask_value": 1}, {"mask_threshold": 1}])
    def test_masks_that_are_arrays(self, saved, options):
        found = source(saved, mask="mask_array", **options)
        assert np.array_equal(found.target(first(found)).mask, disc(0))

    def test_images_that_are_bytes_alone(self, parquet):
        found = source(parquet, image="raw_image")
        assert np.array_equal(found.image(first(found)), photo(0))

    def test_images_that_are_paths(self, tmp_path):
        Image.fromarray(photo(9)).save(tmp_path / "nine.png")
        image = {"bytes": None, "path": str(tmp_path / "nine.png")}
        found = source(tree.save_alone(tmp_path / "saved", raw_image=[image] * 4), image="raw_image")
        assert np.array_equal(found.image(first(found)), photo(9))
        (tmp_path / "nine.png").unlink()
        assert "column raw_image: holds no image; " in message_of(found.image, first(found))

    def test_points(self, saved):
        found = source(saved, points="points")
        assert found.target(found.entries()[3]).points == ((3.0, 10.5), (30.0, 20.0))
        found = source(saved, points="point")
        assert found.target(found.entries()[3]).points == ((3.0, 10.5),)
        data = IndexedDataset(
            "huggingface/saved", about_of("huggingface"), found, prompt=PromptRule("file", outside="keep")
        )
        assert {sample.prompt.points for sample in read_samples(data.load("test", None, 0))} == {
            ((float(seed), 10.5),) for seed in (10, 11, 12)
        }

    @pytest.mark.parametrize("points", [[], [[1.0]], [[1.0, 2.0, 3.0]], [[1.0, 2.0], [3.0]], [[float("nan"), 1.0]]])
    def test_malformed_points(self, tmp_path, points):
        root = tree.save_alone(tmp_path, points=[points] * 4)
        found = source(root, points="points")
        assert message_of(found.target, first(found)).startswith(
            f"{root}: all-0000000: column points: is {points}"[:60]
        )

    @pytest.mark.parametrize(
        ("column", "scale", "tolerance"), [("depth", 1, 0), ("depth_array", 1, 0), ("millimetres", 1000, 5.1e-4)]
    )
    def test_depth(self, saved, column, scale, tolerance):
        found = source(saved, task="depth", depth=column, units_per_metre=scale)
        assert found.task == "depth"
        for entry, seed in zip(found.entries(), seeds(found.entries()), strict=True):
            target = found.target(entry)
            assert target.depth.dtype == np.float32
            assert np.abs(target.depth - tree.depth(seed)).max() <= tolerance
            assert np.array_equal(target.valid, tree.depth(seed) > 0)

    def test_trap_depth_read_as_grey_values(self, saved):
        """`convert("L")` clips metres to whole numbers and millimetres to 255."""
        row = tree.table("train")[0]
        assert len(np.unique(np.asarray(row["depth"].convert("L")))) <= 10
        found = source(saved, task="depth")
        assert len(np.unique(found.target(first(found)).depth)) > 1000

    def test_depth_that_is_not_finite_does_not_count(self, tmp_path):
        metres = np.full((40, 56), 2, np.float32)
        metres[0, :3] = np.nan, np.inf, -np.inf
        found = source(tree.save_alone(tmp_path, depth=[metres] * 4), task="depth")
        target = found.target(first(found))
        assert target.depth[0, :4].tolist() == [0, 0, 0, 2]
        assert target.valid[0, :4].tolist() == [False, False, False, True]

    def test_depth_rows(self, saved):
        about = about_of("huggingface").model_copy(update={"task": "depth"})
        for row in IndexedDataset("huggingface/saved", about, source(saved, task="depth")).load("test", None, 0):
            sample = decode_depth_row(row)
            assert np.array_equal(sample.depth, tree.depth(10 + int(sample.id[-7:])))

    def test_labels(self, saved):
        found = source(saved, task="classification")
        assert [found.target(entry) for entry in found.entries()] == [0, 1, 2, 0, 1, 2, 0]
        about = about_of("huggingface").model_copy(update={"task": "classification"})
        data = IndexedDataset("huggingface/saved", about, found)
        labels = {(s := decode_labelled_row(row)).id: s.label for row in data.load("test", None, 0)}
        assert labels == {f"test-{row:07d}": (10 + row) % 3 for row in range(3)}

    def test_labels_that_are_no_classes(self, saved, tmp_path):
        found = source(saved, task="classification", label="name")
        assert message_of(found.target, first(found)) == (
            f"{saved}: train-0000000: column name: is 'row 0'; store classes as whole numbers from 0"
        )
        found = source(tree.save_alone(tmp_path, label=[-1] * 4), task="classification")
        assert "column label: is -1; " in message_of(found.target, first(found))


class TestDefects:
    def test_a_row_without_a_mask(self, tmp_path):
        found = source(tree.save_alone(tmp_path, mask=[None] * 4))
        assert (
            message_of(found.target, first(found)) == f"{tmp_path}: all-0000000: column mask: is empty; remove the row"
        )

    def test_a_broken_image(self, tmp_path):
        broken = {"bytes": tree.png(photo(0))["bytes"][:300], "path": None}
        found = source(tree.save_alone(tmp_path, image=[broken] * 4))
        message = message_of(found.image, first(found))
        assert message.startswith(f"{tmp_path}: all-0000000: column image: not a readable image (")

    def test_an_empty_mask(self, tmp_path):
        found = source(tree.save_alone(tmp_path, mask=[tree.png(np.zeros((40, 56), np.uint8))] * 4))
        assert "column mask: the mask is empty; " in message_of(found.target, first(found))

    def test_a_mask_of_another_size(self, tmp_path):
        found = source(tree.save_alone(tmp_path, mask=[tree.png(np.eye(9, 8, dtype=np.uint8))] * 4))
        entry = first(found)
        assert message_of(require_size, entry, found.image(entry), found.target(entry)).startswith(
            "all-0000000: is 8x9 but its image is 56x40; "
        )

    @pytest.mark.parametrize(("option", "name"), [("image", "imag"), ("mask", "mas"), ("points", "ponts")])
    def test_an_unknown_column(self, saved, option, name):
        message = message_of(source(saved, **{option: name}).entries)
        assert message == f"{saved}: option columns.{option}: unknown column {name!r}; did you mean {option!r}?"

    @pytest.mark.parametrize("splits", [None, {"train": "train", "test": "test"}])
    def test_an_unknown_split(self, tmp_path, splits):
        tree.build(tmp_path, {"train": "train.parquet", "test": "val.parquet"})
        assert message_of(source(tmp_path, splits=splits).entries) == (
            f"{tmp_path}: has no split 'test', but train, validation; name its splits with the option splits, "
            "such as {train: train, test: validation}"
        )


class TestRoots:
    def test_a_folder_without_tables(self, tmp_path):
        (tmp_path / "a.csv").write_text("a,b\n")
        assert message_of(source(tmp_path).entries) == (
            f"{tmp_path}: holds no parquet files and no saved dataset; name a folder that does"
        )

    def test_a_broken_parquet_file(self, tmp_path):
        (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
        message = message_of(source(tmp_path).entries)
        assert message.startswith(f"{tmp_path}: cannot be loaded (")
        assert message.endswith("); restore the files")

    def test_a_broken_saved_dataset(self, tmp_path):
        (tree.save(tmp_path) / "train/state.json").unlink()
        assert message_of(source(tmp_path).entries).startswith(f"{tmp_path}: cannot be loaded (")

    def test_neither_a_folder_nor_a_dataset_of_the_hub(self, tmp_path):
        assert message_of(source(tmp_path / "none").entries) == (
            f"{tmp_path / 'none'}: no such folder; correct it, or name one of the hub with the option path"
        )

    def test_a_dataset_of_the_hub_without_a_network(self, tmp_path):
        code = (
            "from pathlib import Path; from redfree.data.adapters.huggingface import HuggingFace as H\n"
            "H(Path('none'), H.Options(path='nobody/nothing')).entries()"
        )
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        found = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert found.stderr.splitlines()[-1] == (
            "redfree.errors.UserError: nobody/nothing: cannot be loaded (Couldn't reach 'nobody/nothing' on the Hub "
            "(OfflineModeIsEnabled)); correct the option path, or download it where there is a network"
        )

    def test_a_dataset_of_the_hub_is_asked_for_as_named(self, tmp_path, monkeypatch, cache):
        asked = []

        def load_dataset(*arguments, **keywords):
            asked.append((arguments, keywords))
            return datasets.DatasetDict({name: tree.table(name) for name in tree.SIZES})

        monkeypatch.setattr(adapter_module.datasets, "load_dataset", load_dataset)
        found = source(tmp_path / "none", path="some/set", config="part", revision="abc")
        assert [(entry.id, entry.split) for entry in found.entries()] == IDS
        expected = {"revision": "abc", "cache_dir": str(cache / "huggingface")}
        assert asked == [(("some/set", "part"), expected)]

    def test_a_script_is_told_from_other_failures(self, tmp_path, monkeypatch):
        """The library's message speaks of scripts to their author, not to the user of a dataset."""
        script = tmp_path / "some" / "set"
        script.mkdir(parents=True)
        (script / "set.py").write_text("")
        original = datasets.load_dataset
        monkeypatch.setattr(adapter_module.datasets, "load_dataset", lambda *_, **__: original(str(script)))
        assert message_of(source(tmp_path / "none", path="some/set").entries) == (
            "some/set: is a script, which datasets no longer runs; take a copy of it that is stored as parquet files"
        )

    def test_trap_a_folder_here_is_taken_for_the_dataset(self, tmp_path, monkeypatch):
        """`load_dataset` reads a folder of this name, relative to the working directory, without saying so."""
        tree.build(tmp_path / "some" / "set")
        monkeypatch.chdir(tmp_path)
        assert set(datasets.load_dataset("some/set", cache_dir=str(tmp_path / "c"))) == {"train", "test"}
        assert message_of(source(tmp_path / "none", path="some/set").entries) == (
            "some/set: is a folder here too; take it as the root, or work in another folder"
        )


class TestOptions:
    @pytest.mark.parametrize("path", ["csv", "imagefolder", "", "a/b/c", "../up", "/root/set", "https://x/y"])
    def test_trap_names_of_the_library_s_own_readers(self, path):
        """`load_dataset("csv")` would read whatever lies in the working directory."""
        with pytest.raises(ValidationError):
            HuggingFace.Options(path=path)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"mask_threshold": 128, "mask_value": 1}, "mask_threshold and mask_value exclude each other"),
            ({"splits": {"train": "all", "test": "all"}}, "splits: all is trained and tested on"),
            ({"splits": {}}, "field splits: "),
            ({"splits": {"search": "train"}}, "field splits.search"),
            ({"task": "detection"}, "field task: "),
            ({"units_per_metre": 0}, "field units_per_metre: "),
            ({"pth": "a/b"}, "unknown field 'pth'; did you mean 'path'?"),
        ],
    )
    def test_options_that_are_not_valid(self, options, expected):
        message = message_of(validate, HuggingFace.Options, options, "dataset huggingface: options")
        assert message.startswith(f"dataset huggingface: options: {expected}")
