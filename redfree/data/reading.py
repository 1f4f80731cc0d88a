"""Reading the image and mask files that users bring and owners of datasets distribute."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from redfree.errors import UserError, unknown

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow's format plugins raise on broken files; SyntaxError comes from the PNG plugin.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_MASK_MEND = "re-export it as PNG"
_IMAGE_MEND = "re-export it as JPEG or PNG"
# EXIF orientations that turn an image by a quarter.
_QUARTER_TURNS = (5, 6, 7, 8)

Channel = Literal["grey", "max"]


@dataclass(frozen=True)
class MaskRule:
    """How an owner's mask that is coloured, antialiased or noisy becomes an object; for descriptions.

    Attributes:
        threshold: the least value of the object, 1 to 255. 128 reads antialiased and JPEG masks; 1 takes every pixel
            that is not black, which is wrong for these two.
        channel: what is compared with it. grey: the luminance. max: the largest of red, green and blue, for masks
            whose object has a colour: the grey of pure red is 76.

    Raises:
        UserError: the threshold is out of range, or there is no such channel.
    """

    threshold: int = 128
    channel: Channel = "grey"

    def __post_init__(self) -> None:
        """Checks the fields, which come from files and the command line."""
        if not 1 <= self.threshold <= 255:
            raise UserError(f"mask threshold is {self.threshold}; pass 1 to 255")
        if self.channel not in get_args(Channel):
            raise unknown("mask channel", self.channel, get_args(Channel))


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads an image as it is meant to be seen.

    The EXIF orientation is applied, 16-bit greys are scaled to 8 bits, palettes are looked up, and CMYK and YCCK are
    converted (those of JPEG files as Adobe stores them, inverted). Alpha is dropped, not composited: the colours under
    a transparent pixel are the image's. 16-bit colours keep their high bytes, which is how Pillow reads them.

    Args:
        path: a file of any format that Pillow reads.

    Returns:
        (H, W, 3) uint8 RGB, 0 to 255.

    Raises:
        UserError: the file is missing, broken or truncated, or its pixels are neither 8-bit nor 16-bit.
    """
    return np.array(_colours(path, _IMAGE_MEND), dtype=np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as `read_image` returns it, read from the file's header alone.

    An EXIF orientation that a PNG file stores behind its pixels, where readers seldom look, is not seen.

    Raises:
        UserError: the file is missing, or is not an image.
    """
    with _opened(path, _IMAGE_MEND) as image:
        # The method of PNG files decodes the pixels to look behind them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        width, height = image.size
        # Pillow turns the size of a TIFF file when it opens it, that of other formats when it is asked to.
        turned = orientation in _QUARTER_TURNS and image.format != "TIFF"
    return (width, height) if turned else (height, width)


def read_mask(path: Path, threshold: int | None) -> NDArray[np.bool_]:
    """Reads a mask, refusing files whose meaning would have to be guessed.

    Values are those stored in the file: a palette's indices, not its colours, and 16-bit greys unscaled. 1-bit files
    hold 0 and 255. The EXIF orientation is applied and alpha is dropped.

    Args:
        path: a file of any format that Pillow reads.
        threshold: the least value of the object, at least 1; None where the file holds 0 and one other value.

    Returns:
        (H, W) bool, True on the object, never empty.

    Raises:
        UserError: the file is missing or broken, has differing colour channels, holds other values than 0 and one
            more while `threshold` is None, or has no object.
    """
    values = _mask_values(path)
    if not values.any():
        raise _empty(path)
    if threshold is None:
        _check_two_values(path, values)
        return np.asarray(values != 0)
    mask = np.asarray(values >= threshold)
    if not mask.any():
        raise UserError(f"{path}: no value reaches --mask-threshold {threshold}; pass at most {values.max()}")
    return mask


def read_indices(path: Path) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Reads a label map: the values as stored, for indices and instances.

    A palette's indices are returned, not its colours: VOC's void is 255, not (224, 224, 192). The EXIF orientation is
    applied.

    Args:
        path: a palette or greyscale file; greys of 2 or 4 bits are scaled to 8, as PNG defines them.

    Returns:
        (H, W) uint8, or int32 for files of 16 and 32 bits.

    Raises:
        UserError: the file is missing or broken, or holds colours, alpha, single bits or fractions.
    """
    image = _decode(path, _MASK_MEND)
    if image.mode in ("L", "P"):
        return np.array(image, dtype=np.uint8)
    if image.mode in _SIXTEEN_BIT_MODES:
        return np.array(image, dtype=np.int32)
    raise UserError(
        f"{path}: is stored as {image.mode}, and colours are not indices; "
        "restore the owner's file, or save a palette or greyscale PNG"
    )


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Reads the luminance of a mask that may be coloured: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded.

    Colours are those of `read_image`: palettes are looked up, 16-bit greys are scaled to 8 bits, 1-bit files hold 0
    and 255, alpha is dropped.

    Returns:
        (H, W) uint8, 0 to 255.

    Raises:
        UserError: as `read_image`.
    """
    return np.array(_colours(path, _MASK_MEND).convert("L"), dtype=np.uint8)


def binary(path: Path, rule: MaskRule) -> NDArray[np.bool_]:
    """Reads the object of a mask by a rule that its dataset fixes.

    Returns:
        (H, W) bool, True on the object, never empty.

    Raises:
        UserError: as `read_image`, or the mask has no object.
    """
    colours = _colours(path, _MASK_MEND)
    values = np.asarray(colours).max(2) if rule.channel == "max" else np.asarray(colours.convert("L"))
    mask = np.asarray(values >= rule.threshold)
    if mask.any():
        return mask
    if not np.asarray(colours).any():
        raise _empty(path)
    raise UserError(
        f"{path}: no {rule.channel} value reaches the mask threshold {rule.threshold}, the largest is {values.max()}; "
        "restore the owner's file or change the mask rule"
    )


def check_sizes(mask_path: Path, mask: NDArray[Any], image_path: Path, image_size: tuple[int, int]) -> None:
    """Refuses a mask of another size than its image.

    Args:
        mask_path: the mask's file, for the message.
        mask: (H, W), of any type.
        image_path: the image's file, for the message.
        image_size: height and width of the image.

    Raises:
        UserError: the sizes differ.
    """
    if mask.shape != image_size:
        raise UserError(
            f"{mask_path}: the mask is {_size(mask.shape)} but {image_path.name} is {_size(image_size)}; "
            "re-export the mask at the image's size"
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _empty(path: Path) -> UserError:
    return UserError(f"{path}: the mask is empty; remove the image or draw its object")


@contextmanager
def _opened(path: Path, mend: str) -> Iterator[Image.Image]:
    """Opens a file, and turns what Pillow raises while it is read into one line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path or restore the file")
    try:
        with Image.open(path) as image:
            yield image
    except _DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable image ({reason}); {mend}") from error


def _decode(path: Path, mend: str) -> Image.Image:
    """Opens, fully decodes and turns upright."""
    with _opened(path, mend) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    # Alpha is dropped wherever it is stored; Pillow warns where a palette's is lost in a conversion.
    upright.info.pop("transparency", None)
    return upright


def _colours(path: Path, mend: str) -> Image.Image:
    """The image in RGB."""
    image = _decode(path, mend)
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
        image = Image.fromarray(_eight_bit(path, np.asarray(image)))
    return image.convert("RGB")


def _eight_bit(path: Path, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scales 0..65535 to 0..255, rounding to nearest."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: its pixels are neither 8-bit nor 16-bit; re-export it as JPEG or PNG")
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _mask_values(path: Path) -> NDArray[Any]:
    """(H, W) values of a mask file."""
    image = _decode(path, _MASK_MEND)
    if image.mode == "1" or image.mode.startswith("LA"):
        image = image.convert("L")
    if image.mode in ("L", "P", "F", *_SIXTEEN_BIT_MODES):
        return np.asarray(image)
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise UserError(f"{path}: the mask's colour channels differ; save it as a greyscale PNG, 0 off the object")
    return channels[..., 0]


def _check_two_values(path: Path, values: NDArray[Any]) -> None:
    distinct = np.unique(values)
    if len(distinct) <= 2 and distinct[0] == 0:
        return
    count = f"{len(distinct)} distinct value{'s' if len(distinct) > 1 else ''}"
    usual = 128 if distinct[-1] <= 255 else 32768
    raise UserError(
        f"{path}: the mask has {count}, not 0 and one other; pass --mask-threshold N "
        f"({usual} is usual for antialiased masks) to read values >= N as the object"
    )
