"""Reading the image and mask files that users bring."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from redfree.errors import UserError

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow's format plugins raise on broken files; SyntaxError comes from the PNG plugin.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads an image as it is meant to be seen.

    The EXIF orientation is applied, 16-bit greys are scaled to 8 bits, palettes are looked up and alpha is dropped.

    Args:
        path: a file of any format that Pillow reads.

    Returns:
        (H, W, 3) uint8 RGB, 0 to 255.

    Raises:
        UserError: the file is missing, broken or truncated, or its pixels are neither 8-bit nor 16-bit.
    """
    image = _decode(path, "re-export it as JPEG or PNG")
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
        image = Image.fromarray(_eight_bit(path, np.asarray(image)))
    return np.array(image.convert("RGB"), dtype=np.uint8)


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
        raise UserError(f"{path}: the mask is empty; remove the image or draw its object")
    if threshold is None:
        _check_two_values(path, values)
        return np.asarray(values != 0)
    mask = np.asarray(values >= threshold)
    if not mask.any():
        raise UserError(f"{path}: no value reaches --mask-threshold {threshold}; pass at most {values.max()}")
    return mask


def _decode(path: Path, mend: str) -> Image.Image:
    """Opens, fully decodes and turns upright."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path or restore the file")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except _DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable image ({reason}); {mend}") from error


def _eight_bit(path: Path, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scales 0..65535 to 0..255, rounding to nearest."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: its pixels are neither 8-bit nor 16-bit; re-export it as JPEG or PNG")
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _mask_values(path: Path) -> NDArray[Any]:
    """(H, W) values of a mask file."""
    image = _decode(path, "re-export it as PNG")
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
