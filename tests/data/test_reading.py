import dataclasses
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from redfree.data.reading import (
    MaskRule,
    binary,
    check_sizes,
    image_size,
    read_grey,
    read_image,
    read_indices,
    read_mask,
)
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


def rotated(orientation=6):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


# What a viewer does to the stored pixels, by EXIF orientation (EXIF 2.32, table 6).
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}
VOID = 255
# Of VOC's colour map: background, class 1, class 15, and the void border.
VOC_COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 15: (192, 128, 128), VOID: (224, 224, 192)}


def voc(path, indices, **options):
    """Writes a palette PNG with the colours of VOC."""
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    colours = np.zeros((256, 3), np.uint8)
    for index, colour in VOC_COLOURS.items():
        colours[index] = colour
    image.putpalette(colours.ravel().tolist())
    image.save(path, **options)
    return path


def bordered():
    """Indices of class 15 with a border of void, as in VOC."""
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[2:10, 3:12] = VOID
    indices[4:8, 5:10] = 15
    return indices


def luminance(colours):
    """ITU-R BT.601 in exact arithmetic, rounded to nearest."""
    red, green, blue = np.moveaxis(np.asarray(colours, np.int64), -1, 0)
    return (299 * red + 587 * green + 114 * blue + 500) // 1000


def polyp(scale=1):
    """A mask of 96x128 with an ellipse, at a multiple of its size."""
    image = Image.new("L", (128 * scale, 96 * scale))
    ImageDraw.Draw(image).ellipse([value * scale for value in (30, 20, 90, 75)], fill=255)
    return np.asarray(image)


JPEG_OPTIONS = {"quality": 100, "subsampling": 0}


def rgb_of(inks):
    """Colour of CMYK inks: light that none of them takes away."""
    *colours, black = inks
    return np.array([(255 - colour) * (255 - black) / 255 for colour in colours])


def ycck_jpeg(path, inks):
    """Writes a JPEG whose inks are stored as Adobe's YCCK: Y, Cb and Cr of (C, M, Y), and the inverse of K."""
    cyan, magenta, yellow, black = inks
    y = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    cb, cr = (yellow - y) / 1.772 + 128, (cyan - y) / 1.402 + 128
    # Pillow stores the inverse of the inks it is given.
    stored = tuple(255 - round(value) for value in (y, cb, cr, 255 - black))
    Image.new("CMYK", (WIDTH, HEIGHT), stored).save(path, **JPEG_OPTIONS)
    content = bytearray(path.read_bytes())
    # The last byte of Adobe's marker says which colours the four channels are: 0 CMYK, 2 YCCK.
    content[content.index(b"Adobe") + 11] = 2
    path.write_bytes(content)
    return path


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

    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_every_orientation(self, tmp_path, suffix, orientation):
        path = save(tmp_path / f"a.{suffix}", pixels(), exif=rotated(orientation))
        assert np.array_equal(read_image(path), UPRIGHT[orientation](pixels()))

    def test_one_bit_is_black_and_white(self, png):
        image = read_image(save(png, disc() > 0))
        assert np.array_equal(image, np.repeat(disc()[..., None], 3, axis=2))

    def test_alpha_of_grey_is_dropped(self, png):
        values = np.stack([pixels()[..., 0], np.zeros((HEIGHT, WIDTH), np.uint8)], axis=2)
        assert np.array_equal(read_image(save(png, values)), np.repeat(values[..., :1], 3, axis=2))

    @pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
    def test_a_transparent_palette_colour_is_looked_up_without_a_warning(self, png, transparency):
        voc(png, bordered() // VOID, transparency=transparency)
        assert Image.open(png).info["transparency"] == transparency
        with warnings.catch_warnings(action="error"):
            image = read_image(png)
        assert image[0, 0].tolist() == [0, 0, 0]
        assert image[2, 3].tolist() == [128, 0, 0]

    def test_alpha_of_a_palette_is_dropped(self, tmp_path):
        path = tmp_path / "a.tif"
        image = Image.new("P", (WIDTH, HEIGHT), 1)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image = image.convert("PA")
        image.putalpha(5)
        image.save(path)
        assert Image.open(path).mode == "PA"
        assert (read_image(path) == (40, 50, 60)).all()

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_sixteen_bit_colours_keep_their_high_bytes(self, tmp_path, suffix, channels):
        path = tmp_path / f"a.{suffix}"
        values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
        values[..., 3:] = 65535
        # Pillow writes no such file; OpenCV's order is blue, green, red.
        assert cv2.imwrite(str(path), values[..., [2, 1, 0, 3][:channels]])
        assert np.array_equal(read_image(path), values[..., :3] >> 8)

    @pytest.mark.parametrize("suffix", ["jpg", "tif"])
    def test_cmyk(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        inks = (200, 40, 90, 60)
        Image.new("CMYK", (WIDTH, HEIGHT), inks).save(path, **JPEG_OPTIONS)
        assert Image.open(path).mode == "CMYK"
        assert np.abs(read_image(path) - rgb_of(inks)).max() <= 3

    def test_ycck(self, tmp_path):
        path = ycck_jpeg(tmp_path / "a.jpg", (200, 40, 90, 60))
        assert Image.open(path).info["adobe_transform"] == 2
        assert np.abs(read_image(path) - rgb_of((200, 40, 90, 60))).max() <= 4

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


class TestImageSize:
    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
    def test_it_is_the_size_of_the_image_as_read(self, tmp_path, suffix, orientation):
        path = save(tmp_path / f"a.{suffix}", pixels(), exif=rotated(orientation))
        assert image_size(path) == read_image(path).shape[:2]
        assert image_size(path) == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))

    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
    def test_without_exif(self, tmp_path, suffix):
        assert image_size(save(tmp_path / f"a.{suffix}", pixels())) == (HEIGHT, WIDTH)

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_pixels_are_not_decoded(self, tmp_path, suffix):
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        path = save(tmp_path / f"a.{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "truncated" in user_error(read_image, path)
        assert image_size(path) == (64, 96)

    def test_missing(self, png):
        assert "no such file" in user_error(image_size, png)

    def test_not_an_image(self, png):
        png.write_bytes(b"hello, not an image")
        assert "not a readable image" in user_error(image_size, png)


class TestReadIndices:
    @pytest.mark.parametrize("options", [{}, {"transparency": 0}])
    def test_void_of_a_palette_is_an_index_and_not_a_colour(self, png, options):
        read = read_indices(voc(png, bordered(), **options))
        assert read.dtype == np.uint8
        assert np.array_equal(read, bordered())
        # The trap: in colours the void border is not black, which makes it object.
        colours = np.asarray(Image.open(png).convert("RGB"))
        assert colours[2, 3].tolist() == [224, 224, 192]
        assert (colours != 0).any(2).sum() > (read == 15).sum()

    def test_palettes_of_few_bits(self, png):
        voc(png, bordered() // VOID, bits=1)
        assert np.array_equal(read_indices(png), bordered() // VOID)

    def test_greys(self, png):
        read = read_indices(save(png, bordered()))
        assert read.dtype == np.uint8
        assert np.array_equal(read, bordered())

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bits_are_not_scaled(self, tmp_path, suffix):
        read = read_indices(save(tmp_path / f"a.{suffix}", disc(40000, np.uint16)))
        assert read.dtype == np.int32
        assert np.array_equal(read, disc(40000, np.int32))

    def test_thirty_two_bits(self, tmp_path):
        assert read_indices(save(tmp_path / "a.tif", disc(70000, np.int32))).max() == 70000

    def test_exif_orientation_is_applied(self, png):
        assert np.array_equal(read_indices(voc(png, bordered(), exif=rotated())), np.rot90(bordered(), -1))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
    def test_colours_are_not_indices(self, png, mode):
        voc(png, bordered())
        Image.open(png).convert(mode).save(png)
        message = user_error(read_indices, png)
        assert f"is stored as {mode}, and colours are not indices; " in message
        assert message.endswith("save a palette or greyscale PNG")

    def test_truncated(self, png):
        voc(png, bordered())
        png.write_bytes(png.read_bytes()[:-40])
        assert user_error(read_indices, png).endswith("re-export it as PNG")


class TestReadGrey:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_luminance_of_colours(self, png, mode):
        image = Image.fromarray(pixels()).convert(mode)
        if mode == "RGBA":
            image.putalpha(3)
        image.save(png)
        grey = read_grey(png)
        assert grey.dtype == np.uint8
        # Pillow's factors are those of the formula to 16 bits.
        assert np.abs(grey - luminance(pixels())).max() <= 1
        assert (grey == luminance(pixels())).mean() > 0.99

    def test_luminance_of_palette_colours(self, png):
        grey = read_grey(voc(png, bordered()))
        assert np.array_equal(grey, luminance(read_image(png)))
        assert {*np.unique(grey)} == {*luminance([VOC_COLOURS[index] for index in (0, 15, VOID)])}

    @pytest.mark.parametrize("values", [pixels()[..., 0], disc() > 0])
    def test_greys_and_bits(self, png, values):
        expected = values if values.dtype == np.uint8 else values * np.uint8(255)
        assert np.array_equal(read_grey(save(png, values)), expected)

    def test_sixteen_bit_greys_are_scaled(self, png):
        assert read_grey(save(png, disc(65535, np.uint16))).max() == 255

    def test_exif_orientation_is_applied(self, png):
        assert np.array_equal(read_grey(save(png, disc(), exif=rotated())), np.rot90(disc(), -1))

    def test_broken(self, png):
        png.write_bytes(b"\x89PNG\r\n\x1a\n")
        assert user_error(read_grey, png).endswith("re-export it as PNG")


class TestBinary:
    @pytest.mark.parametrize(("foreground", "threshold"), [(255, 128), (128, 128), (1, 1), (127, 100)])
    def test_the_threshold_is_the_least_value_of_the_object(self, png, foreground, threshold):
        mask = binary(save(png, disc(foreground)), MaskRule(threshold))
        assert mask.dtype == np.bool_
        assert np.array_equal(mask, disc() > 0)

    def test_jpeg_ringing_is_not_object(self, tmp_path):
        # As in Kvasir-SEG, whose masks are JPEG files of three channels.
        path = save(tmp_path / "a.jpg", np.repeat(polyp()[..., None], 3, axis=2), quality=75)
        stored, truth = read_grey(path), polyp() > 0
        assert len(np.unique(stored)) > 20
        assert ((stored > 0) & (stored < 255)).any()
        assert (stored != 0).sum() > 1.05 * truth.sum()
        assert np.array_equal(binary(path, MaskRule()), truth)

    def test_an_antialiased_edge_is_cut_where_half_a_pixel_is_covered(self, png):
        fine = polyp(8) > 0
        covered = fine.reshape(96, 8, 128, 8).mean((1, 3))
        save(png, np.floor(covered * 255 + 0.5).astype(np.uint8))
        assert (read_grey(png) != 0).sum() > 1.03 * (covered >= 0.5).sum()
        assert np.array_equal(binary(png, MaskRule()), covered >= 0.5)

    def test_a_red_object_is_darker_than_half_grey(self, png):
        # As in one repack of COD10K.
        values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        values[..., 0] = disc()
        message = user_error(binary, save(png, values), MaskRule())
        assert "no grey value reaches the mask threshold 128, the largest is 76; " in message
        assert np.array_equal(binary(png, MaskRule(channel="max")), disc() > 0)

    def test_a_dark_red_object_above_black(self, png):
        # As in PerSeg, whose own code reads what is not black.
        values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        values[..., 0] = disc(128)
        assert np.array_equal(binary(save(png, values), MaskRule(1)), disc() > 0)

    @pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA"])
    def test_one_dataset_may_mix_modes(self, png, mode):
        # As in BUSI.
        Image.fromarray(disc()).convert(mode).save(png)
        assert Image.open(png).mode == mode
        assert np.array_equal(binary(png, MaskRule()), disc() > 0)

    def test_an_opaque_black_background_is_no_object(self, png):
        values = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        values[..., :3], values[..., 3] = disc()[..., None], 255
        assert np.array_equal(binary(save(png, values), MaskRule(channel="max")), disc() > 0)

    @pytest.mark.parametrize("channel", ["grey", "max"])
    def test_empty(self, png, channel):
        # As BUSI's normal and COD10K's NonCAM masks.
        message = user_error(binary, save(png, disc(0)), MaskRule(channel=channel))
        assert message == f"{png}: the mask is empty; remove the image or draw its object"

    @pytest.mark.parametrize("threshold", [0, 256])
    def test_threshold_out_of_range(self, threshold):
        with pytest.raises(UserError, match=rf"^mask threshold is {threshold}; pass 1 to 255$"):
            MaskRule(threshold)

    def test_unknown_channel(self):
        with pytest.raises(UserError, match="unknown mask channel 'gray'; did you mean 'grey'"):
            MaskRule(channel="gray")

    def test_the_rule_can_be_described(self):
        assert dataclasses.asdict(MaskRule(1, "max")) == {"threshold": 1, "channel": "max"}


class TestCheckSizes:
    def test_a_mask_of_another_size(self, tmp_path):
        mask = np.ones((HEIGHT, WIDTH + 1), bool)
        with pytest.raises(UserError) as caught:
            check_sizes(tmp_path / "m.png", mask, tmp_path / "a.jpg", (HEIGHT, WIDTH))
        expected = f"{tmp_path / 'm.png'}: the mask is 17x12 but a.jpg is 16x12; re-export the mask at the image's size"
        assert str(caught.value) == expected

    def test_equal_sizes(self, tmp_path):
        check_sizes(tmp_path / "m.png", np.ones((HEIGHT, WIDTH), bool), tmp_path / "a.jpg", (HEIGHT, WIDTH))


class TestRotatedPair:
    """A photograph that its camera stored lying, and its mask."""

    def test_both_lie(self, tmp_path):
        image = save(tmp_path / "a.png", np.repeat(disc()[..., None], 3, axis=2), exif=rotated())
        mask = binary(save(tmp_path / "m.png", disc(), exif=rotated()), MaskRule())
        check_sizes(tmp_path / "m.png", mask, image, image_size(image))
        assert np.array_equal(read_image(image)[..., 0] > 0, mask)

    def test_the_mask_was_drawn_upright(self, tmp_path):
        image = save(tmp_path / "a.jpg", pixels(), exif=rotated())
        mask = binary(save(tmp_path / "m.png", np.rot90(disc(), -1)), MaskRule())
        check_sizes(tmp_path / "m.png", mask, image, image_size(image))

    def test_a_mask_that_lost_its_orientation_is_refused(self, tmp_path):
        image = save(tmp_path / "a.jpg", pixels(), exif=rotated())
        mask = binary(save(tmp_path / "m.png", disc()), MaskRule())
        with pytest.raises(UserError, match=r"the mask is 16x12 but a\.jpg is 12x16"):
            check_sizes(tmp_path / "m.png", mask, image, image_size(image))
