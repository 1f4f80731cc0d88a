import numpy as np
import pytest
from PIL import Image
from trees import folder as tree
from trees.paint import as_grey, disc, photo, save

from redfree.data.about import about_of
from redfree.data.adapters.folder import Folder
from redfree.data.folder import FolderDataset
from redfree.data.indexed import IndexedDataset, require_size
from redfree.data.prompts import PromptRule
from redfree.data.schema import read_samples
from redfree.errors import UserError

AUTHORS_IDS = [
    ("search-1024/3", "train", "3"),
    ("search-1024/20", "train", "20"),
    ("test-1024/1", "test", None),
    ("test-1024/2", "test", None),
    ("test-1024/4", "test", None),
    ("train-1024/3", "train", "3"),
    ("train-1024/4", "train", None),
    ("train-1024/20", "train", "20"),
    ("train-1024/100", "train", None),
]


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def facts(source):
    return [(entry.id, entry.split, entry.group) for entry in source.entries()]


class TestOneFolder:
    @pytest.mark.parametrize("layout", ["flat", "subfolders", "manifest"])
    @pytest.mark.parametrize("points", [True, False])
    def test_samples_are_those_that_were_drawn(self, tmp_path, layout, points):
        source = Folder(getattr(tree, layout)(tmp_path, points=points))
        ids = tree.STEMS[::-1] if layout == "manifest" else tree.STEMS
        assert facts(source) == [(stem, None, None) for stem in ids]
        assert source.counts() == {}
        for entry in source.entries():
            seed = tree.seed_of(entry.id)
            assert np.abs(source.image(entry).astype(int) - photo(seed)).mean() < 6
            target = source.target(entry)
            assert np.array_equal(target.mask, disc(seed))
            expected = tree.points_of(entry.id)[:1] if layout == "manifest" else tree.points_of(entry.id)
            assert target.points == (tuple(expected) if points else None)

    def test_ids_and_images_are_those_of_the_folder_dataset(self, tmp_path):
        source, other = Folder(tree.flat(tmp_path)), FolderDataset(tmp_path)
        assert [entry.id for entry in source.entries()] == other.ids
        for entry, sample in zip(source.entries(), read_samples(other.load("all", 0, 0)), strict=True):
            assert np.array_equal(source.image(entry), sample.image)
            assert np.array_equal(source.target(entry).mask, sample.mask)
            assert source.target(entry).points[0] == sample.prompt.points[0]

    def test_listing_decodes_nothing(self, tmp_path, monkeypatch):
        tree.flat(tmp_path)
        monkeypatch.setattr(Image, "open", None)
        assert len(Folder(tmp_path).entries()) == 4

    def test_the_mask_threshold(self, tmp_path):
        tree.flat(tmp_path)
        stored = np.where(disc(1), 200, np.where(disc(2), 90, 0)).astype(np.uint8)
        save(tmp_path / "2.png", stored)
        source = Folder(tmp_path)
        assert "pass --mask-threshold N" in message_of(source.target, source.entries()[0])
        source = Folder(tmp_path, Folder.Options(mask_threshold=128))
        assert np.array_equal(source.target(source.entries()[0]).mask, disc(1))

    def test_trap_a_threshold_of_128_empties_masks_of_small_values(self, tmp_path):
        tree.flat(tmp_path)
        save(tmp_path / "2.png", disc(2).astype(np.uint8))
        assert not (np.asarray(Image.open(tmp_path / "2.png")) >= 128).any()
        source = Folder(tmp_path)
        assert np.array_equal(source.target(source.entries()[0]).mask, disc(2))

    def test_points_reach_the_prompt(self, tmp_path):
        source = Folder(tree.flat(tmp_path))
        for components, count in (("all", 1), ("each", 2)):
            rule = PromptRule("file", components=components, outside="keep")
            data = IndexedDataset("folder/mine", about_of("folder"), source, prompt=rule)
            for sample in read_samples(data.load("test", None, 0)):
                assert sample.prompt.points == tuple(tree.points_of(sample.id)[:count])


class TestPoints:
    @pytest.fixture
    def root(self, tmp_path):
        return tree.flat(tmp_path)

    def points(self, root):
        source = Folder(root)
        return source.target(source.entries()[0]).points

    def test_trap_only_the_first_line_is_read(self, root):
        """A folder's first lines alone, as the paper's authors read them, lose the second object of an image."""
        (root / "2.txt").write_bytes(b"\xef\xbb\xbf 28.5 , 20 \r\n\r\n7,8\r\n7,8\r\n")
        assert next(read_samples(FolderDataset(root).load("all", 1, 0))).prompt.points == ((28.5, 20.0),)
        assert self.points(root) == ((28.5, 20.0), (7.0, 8.0), (7.0, 8.0))

    @pytest.mark.parametrize(
        ("text", "line", "content"),
        [
            ("1,2\n3;4\n", "line 2", "3;4"),
            ("1,2\n\nnan,1", "line 3", "nan,1"),
            ("1,2,3", "the first line", "1,2,3"),
            ("", "the first line", ""),
            ("\n \n", "the first line", ""),
        ],
    )
    def test_a_malformed_line_is_named(self, root, text, line, content):
        (root / "2.txt").write_text(text)
        expected = f"{root / '2.txt'}: {line} is {content!r}; write the point as x,y in pixels, such as 120,85"
        assert message_of(self.points, root) == expected

    def test_points_of_some_images_alone_are_refused(self, root):
        (root / "9.txt").unlink()
        assert message_of(Folder(root).entries).startswith(f"{root / '9.txt'}: the point is missing; ")


class TestSplitFolders:
    @pytest.fixture
    def root(self, tmp_path):
        return tree.build(tmp_path)

    def test_ids_splits_and_groups(self, root):
        assert facts(Folder(root)) == AUTHORS_IDS

    def test_trap_a_stem_in_two_folders_is_two_samples(self, root):
        """By their stems alone the nine images would be six."""
        source = Folder(root)
        naive = {entry.files[0].stem: entry for entry in source.entries()}
        assert len(naive) == 6
        for entry in source.entries():
            assert np.array_equal(source.target(entry).mask, disc(tree.seed_of(entry.id)))
            assert source.target(entry).points == tuple(tree.points_of(entry.id))

    def test_training_images_of_one_stem_are_not_both_searched_and_trained_on(self, root):
        data = IndexedDataset("folder/mine", about_of("folder"), Folder(root))
        for seed in range(20):
            search, train = (
                {id_.split("/")[1] for id_ in data.ids(split, None, seed)} for split in ("search", "train")
            )
            assert not search & train

    @pytest.mark.parametrize(
        ("folders", "split"),
        [
            (("train", "test"), "train"),
            (("search", "test"), "train"),
            (("train-256", "test-512"), "train"),
        ],
    )
    @pytest.mark.parametrize("layout", ["flat", "subfolders", "manifest"])
    def test_each_folder_may_have_any_layout_and_unique_stems_are_ids(self, tmp_path, folders, split, layout):
        first, second = folders
        getattr(tree, layout)(tmp_path / first, ["a", "b"])
        getattr(tree, layout)(tmp_path / second, ["c"])
        source = Folder(tmp_path)
        assert {(entry.id, entry.split, entry.group) for entry in source.entries()} == {
            ("a", split, None),
            ("b", split, None),
            ("c", "test", None),
        }
        assert all(source.target(entry).mask.any() for entry in source.entries())

    def test_points_in_one_folder_alone_are_refused(self, root):
        for path in (root / "test-1024").glob("*.txt"):
            path.unlink()
        assert message_of(Folder(root).entries).startswith(f"{root / 'test-1024/1.txt'}: the point is missing; ")

    @pytest.mark.parametrize(("there", "other"), [("search-1024", "test"), ("test-1024", "train or search")])
    def test_one_split_alone_is_refused(self, tmp_path, there, other):
        tree.flat(tmp_path / there)
        assert message_of(Folder(tmp_path).entries) == (
            f"{tmp_path}: has {there} but no folder {other}; add it, "
            f"or take {tmp_path / there} as the root to divide its images by seed"
        )

    def test_two_manifests_are_refused(self, tmp_path):
        tree.flat(tmp_path / "test")
        path = tree.manifest(tmp_path / "train")
        (tmp_path / "train/more.jsonl").write_text(path.read_text())
        assert message_of(Folder(tmp_path).entries) == (
            f"{tmp_path / 'train/more.jsonl'}: is a second manifest beside data.jsonl; remove one of them"
        )

    def test_an_empty_split_is_refused(self, root):
        (root / "validation").mkdir()
        assert len(Folder(root).entries()) == 9
        (root / "test").mkdir()
        assert message_of(Folder(root).entries).startswith(f"{root / 'test'}: holds no images; ")

    def test_folders_of_images_and_masks_are_no_splits(self, tmp_path):
        tree.subfolders(tmp_path)
        tree.flat(tmp_path / "test")
        assert facts(Folder(tmp_path)) == [(stem, None, None) for stem in tree.STEMS]


def test_a_missing_root_is_named(tmp_path):
    assert message_of(Folder(tmp_path / "none").entries) == (
        f"{tmp_path / 'none'}: no such folder or manifest; correct the path"
    )


def test_a_missing_mask_is_named(tmp_path):
    (tree.flat(tmp_path) / "9.png").unlink()
    assert message_of(Folder(tmp_path).entries) == (
        f"{tmp_path / '9.jpg'}: has no mask; add {tmp_path / '9.png'} or remove the image"
    )


def test_a_mask_of_another_size_is_the_file_that_is_named(tmp_path):
    save(tree.flat(tmp_path) / "2.png", as_grey(disc(2).T.copy()))
    source = Folder(tmp_path)
    entry = source.entries()[0]
    assert message_of(require_size, entry, source.image(entry), source.target(entry)).startswith(
        f"{tmp_path / '2.png'}: is 40x56 but its image is 56x40; "
    )
