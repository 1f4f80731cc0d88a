import numpy as np
import pytest
from PIL import Image

from redfree.data.schema import Prompt, Sample
from redfree.report.sheet import write_sheet

OUTLINE, POINT = (255, 230, 0), (255, 0, 80)
HEIGHT, WIDTH = 20, 24


def make(number, points=((12.0, 10.0),), box=(4, 16, 5, 19)):
    image = np.random.default_rng(number).integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return Sample(f"s{number}", image, mask, Prompt(points, (1,) * len(points)))


def drawn(tmp_path, samples, **options):
    path = tmp_path / "folder" / "sheet.png"
    write_sheet(samples, path, **options)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (4, 3, 2), (6, 2, 3)])
def test_each_sample_lies_above_its_marked_copy_row_by_row(tmp_path, count, columns, rows):
    samples = [make(number) for number in range(count)]
    sheet = drawn(tmp_path, samples, columns=columns)
    assert sheet.shape == (rows * 2 * HEIGHT, columns * WIDTH, 3)
    tiles = sheet.reshape(rows, 2, HEIGHT, columns, WIDTH, 3).transpose(0, 3, 1, 2, 4, 5)
    tiles = tiles.reshape(-1, 2, HEIGHT, WIDTH, 3)
    for sample, (plain, marked) in zip(samples, tiles, strict=False):
        assert np.array_equal(plain, sample.image)
        kept = ~((marked == OUTLINE).all(-1) | (marked == POINT).all(-1))
        assert np.array_equal(marked[kept], sample.image[kept])
        assert 0 < (~kept).sum() < kept.sum()
    assert not tiles[count:].any(), "what is left of the last row is black"


def test_the_outline_is_the_masks_inner_border_and_the_point_a_dot_on_it(tmp_path):
    sample = make(0)
    marked = drawn(tmp_path, [sample], columns=1)[HEIGHT:]
    border, dot = np.zeros((2, HEIGHT, WIDTH), bool)
    border[4:16, 5:19], border[5:15, 6:18] = True, False
    dot[8:13, 10:15] = True
    assert np.array_equal((marked == OUTLINE).all(-1), border)
    assert np.array_equal((marked == POINT).all(-1), dot)


def test_marks_at_the_edge_stay_inside_and_the_sample_is_left_alone(tmp_path):
    sample = make(0, ((0.0, 0.0), (WIDTH - 1.0, HEIGHT - 1.0)), (0, HEIGHT, 0, WIDTH))
    before = sample.image.copy()
    marked = drawn(tmp_path, [sample], columns=1)[HEIGHT:]
    dots = (marked == POINT).all(-1)
    assert dots[:3, :3].all()
    assert dots[-3:, -3:].all()
    assert dots.sum() == 18
    assert (marked[0, 3:] == OUTLINE).all()
    assert np.array_equal(sample.image, before)


def test_smaller_samples_have_black_around_them(tmp_path):
    small = Sample("small", np.full((5, 7, 3), 90, np.uint8), np.ones((5, 7), bool), Prompt((), (), None))
    sheet = drawn(tmp_path, [make(0), small], columns=2)
    assert sheet.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    tile = sheet[:, WIDTH:].copy()
    assert np.array_equal(tile[:5, :7], small.image)
    assert (tile[5:10, :7].any(-1)).all()
    tile[:10, :7] = 0
    assert not tile.any()


def test_large_samples_are_shown_smaller_with_the_point_at_its_place(tmp_path):
    mask = np.zeros((500, 1024), bool)
    mask[100:400, 200:800] = True
    image = np.where(mask[..., None], np.uint8(200), np.uint8(20)).repeat(3, 2)
    sheet = drawn(tmp_path, [Sample("large", image, mask, Prompt(((601.5, 301.5),), (1,)))], columns=1)
    assert sheet.shape == (2 * 125, 256, 3)
    rows, columns = (sheet[125:] == POINT).all(-1).nonzero()
    assert (rows.mean(), columns.mean()) == (75, 150)
    assert [sheet[60, 100].tolist(), sheet[5, 5].tolist()] == [[200] * 3, [20] * 3]
