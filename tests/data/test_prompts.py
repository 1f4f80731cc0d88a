import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from redfree.data.prompts import distance_transform

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.booleans()).filter(np.any)


def brute_force(mask):
    """Squared distance of each pixel to the nearest background pixel, the border counting as background."""
    padded = np.pad(mask, 1)
    background = np.argwhere(~padded)
    squared = np.zeros(mask.shape, int)
    for row, column in np.argwhere(mask):
        squared[row, column] = ((background - (row + 1, column + 1)) ** 2).sum(1).min()
    return squared


@given(masks)
def test_the_point_is_the_first_thickest_pixel_of_the_mask(mask):
    prompt = distance_transform(mask)
    ((x, y),) = prompt.points
    squared = brute_force(mask)
    assert prompt.labels == (1,)
    assert mask[int(y), int(x)]
    assert (y, x) == min(map(tuple, np.argwhere(squared == squared.max())))


def test_ties_go_to_the_first_in_row_major_order():
    mask = np.zeros((9, 11), bool)
    mask[5:8, 1:4] = mask[1:4, 6:9] = True
    assert distance_transform(mask).points == ((7.0, 2.0),)


def test_the_border_counts_as_background():
    assert distance_transform(np.ones((5, 7), bool)).points == ((2.0, 2.0),)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        distance_transform(np.zeros((4, 4), bool))
