import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import redfree.data.folder as folder_module
from redfree.data.folder import FolderDataset
from redfree.data.prompts import distance_transform
from redfree.data.schema import decode_row, read_samples
from redfree.errors import UserError

HEIGHT, WIDTH = 10, 14
ISIC = Path(__file__).parents[2].parent / "shared/data/isic2016-flat"


def photo(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def disc():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:8] = 255
    return mask


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def flat(root, stems, suffix="jpg", points=True):
    """Writes a flat tree; each image is seeded by its position."""
    for index, stem in enumerate(stems):
        save(root / f"{stem}.{suffix}", photo(index))
        save(root / (f"{stem}_mask.png" if suffix == "png" else f"{stem}.png"), disc())
        if points:
            (root / f"{stem}.txt").write_text(f"{index},4\n")
    return root


def subfolders(root, stems, points=True, mask_suffix="png"):
    for index, stem in enumerate(stems):
        save(root / "images" / f"{stem}.png", photo(index))
        save(root / "masks" / f"{stem}.{mask_suffix}", disc())
        if points:
            (root / "points").mkdir(exist_ok=True)
            (root / "points" / f"{stem}.txt").write_text(f"{index},4")
    return root


def manifest(root, *lines):
    path = root / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def message_of(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids_of(rows):
    return list(rows.select_columns("id")["id"])


def points(data):
    return [sample.prompt.points for sample in read_samples(data.load("all", 0, 0))]


class TestFlat:
    def test_samples_are_read_as_written(self, tmp_path):
        data = FolderDataset(flat(tmp_path, ["b", "a"], "bmp"))
        first, second = read_samples(data.load("all", 0, 0))
        assert (first.id, second.id) == ("a", "b")
        assert np.array_equal(first.image, photo(1))
        assert np.array_equal(second.image, photo(0))
        assert first.mask.dtype == np.bool_
        assert np.array_equal(first.mask, disc() > 0)
        assert first.prompt.points == ((1.0, 4.0),)
        assert first.prompt.labels == (1,)
        assert data.describe()["prompt_rule"] == "file"
        assert data.layout == "flat"

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "png", "bmp", "tif", "tiff", "webp"])
    def test_image_formats(self, tmp_path, suffix):
        data = FolderDataset(flat(tmp_path, ["a", "b"], suffix))
        assert data.ids == ["a", "b"]
        assert len(data) == 2
        assert data.verify() == []

    def test_natural_order(self, tmp_path):
        assert FolderDataset(flat(tmp_path, ["10", "9", "x2", "x10", "1"])).ids == ["1", "9", "10", "x2", "x10"]

    def test_stray_files_are_ignored(self, tmp_path):
        flat(tmp_path, ["a"])
        for name in (".DS_Store", "Thumbs.db", "README", "README.md", "README.txt", "a.json", "._a.jpg", "notes.csv"):
            (tmp_path / name).write_text("stray")
        (tmp_path / "folder.jpg").mkdir()
        save(tmp_path / "orphan.png", disc())
        save(tmp_path / "orphan_mask.png", disc())
        (tmp_path / "orphan_mask.png").rename(tmp_path / "other_mask.png")
        data = FolderDataset(tmp_path)
        assert data.ids == ["a"]
        assert data.verify() == []

    def test_without_points_the_distance_transform_places_them(self, tmp_path):
        data = FolderDataset(flat(tmp_path, ["a", "b"], points=False))
        assert data.describe()["prompt_rule"] == "distance_transform"
        assert points(data) == [distance_transform(disc() > 0).points] * 2

    def test_some_points_missing(self, tmp_path):
        flat(tmp_path, ["1", "2", "10"])
        (tmp_path / "2.txt").unlink()
        (tmp_path / "10.txt").unlink()
        message = message_of(FolderDataset, tmp_path)
        assert message.startswith(f"{tmp_path / '2.txt'}: the point is missing")

    @pytest.mark.parametrize(("suffix", "expected"), [("jpg", "b.png"), ("png", "b_mask.png")])
    def test_image_without_mask(self, tmp_path, suffix, expected):
        flat(tmp_path, ["a", "b"], suffix)
        (tmp_path / expected).unlink()
        message = message_of(FolderDataset, tmp_path)
        assert message == (f"{tmp_path / f'b.{suffix}'}: has no mask; add {tmp_path / expected} or remove the image")

    def test_two_images_of_one_name(self, tmp_path):
        flat(tmp_path, ["a"])
        save(tmp_path / "a.tif", photo())
        message = message_of(FolderDataset, tmp_path)
        assert "a.tif" in message
        assert "a.jpg has the same name" in message

    def test_extra_lines_spaces_and_byte_order_mark(self, tmp_path):
        flat(tmp_path, ["a"])
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf  3.5 , 4 \r\nnonsense\n")
        assert points(FolderDataset(tmp_path)) == [((3.5, 4.0),)]


class TestSubfolders:
    @pytest.mark.parametrize("mask_suffix", ["png", "bmp", "tif"])
    def test_with_points(self, tmp_path, mask_suffix):
        data = FolderDataset(subfolders(tmp_path, ["9", "10"], mask_suffix=mask_suffix))
        assert data.layout == "subfolders"
        assert data.ids == ["9", "10"]
        assert points(data) == [((0.0, 4.0),), ((1.0, 4.0),)]
        assert np.array_equal(next(read_samples(data.load("all", 1, 0))).image, photo(0))

    def test_jpeg_masks_can_be_read_with_a_threshold(self, tmp_path):
        data = FolderDataset(subfolders(tmp_path, ["a"], mask_suffix="jpg"), mask_threshold=128)
        sample = next(read_samples(data.load("all", 0, 0)))
        assert np.array_equal(sample.mask, disc() > 0)

    def test_without_points(self, tmp_path):
        data = FolderDataset(subfolders(tmp_path, ["a"], points=False))
        assert points(data) == [distance_transform(disc() > 0).points]

    def test_some_points_missing(self, tmp_path):
        subfolders(tmp_path, ["a", "b"])
        (tmp_path / "points/b.txt").unlink()
        assert message_of(FolderDataset, tmp_path).startswith(f"{tmp_path / 'points/b.txt'}: ")

    def test_image_without_mask(self, tmp_path):
        subfolders(tmp_path, ["a", "b"])
        (tmp_path / "masks/b.png").unlink()
        message = message_of(FolderDataset, tmp_path)
        assert message.startswith(f"{tmp_path / 'images/b.png'}: has no mask; add {tmp_path / 'masks/b.png'} ")

    def test_mask_without_image_is_ignored(self, tmp_path):
        subfolders(tmp_path, ["a", "b"])
        (tmp_path / "images/b.png").unlink()
        assert FolderDataset(tmp_path).ids == ["a"]


ONE = {"image": "in/one.png", "mask": "out/mask.png"}
TWO = {"id": "second", "image": "in/two.png", "mask": "out/mask.png"}


class TestManifest:
    @pytest.fixture
    def root(self, tmp_path):
        save(tmp_path / "in/one.png", photo(1))
        save(tmp_path / "in/two.png", photo(2))
        save(tmp_path / "out/mask.png", disc())
        return tmp_path

    def test_order_and_ids(self, root):
        data = FolderDataset(manifest(root, TWO, "", ONE))
        assert data.layout == "manifest"
        assert data.ids == ["second", "one"]
        assert data.describe()["name"] == "folder/data.jsonl"
        assert np.array_equal(next(read_samples(data.load("all", 0, 0))).image, photo(2))
        assert points(data) == [distance_transform(disc() > 0).points] * 2

    def test_points(self, root):
        data = FolderDataset(manifest(root, ONE | {"point": [3, 2.5]}))
        assert points(data) == [((3.0, 2.5),)]
        assert data.describe()["prompt_rule"] == "file"

    def test_point_off_the_image_names_the_line(self, root):
        path = manifest(root, ONE | {"point": [1, 4]}, TWO | {"point": [99, 1]})
        (defect,) = FolderDataset(path).verify()
        assert defect.startswith(f"{path}:2: the point 99,1 of the rule file is off the 14x10 image")

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("{not json", "2: Invalid JSON"),
            ({"image": "in/one.png"}, "2: field mask: Field required"),
            ({"mask": "out/mask.png"}, "2: field image: Field required"),
            (ONE | {"pont": [1, 2]}, "2: field pont: Extra inputs"),
            (ONE | {"point": [1]}, "2: field point: "),
            (ONE | {"point": "1,2"}, "2: field point: "),
            (ONE | {"mask": "out/none.png"}, "2: field mask: no such file"),
            (ONE | {"image": "none.png"}, "2: field image: no such file"),
            (TWO, "2: field id: 'second' is taken"),
            (ONE | {"point": [1, 2]}, "1: the point is missing"),
        ],
    )
    def test_bad_line(self, root, line, expected):
        path = manifest(root, TWO, line)
        assert message_of(FolderDataset, path).startswith(f"{path}:{expected}")

    def test_not_text(self, root):
        (root / "data.jsonl").write_bytes(b"\xff\xfe\x00")
        assert "is not UTF-8 text" in message_of(FolderDataset, root / "data.jsonl")

    def test_empty(self, root):
        assert "holds no images" in message_of(FolderDataset, manifest(root, ""))


class TestRoot:
    def test_missing(self, tmp_path):
        message = message_of(FolderDataset, tmp_path / "none")
        assert message == f"{tmp_path / 'none'}: no such folder or manifest; correct the path"

    def test_empty_folder_says_what_is_understood(self, tmp_path):
        (tmp_path / ".DS_Store").write_text("")
        message = message_of(FolderDataset, tmp_path)
        assert message.startswith(f"{tmp_path}: holds no images; ")
        assert all(word in message for word in ("NAME.txt", "images/", "masks/", ".jsonl"))

    def test_file_that_is_no_manifest(self, tmp_path):
        (tmp_path / "a.csv").write_text("")
        assert "neither a folder nor a .jsonl manifest" in message_of(FolderDataset, tmp_path / "a.csv")

    @pytest.mark.parametrize(
        ("option", "flag"), [({"mask_threshold": 0}, "--mask-threshold"), ({"n_search": -1}, "--n-search")]
    )
    def test_options_out_of_range(self, tmp_path, option, flag):
        assert message_of(FolderDataset, flat(tmp_path, ["a"]), **option).startswith(f"{flag} is ")

    def test_describe(self, tmp_path):
        assert FolderDataset(flat(tmp_path / "mine", ["a"]), mask_threshold=128).describe() == {
            "name": "folder/mine",
            "revision": None,
            "source": "user's own images",
            "licence": None,
            "prompt_rule": "file",
            "layout": "flat",
            "mask_threshold": 128,
        }


class TestLoad:
    @pytest.fixture
    def root(self, tmp_path):
        return flat(tmp_path, [str(index) for index in range(12)])

    def test_search_and_test_divide_the_folder_by_seed(self, root):
        data = FolderDataset(root, n_search=5)
        search, test = (ids_of(data.load(split, 0, 3)) for split in ("search", "test"))
        assert (len(search), len(test)) == (5, 7)
        assert sorted(search + test) == sorted(data.ids)
        assert list(FolderDataset(root, n_search=5).load("search", 0, 3)["id"]) == search
        assert ids_of(data.load("search", 0, 4)) != search

    def test_count_takes_the_first(self, root):
        data = FolderDataset(root, n_search=5)
        assert ids_of(data.load("test", 2, 0)) == ids_of(data.load("test", 0, 0))[:2]
        assert ids_of(data.load("all", 0, 0)) == data.ids
        assert len(data.load("search", 5, 0)) == 5

    def test_nothing_is_decoded_before_a_row_is_read(self, root, monkeypatch):
        read = []
        original = folder_module.read_image
        monkeypatch.setattr(folder_module, "read_image", lambda path: read.append(path.name) or original(path))
        rows = FolderDataset(root).load("all", 0, 0)
        assert ids_of(rows) == [str(index) for index in range(12)]
        assert read == []
        rows[3]
        assert read == ["3.jpg"]

    def test_rows_can_be_read_by_index_column_slice_and_selection(self, root):
        rows = FolderDataset(root).load("all", 0, 0)
        assert decode_row(rows[7]).prompt.points == ((7.0, 4.0),)
        assert rows[2:4]["id"] == ["2", "3"]
        assert rows["image"][1].size == (WIDTH, HEIGHT)
        assert [sample.id for sample in read_samples(rows.select([4, 1]))] == ["4", "1"]

    def test_too_few_images_for_search(self, root):
        data = FolderDataset(root, n_search=50)
        expected = f"{root}: has 12 images, 50 search images asked for; pass --n-search N below 12"
        assert message_of(data.load, "search", 50, 0) == expected
        assert message_of(data.load, "test", 0, 0) == expected
        assert len(data.load("all", 0, 0)) == 12

    def test_too_few_in_the_split(self, root):
        data = FolderDataset(root, n_search=5)
        assert message_of(data.load, "test", 8, 0).endswith(
            "has 12 images, 7 of them test images, 8 test images asked for; ask for at most 7"
        )
        assert message_of(data.load, "search", 6, 0).endswith("6 search images asked for; pass --n-search 6")
        assert message_of(data.load, "all", 13, 0).endswith(
            "has 12 images, 13 all images asked for; ask for at most 12"
        )

    def test_nothing_left_to_test_on(self, root):
        message = message_of(FolderDataset(root, n_search=12).load, "test", 0, 0)
        assert message.endswith("none to test on; pass --n-search N below 12")

    def test_no_search_images_by_default(self, root):
        data = FolderDataset(root)
        assert list(read_samples(data.load("search", 0, 0))) == []
        assert len(data.load("test", 0, 0)) == 12

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_no_such_split(self, root, split):
        assert f"has no {split} split; ask for search, test or all" in message_of(FolderDataset(root).load, split, 1, 0)


class TestDefects:
    @pytest.fixture
    def root(self, tmp_path):
        return flat(tmp_path, ["a", "b"])

    def defect(self, root):
        """The one defect that `verify` reports, which reading the rows raises too."""
        data = FolderDataset(root)
        (line,) = data.verify()
        assert message_of(lambda: list(read_samples(data.load("all", 0, 0)))) == line
        return line

    def test_none(self, root):
        assert FolderDataset(root).verify() == []

    def test_sizes_differ(self, root):
        save(root / "b.png", disc().T.copy())
        assert self.defect(root).startswith(f"{root / 'b.png'}: the mask is 10x14 but b.jpg is 14x10; ")

    @pytest.mark.parametrize("point", ["14,4", "2,10", "-1,4"])
    def test_point_off_the_image(self, root, point):
        (root / "b.txt").write_text(point)
        line = self.defect(root)
        assert line.startswith(f"{root / 'b.txt'}: the point {point} of the rule file is off the 14x10 image; ")

    def test_point_off_the_object(self, root):
        (root / "b.txt").write_text("13,9")
        line = self.defect(root)
        assert line.startswith(f"{root / 'b.txt'}: the point 13,9 of the rule file lies outside the object; move it")

    @pytest.mark.parametrize("text", ["", "\n3,4", "12;7", "1,2,3", "nan,2", "x,y", "5"])
    def test_malformed_point(self, root, text):
        (root / "b.txt").write_text(text)
        line = self.defect(root)
        assert line.startswith(f"{root / 'b.txt'}: the first line is ")
        assert "write the point as x,y" in line

    def test_truncated_image(self, root):
        content = (root / "b.jpg").read_bytes()
        (root / "b.jpg").write_bytes(content[: len(content) - 60])
        assert self.defect(root).startswith(f"{root / 'b.jpg'}: not a readable image (")

    def test_antialiased_mask(self, root):
        save(root / "b.png", disc() // 2 + np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 9)
        assert "pass --mask-threshold N" in self.defect(root)

    def test_each_defective_sample_is_reported(self, root):
        (root / "a.txt").write_text("no")
        save(root / "b.png", np.zeros((HEIGHT, WIDTH), np.uint8))
        first, second = FolderDataset(root).verify()
        assert first.startswith(str(root / "a.txt"))
        assert second == f"{root / 'b.png'}: the mask is empty; remove the image or draw its object"


@pytest.mark.skipif(not ISIC.is_dir(), reason="the shared ISIC 2016 images are not here")
def test_isic():
    data = FolderDataset(ISIC, mask_threshold=128, n_search=20)
    assert len(data) == 60
    assert data.ids == sorted(data.ids, key=int)
    assert data.describe()["prompt_rule"] == "file"
    assert len(data.load("test", 0, 0)) == 40
    for sample in read_samples(data.load("search", 3, 0)):
        assert sample.image.shape == (1024, 1024, 3)
        assert sample.mask.shape == (1024, 1024)
        ((x, y),) = sample.prompt.points
        assert sample.mask[int(y), int(x)]
