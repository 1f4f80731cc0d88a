import json
import tracemalloc
from array import array

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths
from trees import coco2017
from trees.coco2017 import HEIGHT, WIDTH, json_of, pixels, rectangle
from trees.paint import disc, photo, save

from redfree.data.adapters import coco_instances
from redfree.data.adapters.coco2017 import Coco2017
from redfree.data.indexed import require_size
from redfree.errors import UserError

IDS = [
    "000000000009-2096",
    "000000000009-2097",
    "000000000009-2098",
    "000000000025-1768",
    "000000000030-3001",
    "000000000030-3002",
    "000000000036-3601",
    "000000000042-4201",
    "000000000049-4901",
    "000000000139-10",
    "000000000632-9",
]
MASKS = {
    2096: pixels(10, 10, 30, 30),
    2097: pixels(20, 20, 40, 36),
    2098: pixels(1, 1, 5, 6) | pixels(45, 2, 55, 9),
    1768: pixels(4, 5, 30, 20),
    3001: disc(1),
    3002: disc(2),
    3601: pixels(2, 3, 12, 13),
    4201: pixels(8, 9, 20, 21),
    4901: pixels(2, 6, 52, 7),
    10: pixels(3, 3, 13, 13),
    9: pixels(5, 6, 25, 36),
}


@pytest.fixture
def source(tmp_path):
    return Coco2017(coco2017.build(tmp_path))


def number(entry):
    return int(entry.id.split("-")[1])


def entry_of(source, annotation):
    return next(entry for entry in source.entries() if number(entry) == annotation)


def ids_with(root, **options):
    return [number(entry) for entry in Coco2017(root, Coco2017.Options(**options)).entries()]


def failure(action):
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewritten(root, **fields):
    """The tree with one annotation alone, in which some fields differ."""
    content = coco2017.content("val")
    content["annotations"] = [{**content["annotations"][0], **fields}]
    coco2017.write(root, "val", content)
    return Coco2017(root)


class TestSamples:
    def test_a_sample_is_an_instance_ordered_by_image(self, source):
        entries = source.entries()
        assert [entry.id for entry in entries] == IDS
        assert [entry.group for entry in entries] == [id_.split("-")[0] for id_ in IDS]
        assert [entry.split for entry in entries] == ["train"] * 9 + ["test"] * 2

    def test_files_are_the_image_and_its_annotations(self, source, tmp_path):
        assert source.entries()[0].files == (tmp_path / "train2017" / "000000000009.jpg", json_of(tmp_path, "train"))

    def test_values_are_what_was_drawn(self, source):
        for entry in source.entries():
            mask = source.target(entry).mask
            assert mask.dtype == bool
            assert np.array_equal(mask, MASKS[number(entry)]), entry.id

    def test_overlapping_instances_both_hold_the_overlap(self, source):
        first, second = (source.target(entry_of(source, id_)).mask for id_ in (2096, 2097))
        assert (first & second).sum() == 100

    def test_images_are_colours_where_a_naive_reader_finds_grey_and_cmyk(self, source):
        grey, cmyk = (entry_of(source, id_) for id_ in (3601, 4201))
        assert np.asarray(Image.open(grey.files[0])).shape == (HEIGHT, WIDTH)
        assert np.asarray(Image.open(cmyk.files[0])).shape == (HEIGHT, WIDTH, 4)
        luminance = np.asarray(Image.fromarray(photo(36, HEIGHT, WIDTH)).convert("L"), float)
        assert np.abs(source.image(grey) - luminance[..., None]).mean() < 4
        assert np.abs(source.image(cmyk) - photo(42, HEIGHT, WIDTH).astype(float)).mean() < 12

    def test_counts_are_images_those_without_instances_too(self, source):
        assert source.counts() == {"train": 7, "val": 3}

    def test_nothing_is_decoded_to_list_and_each_file_is_parsed_once(self, source, monkeypatch):
        parsed, load = [], json.load
        monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
        monkeypatch.setattr(json, "load", lambda file, **options: parsed.append(file.name) or load(file, **options))
        assert len(source.entries()) == len(IDS)
        source.counts()
        assert len(parsed) == len(set(parsed)) == 2


class TestTraps:
    def test_a_naive_reader_takes_crowds_and_instances_without_a_pixel(self, source, tmp_path):
        naive = {annotation["id"] for annotation in json.loads(json_of(tmp_path, "train").read_text())["annotations"]}
        found = {number(entry) for entry in source.entries() if entry.split == "train"}
        assert naive - found == set(coco2017.LEFT_OUT)

    def test_a_sliver_between_centres_has_an_area_but_no_pixel(self, tmp_path):
        coco2017.build(tmp_path)
        sliver = next(a for a in coco2017.content("train")["annotations"] if a["id"] == 3005)
        naive = run_lengths.merge(run_lengths.frPyObjects(sliver["segmentation"], HEIGHT, WIDTH))
        assert sliver["area"] > 9
        assert run_lengths.area(naive) == 0
        assert 3005 not in ids_with(tmp_path)

    def test_two_points_are_no_polygon_where_pycocotools_takes_them_for_a_box(self, source):
        two_points = np.array([[3.0, 3, 20, 20]])
        naive = run_lengths.area(run_lengths.frPyObjects(two_points, HEIGHT, WIDTH))
        assert naive[0] == 400
        assert not source.target(entry_of(source, 2098)).mask[10:20, 10:20].any()

    def test_outlines_are_those_of_pycocotools_not_of_opencv(self, source):
        mask = source.target(entry_of(source, 1768)).mask
        naive = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.fillPoly(naive, [np.array(rectangle(4, 5, 30, 20), np.int32).reshape(-1, 2)], 1)
        assert mask.sum() == 26 * 15
        assert naive.sum() == 27 * 16
        assert np.array_equal(
            mask, run_lengths.decode(run_lengths.frPyObjects([rectangle(4, 5, 30, 20)], 40, 56))[..., 0]
        )

    def test_run_lengths_go_down_the_columns_where_a_naive_reader_goes_along_the_rows(self, source):
        counts = coco2017.uncompressed(disc(1))["counts"]
        naive = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(HEIGHT, WIDTH)
        mask = source.target(entry_of(source, 3001)).mask
        assert naive.sum() == mask.sum()
        assert not np.array_equal(naive, mask)

    def test_category_ids_have_gaps_where_a_naive_reader_counts_from_one(self, tmp_path):
        coco2017.build(tmp_path)
        naive = list(coco2017.CATEGORIES).index("stop sign") + 1
        assert naive not in coco2017.CATEGORIES.values()
        assert ids_with(tmp_path, categories=["stop sign"]) == [2098, 9]

    def test_reading_takes_less_than_half_the_memory_of_plain_json(self, tmp_path):
        content = coco2017.content("val")
        polygon = np.random.default_rng(0).uniform(0, 40, (3000, 50)).round(2).tolist()
        example = content["annotations"][0]
        content["annotations"] = [{**example, "id": id_, "segmentation": [p]} for id_, p in enumerate(polygon)]
        coco2017.write(tmp_path, "val", content)
        taken = {}
        for name, read in {"ours": coco_instances.read_instances, "naive": lambda p: json.loads(p.read_text())}.items():
            tracemalloc.start()
            kept = read(json_of(tmp_path, "val"))
            taken[name] = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            del kept
        assert 2 * taken["ours"] < taken["naive"]


class TestOptions:
    def test_small_instances_can_be_left_out_by_their_annotation(self, tmp_path):
        coco2017.build(tmp_path)
        assert ids_with(tmp_path, min_area=100) == [2096, 2097, 1768, 3001, 3002, 3601, 4201, 10, 9]
        assert ids_with(tmp_path, min_area=101) == [2096, 2097, 1768, 3001, 3002, 4201, 9]

    def test_categories_can_be_chosen(self, tmp_path):
        coco2017.build(tmp_path)
        assert ids_with(tmp_path, categories=["toothbrush", "stop sign"]) == [2097, 2098, 3601, 9]

    def test_an_unknown_category_is_named(self, tmp_path):
        coco2017.build(tmp_path)
        message = failure(lambda: ids_with(tmp_path, categories=["stop signs"]))
        assert message == "unknown category 'stop signs'; did you mean 'stop sign'?"

    @pytest.mark.parametrize("options", [{"min_area": -1}, {"categories": []}])
    def test_options_out_of_range_are_refused(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            Coco2017.Options(**options)


class TestPartsThatAreThere:
    @pytest.mark.parametrize(
        ("part", "ids", "counts"), [("val", IDS[9:], {"val": 3}), ("train", IDS[:9], {"train": 7})]
    )
    def test_one_part_alone_is_read(self, tmp_path, part, ids, counts):
        source = Coco2017(coco2017.build(tmp_path, [part]))
        assert [entry.id for entry in source.entries()] == ids
        assert source.counts() == counts

    def test_no_images(self, tmp_path):
        source = Coco2017(coco2017.build(tmp_path, []))
        expected = (
            f"{tmp_path / 'val2017'}: is missing, so this is not COCO 2017 instances as its owner distributes it; "
        )
        assert failure(source.entries).startswith(expected)

    def test_no_annotations(self, source, tmp_path):
        json_of(tmp_path, "val").unlink()
        assert failure(source.entries).startswith(f"{json_of(tmp_path, 'val')}: is missing")

    def test_a_missing_image(self, source):
        entry = source.entries()[0]
        entry.files[0].unlink()
        assert failure(lambda: source.image(entry)).startswith(f"{entry.files[0]}: no such file; ")


class TestDefects:
    @pytest.fixture
    def root(self, tmp_path):
        return coco2017.build(tmp_path, ["val"])

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "Expecting property name enclosed in double quotes"),
            ("[]", "list indices must be integers"),
            ('{"images": [], "annotations": []}', "lacks 'categories'"),
            ('{"annotations": [{"image_id": 9, "id": 1, "caption": "a cat"}]}', "lacks 'category_id'"),
        ],
    )
    def test_not_a_file_of_instances(self, root, text, reason):
        json_of(root, "val").write_text(text)
        message = failure(Coco2017(root).entries)
        assert message.startswith(f"{json_of(root, 'val')}: is not a file of COCO instances ({reason}")
        assert message.endswith("; restore the owner's file")

    def test_an_image_that_is_not_listed(self, root):
        message = failure(rewritten(root, image_id=4711).entries)
        assert (
            message == f"{json_of(root, 'val')}: annotates image 4711, which it does not list; restore the owner's file"
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, -1e9])
    def test_a_coordinate_far_off_the_image_is_refused_before_pycocotools_fills_memory_with_it(self, root, value):
        source = rewritten(root, segmentation=[[value, 3, 13, 3, 13, 13]])
        message = failure(lambda: source.target(source.entries()[0]))
        assert message.startswith(
            f"{json_of(root, 'val')}: annotation 10 cannot be drawn, a polygon is not pairs of coord"
        )

    def test_an_odd_number_of_coordinates_is_refused_to_list_what_is_thin(self, root):
        source = rewritten(root, segmentation=[[3, 3, 13, 3, 13, 13, 3]], area=1)
        assert "annotation 10 cannot be drawn, a polygon is not pairs" in failure(source.entries)

    @pytest.mark.parametrize(
        ("segmentation", "reason"),
        [
            ({"counts": [10, 5], "size": [40, 56]}, "its run lengths do not add up to the pixels of the image"),
            ({"counts": [-1, 2241], "size": [40, 56]}, "its run lengths do not add up to the pixels of the image"),
            (
                {"counts": [10, 5, 2225], "size": [56, 40]},
                "its run lengths are of size [56, 40], its image is [40, 56]",
            ),
            ({"size": [40, 56]}, "its run lengths do not add up to the pixels of the image"),
            ({"counts": ["10", 5], "size": [40, 56]}, "'<' not supported between instances of 'int' and 'str'"),
            ({"counts": "abc", "size": [40, 56]}, "Invalid RLE mask representation"),
        ],
    )
    def test_wrong_run_lengths(self, root, segmentation, reason):
        source = rewritten(root, segmentation=segmentation)
        assert failure(lambda: source.target(source.entries()[0])) == (
            f"{json_of(root, 'val')}: annotation 10 cannot be drawn, {reason}; restore the owner's file"
        )

    def test_a_mask_without_a_pixel_that_its_annotation_calls_large(self, root):
        source = rewritten(root, segmentation=[[3, 3.2, 50, 3.2, 50, 3.4]])
        assert "annotation 10 cannot be drawn, it has no pixel on its image" in failure(
            lambda: source.target(source.entries()[0])
        )

    def test_an_image_of_another_size_names_the_annotations(self, root):
        source = Coco2017(root)
        entry = source.entries()[0]
        save(entry.files[0], photo(1, 20, 30))
        message = failure(lambda: require_size(entry, source.image(entry), source.target(entry)))
        assert message.startswith(f"{json_of(root, 'val')}: is 56x40 but its image is 30x20; ")


def test_polygons_are_packed(source):
    assert all(isinstance(polygon, array) for polygon in source.entries()[0].key.segmentation)
