"""Near-duplicate images: copies that were re-encoded, resized or slightly brightened.

A perceptual hash proposes pairs and the correlation of small grey copies confirms them. Mirrored, rotated and strongly
cropped copies are not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# At most this many of the 64 bits of two duplicates differ.
MAX_DISTANCE = 10
# Lies between the known duplicates (.99 and .996) and the highest known false positive (.91).
MIN_CORRELATION = 0.98
_THUMBNAIL_SIZE = 64
# Bound the memory: hashes compared with all others at once, and pairs of thumbnails correlated at once.
_HASHES_AT_ONCE = 128
_PAIRS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class PerceptualHash:
    """What an image is recognised by.

    Attributes:
        bits: 64 bits, the signs of low frequencies about their median (`imagehash.phash`).
        thumbnail: (64, 64) float32 grey values of mean 0 and Euclidean norm 1, so that the correlation of two is the
            sum of their product; all 0 where the image is flat.
    """

    bits: int
    thumbnail: NDArray[np.float32]


def perceptual_hash(image: NDArray[np.uint8]) -> PerceptualHash:
    """Hashes an image.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    grey = Image.fromarray(image).convert("L")
    bits = np.packbits(imagehash.phash(grey).hash).tobytes()
    small = np.asarray(grey.resize((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BILINEAR), np.float64)
    centred = small - small.mean()
    # The mean of 4096 integers is exact: a flat image has no pattern, not even one of rounding.
    norm = float(np.linalg.norm(centred)) or 1.0
    return PerceptualHash(int.from_bytes(bits, "big"), (centred / norm).astype(np.float32))


def near_duplicates(hashes: Mapping[str, PerceptualHash]) -> list[tuple[str, str]]:
    """Pairs of images whose hashes differ in at most 10 bits and whose thumbnails correlate to at least 0.98.

    Flat images are never duplicates: without a pattern nothing says that two of them show the same, and all of them
    have equal hashes. Every pair is compared, about 2e8 for 20,000 images.

    Args:
        hashes: hash of each image by its id.

    Returns:
        Pairs of ids, each once, both ids of a pair and the pairs themselves in the order of `hashes`.
    """
    # Flat images correlate to 0 with everything, but would all be candidates of each other.
    kept = {id_: found for id_, found in hashes.items() if found.thumbnail.any()}
    ids, thumbnails = list(kept), [found.thumbnail for found in kept.values()]
    bits = np.array([found.bits for found in kept.values()], np.uint64)
    return [(ids[i], ids[j]) for pairs in _candidates(bits) for i, j in _confirmed(pairs, thumbnails)]


def groups(ids: Sequence[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Groups of images that are duplicates of each other, directly or through others.

    Args:
        ids: distinct ids.
        pairs: pairs of these ids.

    Returns:
        The group of each id, in the order of `ids`: the first id of the group; its own for an image without duplicates.

    Raises:
        KeyError: a pair holds another id.
    """
    position = {id_: index for index, id_ in enumerate(ids)}
    edges = np.array([(position[a], position[b]) for a, b in pairs], np.int64).reshape(-1, 2)
    if not len(edges):
        return {id_: id_ for id_ in ids}
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(ids), len(ids)))
    _, labels = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    return {id_: first.setdefault(int(label), id_) for id_, label in zip(ids, labels, strict=True)}


def _candidates(bits: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """(n, 2) indices i < j of hashes that are near each other, a few at a time, in row-major order."""
    for start in range(0, len(bits), _HASHES_AT_ONCE):
        block = bits[start : start + _HASHES_AT_ONCE]
        distances = np.bitwise_count(block[:, None] ^ bits[None, start:])
        near = np.triu(distances <= MAX_DISTANCE, 1)
        pairs = np.argwhere(near) + start
        for first in range(0, len(pairs), _PAIRS_AT_ONCE):
            yield pairs[first : first + _PAIRS_AT_ONCE]


def _confirmed(pairs: NDArray[np.int64], thumbnails: Sequence[NDArray[np.float32]]) -> list[tuple[int, int]]:
    left, right = (np.stack([thumbnails[index] for index in pairs[:, side]]) for side in (0, 1))
    correlations = np.einsum("nhw,nhw->n", left, right)
    return [(int(i), int(j)) for i, j in pairs[correlations >= MIN_CORRELATION]]
