import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from redfree.data import label_maps
from redfree.data.label_maps import LabelMapOptions, LabelMaps, count_labels, scanned
from redfree.data.source import Entry
from redfree.errors import UserError
from redfree.validation import validate

CLASSES = {1: "cat", 2: "wild dog", 5: "sky"}
LABELS = np.array([[0, 0, 1, 1], [2, 2, 2, 5], [255, 255, 0, 1]], np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDFREE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def maps(target="largest", **options):
    chosen = LabelMapOptions(target=target, **options)
    return LabelMaps("Zoo", CLASSES, chosen, background=frozenset({0}), ignored=frozenset({255}))


def entry(path, labels=LABELS, stem="a", key=None):
    file = path / f"{stem}.png"
    Image.fromarray(np.asarray(labels, np.uint8)).save(file)
    return Entry(stem, (path / f"{stem}.jpg", file), "train", key=key)


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def forbid_reading(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(label_maps, "read_indices", refuse)


class TestTarget:
    def test_largest_is_the_class_of_most_pixels_and_of_equals_the_lowest(self, tmp_path):
        target = maps().target(entry(tmp_path))
        assert (LABELS == 1).sum() == (LABELS == 2).sum() == 3
        assert np.array_equal(target.mask, LABELS == 1)
        assert np.array_equal(target.ignore, LABELS == 255)
        larger = LABELS.copy()
        larger[0, 0] = 2
        assert np.array_equal(maps().target(entry(tmp_path, larger)).mask, larger == 2)

    def test_background_and_void_are_never_the_largest(self, tmp_path):
        labels = np.full((4, 5), 255)
        labels[0], labels[1, 1] = 0, 5
        target = maps().target(entry(tmp_path, labels))
        assert np.array_equal(target.mask, labels == 5)
        assert np.array_equal(target.ignore, labels == 255)

    def test_foreground_is_every_class_and_not_the_void(self, tmp_path):
        target = maps("foreground").target(entry(tmp_path))
        assert np.array_equal(target.mask, np.isin(LABELS, [1, 2, 5]))
        assert np.array_equal(target.ignore, LABELS == 255)

    def test_each_is_the_class_of_the_sample(self, tmp_path):
        assert np.array_equal(maps("each").target(entry(tmp_path, key=5)).mask, LABELS == 5)

    def test_no_void_is_no_ignore(self, tmp_path):
        assert maps().target(entry(tmp_path, np.ones((2, 3)))).ignore is None

    def test_a_foreign_label_is_refused_by_name_and_value(self, tmp_path):
        broken = LABELS.copy()
        broken[0, 3] = 3
        assert message_of(maps().target, entry(tmp_path, broken)) == (
            f"{tmp_path / 'a.png'}: holds the label 3, which Zoo has not; restore the owner's file"
        )

    def test_no_class_at_all_is_refused(self, tmp_path):
        for target in ("largest", "foreground"):
            assert message_of(maps(target).target, entry(tmp_path, [[0, 255]])) == (
                f"{tmp_path / 'a.png'}: holds no pixel of any class; pass target each, which has no sample of it"
            )

    def test_a_missing_label_map_is_named(self, tmp_path):
        missing = Entry("a", (tmp_path / "a.jpg", tmp_path / "a.png"))
        assert message_of(maps().target, missing).startswith(f"{tmp_path / 'a.png'}: no such file")

    @given(labels=arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 1, 2, 5, 255])))
    def test_every_target_agrees_with_a_loop_over_pixels(self, tmp_path_factory, labels):
        sample, flat = entry(tmp_path_factory.mktemp("maps"), labels), labels.ravel().tolist()
        areas = {label: flat.count(label) for label in CLASSES if label in flat}
        each = maps("each").entries([sample])
        assert [(e.key, e.id) for e in each] == [(label, f"a-{CLASSES[label]}") for label in areas]
        if not areas:
            return
        largest = min(label for label in areas if areas[label] == max(areas.values()))
        wanted = {"largest": [largest], "foreground": list(areas)}
        found = {name: maps(name).target(sample) for name in wanted}
        for name, target in found.items():
            assert target.mask.ravel().tolist() == [label in wanted[name] for label in flat]
            assert (target.ignore is not None) == (255 in flat)
            assert not (target.mask & (labels == 255)).any()


class TestEntries:
    @pytest.mark.parametrize("target", ["largest", "foreground"])
    def test_one_sample_an_image_reads_nothing(self, tmp_path, monkeypatch, cache, target):
        images = [entry(tmp_path)]
        forbid_reading(monkeypatch)
        assert maps(target).entries(images) == images
        assert not cache.exists()

    def test_each_has_one_sample_a_class_grouped_by_image(self, tmp_path):
        images = [entry(tmp_path), entry(tmp_path, [[0, 255]], "none"), entry(tmp_path, [[2, 2]], "b")]
        found = maps("each").entries(images)
        assert [e.id for e in found] == ["a-cat", "a-wild dog", "a-sky", "b-wild dog"]
        assert [e.group for e in found] == ["a", "a", "a", "b"]
        assert [e.key for e in found] == [1, 2, 5, 2]
        assert [(e.files, e.split) for e in found] == [(images[i].files, "train") for i in (0, 0, 0, 2)]

    def test_min_area_leaves_out_smaller_samples(self, tmp_path):
        images = [entry(tmp_path)]
        assert [e.key for e in maps("each", min_area=3).entries(images)] == [1, 2]
        assert maps("each", min_area=4).entries(images) == []

    def test_a_foreign_label_is_refused_each_time(self, tmp_path):
        images = [entry(tmp_path), entry(tmp_path, [[1, 9]], "b")]
        messages = [message_of(maps("each").entries, images) for _ in range(2)]
        assert messages == [f"{tmp_path / 'b.png'}: holds the label 9, which Zoo has not; restore the owner's file"] * 2

    def test_a_missing_label_map_is_named(self, tmp_path):
        missing = Entry("a", (tmp_path / "a.jpg", tmp_path / "a.png"))
        assert message_of(maps("each").entries, [missing]) == (
            f"{tmp_path / 'a.png'}: no such file; restore the owner's file"
        )


class TestScan:
    def test_counts_labels_of_every_depth(self):
        assert count_labels(LABELS) == {0: 3, 1: 3, 2: 3, 5: 1, 255: 2}
        assert count_labels(np.array([[70_000, 70_000, 3]], np.int32)) == {3: 1, 70_000: 2}

    def test_a_second_scan_reads_nothing_and_says_the_same(self, tmp_path, monkeypatch, cache):
        paths = [entry(tmp_path).files[1], entry(tmp_path, [[5]], "b").files[1]]
        first = scanned(paths)
        assert len(list((cache / "label-maps").iterdir())) == 1
        forbid_reading(monkeypatch)
        assert scanned(paths) == first == [count_labels(LABELS), {5: 1}]

    def test_other_options_share_the_scan(self, tmp_path, monkeypatch):
        images = [entry(tmp_path)]
        maps("each").entries(images)
        forbid_reading(monkeypatch)
        assert [e.key for e in maps("each", min_area=3).entries(images)] == [1, 2]

    @pytest.mark.parametrize("change", ["size", "time", "order"])
    def test_a_changed_list_is_scanned_anew(self, tmp_path, change):
        paths = [entry(tmp_path).files[1], entry(tmp_path, [[5]], "b").files[1]]
        scanned(paths)
        facts = paths[1].stat()
        if change == "order":
            assert scanned(paths[::-1]) == [{5: 1}, count_labels(LABELS)]
            return
        entry(tmp_path, [[1]] if change == "time" else [[1, 2]], "b")
        later = facts.st_mtime_ns + (10**9 if change == "time" else 0)
        os.utime(paths[1], ns=(later, later))
        assert scanned(paths)[1] == ({1: 1} if change == "time" else {1: 1, 2: 1})

    def test_a_broken_scan_is_made_again(self, tmp_path, cache):
        paths = [entry(tmp_path).files[1]]
        first = scanned(paths)
        (kept,) = (cache / "label-maps").iterdir()
        kept.write_text("[{")
        assert scanned(paths) == first
        assert kept.read_text() == '[{"0":3,"1":3,"2":3,"5":1,"255":2}]\n'

    def test_an_interrupted_scan_leaves_nothing(self, tmp_path, monkeypatch, cache):
        def interrupt(path):
            raise KeyboardInterrupt

        monkeypatch.setattr(label_maps, "read_indices", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scanned([entry(tmp_path).files[1]])
        assert not cache.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target": "smallest"}, "field target: Input should be 'largest', 'foreground' or 'each'"),
        ({"min_area": 0}, "field min_area: Input should be greater than or equal to 1"),
        (
            {"target": "foreground", "min_area": 2},
            "min_area leaves out no samples of target foreground; drop it, or pass target each",
        ),
    ],
)
def test_options_without_a_meaning_are_refused(options, complaint):
    assert message_of(validate, LabelMapOptions, options, "dataset zoo") == f"dataset zoo: {complaint}"
