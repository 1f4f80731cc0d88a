import numpy as np
import pytest
from PIL import Image

from redfree.data.reading import read_image, read_mask
from redfree.errors import UserError

HEIGHT, WIDTH = 12, 16
ORIENTATION = 0x0112


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def disc(foreground=255, dtype=np.uint8):
    values = np.zeros((HEIGHT, WIDTH), dtype)
    values[3:8, 4:10] = foreground
    return values


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def png(tmp_path):
    return tmp_path / "a.png"


def user_error(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(arguments[0]))
    return message


def rotated():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


class TestReadImage:
    def test_rgb_png_is_read_exactly(self, png):
        image = read_image(save(png, pixels()))
        assert image.dtype == np.uint8
        assert np.array_equal(image, pixels())

    def test_grey_is_repeated(self, png):
        image = read_image(save(png, pixels()[..., 0]))
        assert np.array_equal(image, np.repeat(pixels()[..., :1], 3, axis=2))

    def test_alpha_is_dropped_without_darkening(self, png):
        alpha = np.full((HEIGHT, WIDTH, 1), 10, np.uint8)
        assert np.array_equal(read_image(save(png, np.concatenate([pixels(), alpha], axis=2))), pixels())

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bit_grey_is_scaled_and_rounded(self, tmp_path, suffix):
        values = np.zeros((HEIGHT, WIDTH), np.uint16)
        values[0, :5] = [65535, 128 * 257, 128 * 257 + 128, 128 * 257 + 129, 255]
        image = read_image(save(tmp_path / f"a.{suffix}", values))
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image[0, :5, 1].tolist() == [255, 128, 128, 129, 1]

    def test_palette_is_looked_up(self, png):
        image = Image.fromarray(disc(1)).convert("P")
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.save(png)
        read = read_image(png)
        assert read[0, 0].tolist() == [10, 20, 30]
        assert read[5, 5].tolist() == [40, 50, 60]

    def test_exif_orientation_is_applied(self, png):
        image = read_image(save(png, pixels(), exif=rotated()))
        assert np.array_equal(image, np.rot90(pixels(), -1))

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_truncated(self, tmp_path, suffix):
        path = save(tmp_path / f"a.{suffix}", np.tile(pixels(), (3, 3, 1)))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        message = user_error(read_image, path)
        assert "not a readable image (" in message
        assert message.endswith("); re-export it as JPEG or PNG")

    @pytest.mark.parametrize("content", [b"", b"hello, not an image"])
    def test_not_an_image(self, png, content):
        png.write_bytes(content)
        assert "not a readable image" in user_error(read_image, png)

    def test_missing(self, png):
        assert "no such file" in user_error(read_image, png)

    @pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32)])
    def test_pixels_of_unknown_range(self, tmp_path, values):
        assert "neither 8-bit nor 16-bit" in user_error(read_image, save(tmp_path / "a.tif", values))


class TestReadMask:
    @pytest.mark.parametrize("foreground", [1, 255, 77])
    def test_zero_and_one_other_value(self, png, foreground):
        mask = read_mask(save(png, disc(foreground)), None)
        assert mask.dtype == np.bool_
        assert np.array_equal(mask, disc() > 0)

    @pytest.mark.parametrize("threshold", [None, 128])
    def test_one_bit(self, png, threshold):
        save(png, disc() > 0)
        assert Image.open(png).mode == "1"
        assert np.array_equal(read_mask(png, threshold), disc() > 0)

    @pytest.mark.parametrize("channels", [3, 4])
    def test_equal_channels(self, png, channels):
        values = np.repeat(disc()[..., None], channels, axis=2)
        values[..., 3:] = 200
        assert np.array_equal(read_mask(save(png, values), None), disc() > 0)

    def test_alpha_of_grey_is_dropped(self, png):
        values = np.stack([disc(), np.full_like(disc(), 90)], axis=2)
        assert np.array_equal(read_mask(save(png, values), None), disc() > 0)

    @pytest.mark.parametrize("threshold", [None, 128])
    def test_differing_channels(self, png, threshold):
        assert "channels differ" in user_error(read_mask, save(png, pixels()), threshold)

    def test_palette_indices_are_used(self, png):
        image = Image.fromarray(disc(1)).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([200, 10, 10, 0, 0, 0])
        image.save(png)
        assert Image.open(png).mode == "P"
        assert np.array_equal(read_mask(png, None), disc() > 0)

    def test_sixteen_bit_values_are_not_scaled(self, png):
        assert np.array_equal(read_mask(save(png, disc(1, np.uint16)), None), disc() > 0)

    def test_antialiased_needs_a_threshold(self, png):
        values = disc()
        values[2, 4:10], values[8, 4:10] = 127, 128
        message = user_error(read_mask, save(png, values), None)
        assert "has 4 distinct values" in message
        assert (
            "pass --mask-threshold N (128 is usual for antialiased masks) to read values >= N as the object" in message
        )
        assert np.array_equal(read_mask(png, 128), values >= 128)

    def test_two_values_without_zero(self, png):
        assert "2 distinct values, not 0 and one other" in user_error(read_mask, save(png, disc() // 255 + 1), None)

    def test_one_value_that_is_not_zero(self, png):
        save(png, np.full((4, 4), 255, np.uint8))
        assert "has 1 distinct value, not" in user_error(read_mask, png, None)
        assert read_mask(png, 128).all()

    @pytest.mark.parametrize("threshold", [None, 128])
    def test_empty(self, png, threshold):
        message = user_error(read_mask, save(png, disc(0)), threshold)
        assert message == f"{png}: the mask is empty; remove the image or draw its object"

    def test_threshold_above_every_value(self, png):
        message = user_error(read_mask, save(png, disc(1)), 128)
        assert "no value reaches --mask-threshold 128; pass at most 1" in message

    def test_exif_orientation_is_applied(self, png):
        mask = read_mask(save(png, disc(), exif=rotated()), None)
        assert np.array_equal(mask, np.rot90(disc() > 0, -1))

    def test_broken(self, png):
        png.write_bytes(b"\x89PNG\r\n\x1a\n")
        assert user_error(read_mask, png, None).endswith("re-export it as PNG")
