"""Random fields and shapes from which procedural scenes are composed.

Every value comes from integer draws of PCG64 and from IEEE-754 additions, subtractions, multiplications, divisions and
square roots in a fixed order, which every machine rounds alike. Transcendental functions and reductions over floats are
avoided, so that a scene is bit-identical wherever it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float64]
Mask = NDArray[np.bool_]


def grid(size: int) -> tuple[Field, Field]:
    """Pixel-centre coordinates (y, x) of a square image, each of shape (size, size), in 0..1."""
    line = (np.arange(size, dtype=np.float64) + 0.5) / size
    return np.repeat(line[:, None], size, 1), np.repeat(line[None, :], size, 0)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """One draw from [low, high), exact on every machine."""
    return low + (high - low) * float(rng.random())


def direction(rng: np.random.Generator) -> tuple[float, float]:
    """A random unit vector (y, x), by the rational parametrisation of the circle."""
    t = uniform(rng, -1.0, 1.0)
    x, y = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    quarter_turns = int(rng.integers(4))
    return ((y, x), (x, -y), (-y, -x), (-x, y))[quarter_turns]


def rotate(y: Field, x: Field, axis: tuple[float, float]) -> tuple[Field, Field]:
    """Coordinates along `axis` and across it."""
    return y * axis[0] + x * axis[1], y * axis[1] - x * axis[0]


def value_noise(rng: np.random.Generator, size: int, cells: int) -> Field:
    """Smoothly interpolated lattice noise of shape (size, size) in 0..1, with `cells` lattice cells a side."""
    lattice = rng.random((cells + 1, cells + 1))
    position = (np.arange(size, dtype=np.float64) + 0.5) * cells / size
    low = np.minimum(position.astype(np.int64), cells - 1)
    t = position - low
    t = t * t * (3.0 - 2.0 * t)
    rows = lattice[low] * (1 - t)[:, None] + lattice[low + 1] * t[:, None]
    noise: Field = rows[:, low] * (1 - t)[None, :] + rows[:, low + 1] * t[None, :]
    return noise


def fractal_noise(rng: np.random.Generator, size: int, cells: int, octaves: int, persistence: float = 0.5) -> Field:
    """Octaves of value noise, each twice as fine and `persistence` times as strong, rescaled to 0..1."""
    total, weight, field = 0.0, 1.0, np.zeros((size, size))
    for octave in range(octaves):
        field = field + weight * value_noise(rng, size, min(cells << octave, size))
        total, weight = total + weight, weight * persistence
    mean: Field = field / total
    return mean


def stretch(field: Field) -> Field:
    """Rescales a field so that its extremes are 0 and 1."""
    low, high = field.min(), field.max()
    rescaled: Field = (field - low) / (high - low if high > low else 1.0)
    return rescaled


def grain(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    """Approximately standard normal noise: the scaled sum of six uniforms, in -4.25..4.25."""
    total = rng.random(shape)
    for _ in range(5):
        total = total + rng.random(shape)
    return (total - 3.0) * 1.4142135623730951


def blur(field: Field, radius: int, passes: int = 2) -> Field:
    """Repeated box blur with edge padding; two passes approximate a Gaussian of about `radius` pixels."""
    width = 2 * radius + 1
    for _ in range(passes if radius else 0):
        for axis in (0, 1):
            padding = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
            padded = np.pad(field, padding, mode="edge")
            length = field.shape[axis]
            total = np.take(padded, np.arange(length), axis)
            for offset in range(1, width):
                total = total + np.take(padded, np.arange(offset, offset + length), axis)
            field = total / width
    return field


def triangle_wave(phase: Field) -> Field:
    """A wave of period 1 that rises and falls linearly between 0 and 1."""
    fraction = phase - np.floor(phase)
    return np.where(fraction < 0.5, 2 * fraction, 2 - 2 * fraction)


def largest_component(mask: Mask) -> Mask:
    """The largest 4-connected component of a mask (the first in row-major order among equals)."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return np.asarray(labels == int(areas.argmax()))


def _blob(rng: np.random.Generator, y: Field, x: Field, radius: float) -> Mask:
    along, across = rotate(y, x, direction(rng))
    aspect = uniform(rng, 0.6, 1.0)
    distance = (along * along + across * across / (aspect * aspect)) / (radius * radius)
    return distance + uniform(rng, 0.3, 0.9) * (fractal_noise(rng, len(y), 6, 2) - 0.5) < 1.0


def _ellipse(rng: np.random.Generator, y: Field, x: Field, radius: float) -> Mask:
    along, across = rotate(y, x, direction(rng))
    aspect = uniform(rng, 0.4, 1.0)
    return along * along + across * across / (aspect * aspect) < radius * radius


def _polygon(rng: np.random.Generator, y: Field, x: Field, radius: float) -> Mask:
    inside = np.ones(y.shape, bool)
    for _ in range(int(rng.integers(2, 4))):
        along, across = rotate(y, x, direction(rng))
        inside &= (np.abs(along) < radius) & (np.abs(across) < radius * uniform(rng, 0.55, 1.0))
    return inside


def _metaballs(rng: np.random.Generator, y: Field, x: Field, radius: float) -> Mask:
    potential = np.zeros(y.shape)
    for _ in range(int(rng.integers(3, 6))):
        centre = [uniform(rng, -0.6, 0.6) * radius for _ in range(2)]
        ball = radius * uniform(rng, 0.35, 0.6)
        squared = (y - centre[0]) * (y - centre[0]) + (x - centre[1]) * (x - centre[1])
        potential = potential + ball * ball / (squared + 1e-6)
    return potential > 1.0


def _cross(rng: np.random.Generator, y: Field, x: Field, radius: float) -> Mask:
    along, across = rotate(y, x, direction(rng))
    thickness = radius * uniform(rng, 0.25, 0.45)
    upright = (np.abs(along) < radius) & (np.abs(across) < thickness)
    return upright | ((np.abs(along) < thickness) & (np.abs(across) < radius * uniform(rng, 0.5, 1.0)))


ShapeKind = Callable[[np.random.Generator, Field, Field, float], Mask]
SHAPES: tuple[ShapeKind, ...] = (_blob, _ellipse, _polygon, _metaballs, _cross)
ORGANIC = (_blob, _metaballs)


def shape(
    rng: np.random.Generator,
    size: int,
    radius: tuple[float, float],
    kinds: tuple[ShapeKind, ...] = SHAPES,
    centring: float = 0.5,
) -> Mask:
    """One connected shape of a random kind at a random place.

    Args:
        rng: source of randomness.
        size: side of the mask in pixels.
        radius: range of the radius as a fraction of the side.
        kinds: the shapes to draw from.
        centring: least distance of the centre from the image's border, in radii.

    Returns:
        Boolean mask of shape (size, size).
    """
    y, x = grid(size)
    reach = uniform(rng, *radius)
    margin = centring * reach
    y, x = y - uniform(rng, margin, 1 - margin), x - uniform(rng, margin, 1 - margin)
    return largest_component(kinds[int(rng.integers(len(kinds)))](rng, y, x, reach))
