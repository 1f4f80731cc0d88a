from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sam2.modeling.sam2_utils import get_next_point
from scipy import ndimage
from segment_anything.utils.amg import batched_mask_to_box

from redfree.data.prompts import PromptRule, box, centroid_hull, distance_transform, random_inside
from redfree.data.reading import read_mask
from redfree.data.schema import Prompt
from redfree.errors import UserError

ISIC = Path(__file__).parents[2].parent / "shared/data/isic2016-flat"

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.booleans()).filter(np.any)
wide_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24), fill=st.just(False)).filter(np.any)
rules = st.sampled_from(["distance_transform", "random"])


def brute_force(mask):
    """Squared distance of each pixel to the nearest background pixel, the border counting as background."""
    padded = np.pad(mask, 1)
    background = np.argwhere(~padded)
    squared = np.zeros(mask.shape, int)
    for row, column in np.argwhere(mask):
        squared[row, column] = ((background - (row + 1, column + 1)) ** 2).sum(1).min()
    return squared


def on_the_whole_mask(mask):
    """The distance transform as it was when the committed records were made: without cropping, in 64 bits."""
    _, nearest = ndimage.distance_transform_edt(np.pad(mask, 1), return_indices=True)
    offsets = nearest - np.indices(nearest.shape[1:])
    squared = (offsets * offsets).sum(0)[1:-1, 1:-1]
    row, column = np.unravel_index(int(squared.argmax()), squared.shape)
    return Prompt(((float(column), float(row)),), (1,))


def flood_fill(mask):
    """The 8-connected components, ordered by their first pixels in row-major order."""
    left, parts = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        part, front = np.zeros_like(mask), [min(left)]
        left -= set(front)
        while front:
            row, column = front.pop()
            part[row, column] = True
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        parts.append(part)
    return parts


def draw(height, width, *rectangles):
    """A mask of rectangles (top, bottom, left, right), upper bounds excluded."""
    mask = np.zeros((height, width), bool)
    for top, bottom, left, right in rectangles:
        mask[top:bottom, left:right] = True
    return mask


def inside(mask, points):
    return all(mask[int(y), int(x)] for x, y in points)


def message_of(rule, *arguments):
    with pytest.raises(UserError) as caught:
        rule.place(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestDistanceTransform:
    @given(masks)
    def test_the_point_is_the_first_thickest_pixel_of_the_mask(self, mask):
        prompt = distance_transform(mask)
        ((x, y),) = prompt.points
        squared = brute_force(mask)
        assert prompt.labels == (1,)
        assert mask[int(y), int(x)]
        assert (y, x) == min(map(tuple, np.argwhere(squared == squared.max())))

    @given(masks | wide_masks)
    def test_cropping_to_the_object_changes_nothing(self, mask):
        assert repr(distance_transform(mask)) == repr(on_the_whole_mask(mask))

    @pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9, 0.99])
    def test_cropping_changes_nothing_on_large_blobs(self, quantile):
        noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(500, 400)), 12)
        mask = noise > np.quantile(noise, quantile)
        assert distance_transform(mask) == on_the_whole_mask(mask)

    @given(masks | wide_masks)
    def test_it_is_the_first_click_of_sam2(self, mask):
        points, labels = get_next_point(torch.tensor(mask[None, None]), None, method="center")
        assert distance_transform(mask) == Prompt((tuple(points[0, 0].tolist()),), tuple(labels[0].tolist()))

    def test_ties_go_to_the_first_in_row_major_order(self):
        mask = draw(9, 11, (5, 8, 1, 4), (1, 4, 6, 9))
        assert distance_transform(mask).points == ((7.0, 2.0),)

    def test_the_border_counts_as_background(self):
        assert distance_transform(np.ones((5, 7), bool)).points == ((2.0, 2.0),)


class TestCentroidHull:
    def test_the_hull_of_a_concave_object_is_filled(self):
        # An L whose own centroid is (2.7, 6.3).
        mask = draw(12, 12, (0, 10, 0, 2), (8, 10, 0, 10))
        vertices = np.array([(0, 0), (1, 0), (9, 8), (9, 9), (0, 9)], float)
        x, y = vertices.T
        cross = x * np.roll(y, -1) - np.roll(x, -1) * y
        expected = [(cross * (v + np.roll(v, -1))).sum() / (3 * cross.sum()) for v in (x, y)]
        assert centroid_hull(mask).points == (tuple(float(int(v)) for v in expected),)

    @given(masks | wide_masks)
    def test_against_the_moments_of_opencv(self, mask):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        expected = []
        for contour in contours:
            moments = cv2.moments(cv2.convexHull(contour))
            if moments["m00"]:
                expected.append((int(moments["m10"] / moments["m00"]), int(moments["m01"] / moments["m00"])))
            else:
                expected.append(tuple(int(v) for v in contour[:, 0].mean(0)))
        prompt = centroid_hull(mask)
        assert sorted(prompt.points) == sorted(expected)
        assert prompt.labels == (1,) * len(expected)

    def test_coordinates_are_truncated(self):
        assert centroid_hull(draw(9, 9, (2, 6, 1, 5))).points == ((2.0, 3.0),)

    def test_contours_come_in_row_major_order_whatever_the_version_of_opencv(self):
        # As in BUSI's benign (18): the border sliver's line comes before that of the lesion below.
        mask = draw(20, 20, (12, 17, 10, 15), (2, 6, 0, 1), (2, 5, 12, 15))
        assert centroid_hull(mask).points == ((0.0, 3.0), (13.0, 3.0), (12.0, 14.0))

    @pytest.mark.parametrize(
        ("rectangle", "point"), [((3, 4, 5, 6), (5, 3)), ((3, 4, 1, 5), (2, 3)), ((2, 7, 4, 5), (4, 4))]
    )
    def test_pixels_and_lines_have_no_hull_area(self, rectangle, point):
        assert centroid_hull(draw(9, 9, rectangle)).points == (point,)

    def test_an_object_within_a_hole_has_no_outer_contour(self):
        mask = draw(11, 11, (0, 11, 0, 11))
        mask[1:10, 1:10] = False
        mask[7, 7] = True
        assert centroid_hull(mask).points == ((5.0, 5.0),)

    @pytest.mark.skipif(not ISIC.is_dir(), reason="the ISIC images are not part of the repository")
    def test_it_is_the_rule_of_the_published_points_of_isic(self):
        for path in sorted(ISIC.glob("*.png"))[:20]:
            published = np.array(path.with_suffix(".txt").read_text().split(",")[:2], float)
            distances = np.linalg.norm(np.array(centroid_hull(read_mask(path, 128)).points) - published, axis=1)
            assert distances.min() <= 3


class TestRandomInside:
    @given(masks, st.integers(0, 9))
    def test_the_point_is_inside(self, mask, seed):
        prompt = random_inside(mask, np.random.default_rng(seed))
        assert len(prompt.points) == 1
        assert prompt.labels == (1,)
        assert inside(mask, prompt.points)

    def test_every_pixel_is_as_likely(self):
        mask = draw(4, 6, (0, 1, 1, 3), (3, 4, 4, 6))
        rng = np.random.default_rng(0)
        drawn = [random_inside(mask, rng).points[0] for _ in range(4000)]
        counts = [drawn.count((x, y)) for y, x in np.argwhere(mask)]
        assert sum(counts) == 4000
        assert all(abs(count - 1000) < 120 for count in counts)


class TestBox:
    def test_corners_are_pixel_indices(self):
        prompt = box(draw(9, 12, (2, 5, 3, 8)), 0, np.random.default_rng(0))
        assert prompt == Prompt((), (), (3.0, 2.0, 7.0, 4.0))

    def test_the_whole_image(self):
        assert box(np.ones((4, 7), bool), 0, np.random.default_rng(0)).box == (0.0, 0.0, 6.0, 3.0)

    @given(masks)
    def test_without_jitter_it_is_that_of_segment_anything(self, mask):
        official = batched_mask_to_box(torch.from_numpy(mask)[None])[0].tolist()
        assert list(box(mask, 0, np.random.default_rng(0)).box) == official

    @given(masks)
    def test_without_jitter_it_holds_the_object_and_no_less_would(self, mask):
        x0, y0, x1, y1 = map(int, box(mask, 0, np.random.default_rng(0)).box)
        assert mask[y0 : y1 + 1, x0 : x1 + 1].sum() == mask.sum()
        assert mask[[y0, y1], x0 : x1 + 1].any(1).all()
        assert mask[y0 : y1 + 1, [x0, x1]].any(0).all()

    @given(masks, st.integers(0, 20), st.integers(0, 9))
    def test_jittered_it_stays_in_the_image_and_is_never_inverted(self, mask, jitter, seed):
        sides = box(mask, jitter, np.random.default_rng(seed)).box
        x0, y0, x1, y1 = sides
        assert 0 <= x0 <= x1 < mask.shape[1]
        assert 0 <= y0 <= y1 < mask.shape[0]
        assert all(side == int(side) for side in sides)

    def test_each_side_moves_by_itself_over_the_whole_range(self):
        mask, rng = draw(100, 100, (40, 60, 30, 70)), np.random.default_rng(0)
        shifts = np.array([box(mask, 3, rng).box for _ in range(500)]) - (30, 40, 69, 59)
        assert all(set(side) == set(range(-3, 4)) for side in shifts.T)
        assert np.abs(np.corrcoef(shifts.T) - np.eye(4)).max() < 0.2


@pytest.mark.parametrize(
    "place",
    [
        distance_transform,
        centroid_hull,
        lambda mask: random_inside(mask, np.random.default_rng(0)),
        lambda mask: box(mask, 0, np.random.default_rng(0)),
        lambda mask: PromptRule(components="largest").place(mask, "a"),
    ],
)
def test_an_empty_mask_is_refused(place):
    with pytest.raises(ValueError, match="empty"):
        place(np.zeros((4, 4), bool))


# A small part above a large one.
TWO = draw(20, 20, (1, 4, 12, 15), (8, 17, 2, 11))


class TestPromptRule:
    def test_the_default_is_the_rule_of_the_committed_records(self):
        assert PromptRule().place(TWO, "a") == distance_transform(TWO)
        assert PromptRule().name == "distance_transform"

    def test_the_name_tells_every_setting(self):
        rule = PromptRule("file", "each", outside="keep")
        assert rule.name == "file components=each outside=keep"
        assert PromptRule("box", seed=3, jitter=5).name == "box seed=3 jitter=5"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"rule": "centroid"}, "unknown prompt rule 'centroid'; did you mean 'centroid_hull'?"),
            ({"components": "bigest"}, "unknown prompt components 'bigest'; did you mean 'largest'?"),
            ({"outside": "kept"}, "unknown prompt outside 'kept'; did you mean 'keep'?"),
            ({"seed": -1}, "prompt seed is -1; pass at least 0"),
            ({"jitter": -1}, "prompt jitter is -1; pass at least 0"),
        ],
    )
    def test_bad_settings(self, fields, message):
        with pytest.raises(UserError) as caught:
            PromptRule(**fields)
        assert str(caught.value) == message

    @given(masks, rules)
    def test_each_places_one_point_in_each_component(self, mask, rule):
        prompt = PromptRule(rule, "each").place(mask, "a")
        parts = flood_fill(mask)
        assert len(prompt.points) == len(parts) == len(prompt.labels)
        assert all(inside(part, [point]) for part, point in zip(parts, prompt.points, strict=True))

    @given(masks, rules)
    def test_largest_sees_the_largest_component_alone(self, mask, rule):
        largest = max(flood_fill(mask), key=np.sum)
        prompt = PromptRule(rule, "largest").place(mask, "a")
        assert prompt == PromptRule(rule).place(largest, "a")
        assert inside(largest, prompt.points)

    def test_diagonal_neighbours_are_one_component(self):
        assert len(PromptRule(components="each").place(np.eye(5, dtype=bool), "a").points) == 1

    def test_equal_components_the_first_in_row_major_order_is_the_largest(self):
        mask = draw(9, 11, (5, 8, 1, 4), (1, 4, 6, 9))
        assert PromptRule("centroid_hull", "largest").place(mask, "a").points == ((7.0, 2.0),)

    def test_all_is_one_point_of_the_first_contour(self):
        assert PromptRule("centroid_hull").place(TWO, "a").points == ((13.0, 2.0),)
        assert PromptRule("centroid_hull", "each").place(TWO, "a").points == ((13.0, 2.0), (6.0, 12.0))

    def test_a_box_is_around_everything_or_the_largest(self):
        assert PromptRule("box").place(TWO, "a").box == (2.0, 1.0, 14.0, 16.0)
        assert PromptRule("box", "each").place(TWO, "a").box == (2.0, 1.0, 14.0, 16.0)
        assert PromptRule("box", "largest").place(TWO, "a").box == (2.0, 8.0, 10.0, 16.0)

    @given(masks, st.sampled_from([PromptRule("random"), PromptRule("random", "each"), PromptRule("box", jitter=4)]))
    def test_a_draw_depends_on_seed_and_id_alone(self, mask, rule):
        alone = rule.place(mask, "b")
        rule.place(TWO, "a")
        np.random.default_rng(0).random()
        assert rule.place(mask.copy(), "b") == alone

    @pytest.mark.parametrize("rule", ["random", "box"])
    def test_samples_and_seeds_draw_differently(self, rule):
        mask = draw(200, 200, (50, 150, 50, 150))
        prompts = [
            PromptRule(rule, seed=seed, jitter=30).place(mask, id_) for seed in (0, 1) for id_ in ("a", "b", "c")
        ]
        assert len(set(prompts)) == 6

    def test_a_draw_is_the_same_in_every_process(self):
        mask = draw(200, 200, (50, 150, 50, 150))
        assert PromptRule("random").place(mask, "a").points == ((126.0, 65.0),)
        assert PromptRule("box", jitter=9).place(mask, "a").box == (48.0, 43.0, 158.0, 152.0)

    def test_a_centroid_outside_a_crescent_is_refused(self):
        mask = draw(20, 20, (0, 20, 0, 20))
        mask[2:18, 2:] = False
        message = message_of(PromptRule("centroid_hull", outside="keep"), mask, "moon 3")
        assert message.startswith("moon 3: the point 9,9 of the rule centroid_hull lies outside the object; ")
        assert message.endswith("take the rule distance_transform")

    def test_a_centroid_in_another_component_is_outside(self):
        mask = draw(11, 11, (0, 11, 0, 11))
        mask[1:10, 1:10] = False
        mask[4:7, 4:7] = True
        assert PromptRule("centroid_hull").place(mask, "a").points == ((5.0, 5.0),)
        assert "outside the object" in message_of(PromptRule("centroid_hull", "each"), mask, "a")


class TestFileRule:
    def test_all_takes_the_first_point_as_it_is(self):
        points = [(12.4, 2.25), (5.0, 12.0)]
        assert PromptRule("file").place(TWO, "a", points) == Prompt(((12.4, 2.25),), (1,))

    def test_each_takes_all_points(self):
        points = [(12.0, 2.0), (5.0, 12.0), (6.0, 12.0)]
        assert PromptRule("file", "each").place(TWO, "a", points) == Prompt(tuple(points), (1, 1, 1))

    def test_largest_takes_the_first_point_of_the_largest_component(self):
        points = [(12.0, 2.0), (5.0, 12.0), (6.0, 12.0)]
        assert PromptRule("file", "largest").place(TWO, "a", points).points == ((5.0, 12.0),)
        assert "lies outside" in message_of(PromptRule("file", "largest"), TWO, "a", points[:1])

    def test_other_rules_do_not_look_at_the_points(self):
        assert PromptRule().place(TWO, "a", [(-4.0, 99.0)]) == distance_transform(TWO)

    @pytest.mark.parametrize("points", [None, []])
    def test_without_points(self, points):
        message = message_of(PromptRule("file", outside="keep"), TWO, "busi 7", points)
        assert message == "busi 7: has no point for the rule file; add one or take another prompt rule"

    def test_a_click_outside_the_object_is_refused_unless_kept(self):
        message = message_of(PromptRule("file"), TWO, "camo 13", [(0.0, 0.0)])
        expected = "camo 13: the point 0,0 of the rule file lies outside the object; "
        assert message.startswith(expected)
        assert PromptRule("file", outside="keep").place(TWO, "camo 13", [(0.0, 0.0)]).points == ((0.0, 0.0),)

    def test_one_bad_point_of_each_is_enough(self):
        assert "the point 0,0" in message_of(PromptRule("file", "each"), TWO, "a", [(12.0, 2.0), (0.0, 0.0)])

    @pytest.mark.parametrize("point", [(20.0, 5.0), (5.0, 20.0), (-0.1, 5.0), (5.0, -1.0), (float("nan"), 5.0)])
    def test_a_point_off_the_image_is_refused_even_where_outside_is_kept(self, point):
        message = message_of(PromptRule("file", outside="keep"), TWO, "a", [point])
        assert message.endswith("is off the 20x20 image; give x,y in pixels from the top left")

    @pytest.mark.parametrize(("x", "accepted"), [(2.4, False), (2.5, True), (4.49, True), (4.5, False)])
    def test_a_point_belongs_to_the_nearest_pixel(self, x, accepted):
        mask = draw(6, 8, (1, 4, 3, 5))
        if accepted:
            assert PromptRule("file").place(mask, "a", [(x, 2.0)]).points == ((x, 2.0),)
        else:
            assert "outside the object" in message_of(PromptRule("file"), mask, "a", [(x, 2.0)])

    def test_the_last_half_pixel_belongs_to_the_last_pixel(self):
        assert PromptRule("file").place(np.ones((3, 4), bool), "a", [(3.9, 2.6)]).points == ((3.9, 2.6),)
