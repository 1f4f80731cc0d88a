"""Three procedural segmentation domains, after the paper's natural, medical and camouflaged image sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redfree.data.procedural.fields import (
    ORGANIC,
    SHAPES,
    Field,
    Mask,
    blur,
    direction,
    fractal_noise,
    grain,
    grid,
    rotate,
    shape,
    stretch,
    triangle_wave,
    uniform,
    value_noise,
)

Colour = NDArray[np.float64]
MIN_AREA = 0.012


@dataclass(frozen=True)
class Scene:
    """An image with the visible part of every object.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        masks: (objects, size, size) bool, at least one object, none smaller than `MIN_AREA` of the image.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def _to_uint8(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.floor(np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _paint(image: NDArray[np.float64], alpha: Field, layer: NDArray[np.float64]) -> NDArray[np.float64]:
    return image * (1 - alpha[..., None]) + layer * alpha[..., None]


def _texture(rng: np.random.Generator, size: int) -> Field:
    kind = int(rng.integers(4))
    if kind == 0:
        return fractal_noise(rng, size, int(rng.integers(3, 9)), 4)
    if kind == 1:
        return np.full((size, size), 0.5) + 0.3 * (fractal_noise(rng, size, 4, 3) - 0.5)
    y, x = grid(size)
    along, across = rotate(y, x, direction(rng))
    frequency = uniform(rng, 6, 20)
    bend = uniform(rng, 0, 1.5) * fractal_noise(rng, size, 3, 2)
    if kind == 2:
        return triangle_wave(along * frequency + bend)
    return triangle_wave(along * frequency + bend) * triangle_wave(across * frequency - bend) * 1.5


def _surface(rng: np.random.Generator, size: int, colour: Colour) -> NDArray[np.float64]:
    contrast = uniform(rng, 0.05, 0.45)
    tint = 0.7 + 0.6 * rng.random(3)
    return colour * (1 + contrast * 2 * (_texture(rng, size)[..., None] - 0.5) * tint)


def _shading(rng: np.random.Generator, size: int, strength: float) -> Field:
    y, x = grid(size)
    along, _ = rotate(y - 0.5, x - 0.5, direction(rng))
    return 1 + strength * along


def _background(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float64], list[Colour]]:
    colours = [0.15 + 0.7 * rng.random(3)]
    image = _surface(rng, size, colours[0])
    for _ in range(int(rng.integers(1, 4))):
        y, x = grid(size)
        along, _ = rotate(y - 0.5, x - 0.5, direction(rng))
        border = along + uniform(rng, 0.1, 0.6) * (fractal_noise(rng, size, 3, 3) - 0.5)
        region = (border > uniform(rng, -0.2, 0.4)).astype(np.float64)
        colours.append(0.15 + 0.7 * rng.random(3))
        image = _paint(image, blur(region, 1, 1), _surface(rng, size, colours[-1]))
    return image * _shading(rng, size, uniform(rng, 0.0, 0.6))[..., None], colours


def _distinct_colour(rng: np.random.Generator, others: list[Colour]) -> Colour:
    best, best_distance = rng.random(3), -1.0
    for _ in range(4):
        candidate = 0.05 + 0.9 * rng.random(3)
        distance = min(float(np.abs(candidate - other).max()) for other in others)
        if distance > best_distance:
            best, best_distance = candidate, distance
    return best


def _visible(layers: list[Mask], size: int) -> NDArray[np.bool_]:
    covered, visible = np.zeros((size, size), bool), []
    for mask in reversed(layers):
        seen = mask & ~covered
        covered |= mask
        if int(seen.sum()) >= MIN_AREA * size * size:
            visible.append(seen)
    return np.stack(visible[::-1]) if visible else np.zeros((0, size, size), bool)


def natural(rng: np.random.Generator, size: int) -> Scene:
    """Two to four coloured, textured, shaded objects with shadows before a background of several regions."""
    image, colours = _background(rng, size)
    layers: list[Mask] = []
    for _ in range(int(rng.integers(2, 5))):
        mask = shape(rng, size, (0.11, 0.30), SHAPES)
        drop = int(rng.integers(1, 5))
        shadow = np.pad(mask, ((drop, 0), (drop, 0)))[:size, :size].astype(np.float64)
        image = image * (1 - uniform(rng, 0.0, 0.5) * blur(shadow, 2)[..., None])
        layer = _surface(rng, size, _distinct_colour(rng, colours))
        layer = layer * _shading(rng, size, uniform(rng, 0.2, 1.0))[..., None]
        image = _paint(image, blur(mask.astype(np.float64), 1, 1), layer)
        layers.append(mask)
    return Scene(_to_uint8(image + 0.02 * grain(rng, image.shape)), _visible(layers, size))


def _tissue(rng: np.random.Generator, size: int) -> Field:
    field = 0.25 + 0.3 * stretch(fractal_noise(rng, size, 3, 3))
    y, x = grid(size)
    for _ in range(int(rng.integers(2, 6))):
        along, _ = rotate(y - uniform(rng, 0, 1), x - uniform(rng, 0, 1), direction(rng))
        band = np.abs(along + 0.25 * (value_noise(rng, size, 4) - 0.5)) < uniform(rng, 0.008, 0.03)
        field = field + uniform(rng, -0.12, 0.12) * blur(band.astype(np.float64), 1)
    return field


def medical(rng: np.random.Generator, size: int) -> Scene:
    """One grey lesion of low contrast with a blurred border in speckled tissue, seen through a round window."""
    tissue = _tissue(rng, size)
    mask = shape(rng, size, (0.12, 0.28), ORGANIC, centring=1.2)
    contrast = uniform(rng, 0.12, 0.26) * (1 if rng.integers(2) else -1)
    lesion = blur(mask.astype(np.float64), int(rng.integers(1, 4)))
    field = tissue + lesion * (contrast + 0.15 * (fractal_noise(rng, size, 8, 2) - 0.5))
    field = field * (1 + 0.22 * blur(grain(rng, (size, size)), 1, 1) * 2.0)
    y, x = grid(size)
    distance = (y - 0.5) * (y - 0.5) + (x - 0.5) * (x - 0.5)
    window = np.clip((uniform(rng, 0.32, 0.5) - distance) * 12, 0, 1)
    grey = np.clip(blur(field, 1, 1) * window, 0, 1)
    return Scene(_to_uint8(np.repeat(grey[..., None], 3, 2)), _visible([mask], size))


def _palette_texture(rng: np.random.Generator, size: int) -> Callable[[Field], NDArray[np.float64]]:
    stops = 0.15 + 0.6 * rng.random((4, 3))
    stops = 0.5 * stops + 0.5 * (0.2 + 0.5 * rng.random(3))

    def colour(field: Field) -> NDArray[np.float64]:
        position = np.clip(field, 0, 1) * 2.999
        low = position.astype(np.int64)
        t = (position - low)[..., None]
        return stops[low] * (1 - t) + stops[low + 1] * t

    return colour


def camouflaged(rng: np.random.Generator, size: int) -> Scene:
    """One organic object that wears its background's own texture, shifted, with a faint rim and shade."""
    double = 2 * size
    cells = int(rng.integers(6, 15))
    y, x = grid(double)
    along, _ = rotate(y, x, direction(rng))
    bark = triangle_wave(along * uniform(rng, 8, 22) + 3 * fractal_noise(rng, double, cells // 2, 3))
    field = stretch(fractal_noise(rng, double, cells, 5, 0.65)) + uniform(rng, 0.0, 0.5) * (bark - 0.5)
    colour = _palette_texture(rng, size)
    shift = [int(v) for v in rng.integers(size // 4, size, 2)]
    here, there = field[:size, :size], field[shift[0] : shift[0] + size, shift[1] : shift[1] + size]
    there = there.T if rng.integers(2) else there
    mask = shape(rng, size, (0.15, 0.32), ORGANIC, centring=0.8)
    alpha = blur(mask.astype(np.float64), 1, 1)
    shade = 1 + uniform(rng, 0.10, 0.28) * (1 if rng.integers(2) else -1)
    rim = np.clip(alpha - blur(mask.astype(np.float64), 2), 0, 1)
    image = _paint(colour(here), alpha, np.clip(colour(there) * shade, 0, 1))
    image = image * (1 - uniform(rng, 0.2, 0.6) * rim[..., None])
    image = image * _shading(rng, size, uniform(rng, 0.0, 0.5))[..., None]
    return Scene(_to_uint8(image + 0.02 * grain(rng, image.shape)), _visible([mask], size))


DOMAINS: dict[str, Callable[[np.random.Generator, int], Scene]] = {
    "natural": natural,
    "medical": medical,
    "camouflaged": camouflaged,
}
_STREAMS = {"search": 0, "pretrain": 1, "validation": 2, "test": 3, "train": 4}


def draw(domain: str, split: str, index: int, seed: int = 0, size: int = 128) -> Scene:
    """Draws scene `index` of one stream; streams of different split, domain or seed share no scene.

    Args:
        domain: a key of `DOMAINS`.
        split: search, train, validation, test, or pretrain, on which the nano models are trained.
        index: position in the stream, from 0.
        seed: seed of the stream.
        size: side of the image in pixels.

    Returns:
        A scene with at least one object, bit-identical on every machine.
    """
    key = (sorted(DOMAINS).index(domain), _STREAMS[split], seed, index, size)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    while True:
        scene = DOMAINS[domain](rng, size)
        if len(scene.masks):
            return scene
