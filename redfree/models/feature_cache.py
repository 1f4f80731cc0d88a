"""Encoder outputs kept on disk, one file an image, found by everything that they were computed from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.files import replace_atomically
from redfree.models.base import Features, Frame
from redfree.progress import track

# To be raised with any change of redfree's own code that changes features or their files.
_FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
# Pillow and torchvision resize the images; the others hold the encoders.
_PACKAGES = ("redfree", "pillow", "torchvision", "segment-anything", "sam2", "timm")

Image = NDArray[np.uint8]


class Encoder(Protocol):
    """What the cache needs of a model.

    `name`, `input_side`, `encoding` and `device` become part of the key where a model has them; one without `device`
    gets its features on the CPU. Whatever else changes the features of a custom model belongs in its `options`.
    """

    @property
    def checkpoint_sha256(self) -> str:
        """Hex SHA-256 of the weights file."""
        ...

    def encode_each(self, images: Sequence[Image]) -> Iterable[Features]:
        """Features of RGB images, each (H, W, 3) uint8, in order and a batch at a time."""
        ...

    def options(self) -> Mapping[str, Any]:
        """What determines the features beside the weights."""
        ...


@dataclass(frozen=True)
class CachedEncoding:
    """Features of some images, and where they come from.

    Attributes:
        features: of every image asked for, in order, float32 and contiguous on the model's device.
        computed: number of distinct images that were encoded now.
        read: number of distinct images whose features were on disk.
    """

    features: Features
    computed: int
    read: int


@dataclass(frozen=True)
class _Entry:
    """One image's features: its maps, then its high-resolution features, each (C, H, W) in the storage format."""

    frame: Frame
    levels: tuple[Tensor, ...]


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features shared by every cell and process that encodes.

    Features pass through the storage format whether they are kept, read or neither, so that what a cache already holds
    changes no result.

    Attributes:
        folder: where the files lie; None keeps nothing.
        dtype: number format of the files; float16 halves their size and rounds features to 11 significant bits.
    """

    folder: Path | None = None
    dtype: Literal["float32", "float16"] = "float32"

    def encode(self, model: Encoder, images: Sequence[Image], label: str = "encode") -> CachedEncoding:
        """Features of images, read where they are on disk, encoded and kept otherwise.

        Images that are not on disk are encoded in the model's own batches, and each file is written as soon as its
        batch is done, so that a killed run goes on where it was. In float32 the result equals `model.encode` bit for
        bit where the model encodes one image at a time, and to within rounding otherwise. The memory of the result is
        taken once; the peak is that and one batch.

        Args:
            model: a frozen model, such as a `PromptableModel`.
            images: RGB images, each (H, W, 3) uint8 of any size, held one batch at a time; equal ones are encoded once.
            label: title of the progress bar, which counts distinct images.

        Raises:
            UserError: the model cannot encode an image, a swap is attached to its encoder, or a feature is beyond the
                range of float16.
            OSError: a file cannot be written; it names the file.
            ValueError: there are no images, or the model gives features of another number or of unequal shapes.
        """
        if not len(images):
            raise ValueError("no images to encode")
        _require_plain(model)
        places = self._places(model, images)
        rows, read = _Rows(len(images), _device(model)), 0
        distinct = {key: where[0] for key, where in places.items()}
        for key, entry, was_read in track(self._entries(model, images, distinct), len(places), label):
            rows.fill(places[key], entry)
            read += was_read
        return CachedEncoding(rows.features(), len(places) - read, read)

    def _places(self, model: Encoder, images: Sequence[Image]) -> dict[str, list[int]]:
        """Where each key is among the images."""
        context, places = self._context(model), dict[str, list[int]]()
        for d, image in enumerate(images):
            places.setdefault(_key(context, image), []).append(d)
        return places

    def _context(self, model: Encoder) -> str:
        """All that determines features but the image."""
        kind = type(model)
        facts = (_FORMAT, self.dtype, kind.__module__, kind.__qualname__, model.checkpoint_sha256)
        # The name stands for what the weights leave open, such as the number of attention heads.
        named = [getattr(model, attribute, None) for attribute in ("name", "input_side")]
        options, encoding = sorted(model.options().items()), _encoding_facts(model)
        return repr((*facts, *named, options, encoding, _device(model).type, _arithmetic(), _versions()))

    def _entries(
        self, model: Encoder, images: Sequence[Image], distinct: Mapping[str, int]
    ) -> Iterator[tuple[str, _Entry, bool]]:
        """Every key with its features and whether they were read: first those on disk, then the others."""
        missing: dict[str, int] = {}
        for key, place in distinct.items():
            entry = self._read(key)
            if entry is None:
                missing[key] = place
            else:
                yield key, entry, True
        if not missing:
            return
        encoded = self._encoded(model, _Chosen(images, list(missing.values())))
        for key, entry in zip(missing, encoded, strict=True):
            yield key, self._kept(key, entry), False

    def _encoded(self, model: Encoder, images: Sequence[Image]) -> Iterator[_Entry]:
        dtype = getattr(torch, self.dtype)
        for part in model.encode_each(images):
            levels = [_narrowed(level, dtype) for level in (part.maps, *part.high_resolution)]
            for frame, *own in zip(part.frames, *levels, strict=True):
                yield _Entry(frame, tuple(own))

    def _kept(self, key: str, entry: _Entry) -> _Entry:
        """The same entry, once it is on disk."""
        if self.folder is None:
            return entry
        with replace_atomically(_path(self.folder, key)) as file:
            file.write(_serialised(key, entry))
        return entry

    def _read(self, key: str) -> _Entry | None:
        """The features under a key; None where no file of this cache, whole and for this key, is found."""
        if self.folder is None:
            return None
        # Whatever is wrong with a file, its mend is to write it anew.
        with suppress(OSError, SafetensorError, KeyError, TypeError, ValueError):
            return _deserialised(_path(self.folder, key), key)
        return None


@dataclass(frozen=True)
class _Chosen(Sequence[Image]):
    """Some of the images, which may be on disk until they are indexed."""

    images: Sequence[Image]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self.images[place] for place in self.places[index]]
        return self.images[self.places[index]]


class _Rows:
    """Features of many images, filled in any order; their memory is taken at the first image."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._count, self._device = count, device
        self._frames: dict[int, Frame] = {}
        self._levels: tuple[Tensor, ...] = ()

    def fill(self, rows: Sequence[int], entry: _Entry) -> None:
        if not self._levels:
            self._levels = tuple(self._room(level) for level in entry.levels)
        for whole, level in zip(self._levels, entry.levels, strict=True):
            if whole.shape[1:] != level.shape:  # or `copy_` might broadcast it
                raise ValueError(f"features of unequal shapes: {tuple(whole.shape[1:])} and {tuple(level.shape)}")
            for row in rows:
                whole[row].copy_(level)
        self._frames.update(dict.fromkeys(rows, entry.frame))

    def _room(self, level: Tensor) -> Tensor:
        return torch.empty((self._count, *level.shape), dtype=torch.float32, device=self._device)

    def features(self) -> Features:
        maps, *high_resolution = self._levels
        return Features(maps, tuple(self._frames[row] for row in range(self._count)), tuple(high_resolution))


def size(folder: Path) -> tuple[int, int]:
    """Number of feature files in a folder, and their bytes."""
    count = total = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):  # another process may clear the folder
            total += path.stat().st_size
            count += 1
    return count, total


def clear(folder: Path) -> None:
    """Removes the feature files of a folder, and nothing else.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in _files(folder):
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    found = folder.glob("[0-9a-f][0-9a-f]/*.safetensors")
    return [path for path in found if _NAME.fullmatch(path.name) and path == _path(folder, path.stem)]


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def _key(context: str, image: Image) -> str:
    digest = hashlib.sha256(repr((context, image.shape, str(image.dtype))).encode())
    digest.update(np.ravel(image).data)
    return digest.hexdigest()


def _device(model: Encoder) -> torch.device:
    return torch.device(getattr(model, "device", "cpu"))


def _encoding_facts(model: Encoder) -> object:
    """How the model encodes, but for its batch.

    Another batch makes other sums of the same precision, so features agree to within rounding. Were it in the key,
    features would still depend on it: which images share a batch is decided by those that are on disk already.
    """
    encoding = getattr(model, "encoding", None)
    if not is_dataclass(encoding) or isinstance(encoding, type):
        return encoding
    return sorted((name, value) for name, value in asdict(encoding).items() if name != "batch")


def _arithmetic() -> tuple[str, ...]:
    """What float32 means to matrix products and convolutions: TF32 and bfloat16 are further off than rounding."""
    kinds: Any = torch.backends
    kernels = (kinds.cuda.matmul, kinds.cudnn.conv, kinds.mkldnn.matmul, kinds.mkldnn.conv)
    return tuple(str(kernel.fp32_precision) for kernel in kernels)


@lru_cache(maxsize=1)
def _versions() -> tuple[str | None, ...]:
    found: list[str | None] = [torch.__version__]
    for package in _PACKAGES:
        try:
            found.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            found.append(None)
    return tuple(found)


def _require_plain(model: Encoder) -> None:
    """Refuses a model whose encoder gives swapped features, which no key would tell from its own."""
    encoder = getattr(getattr(model, "module", None), "image_encoder", None)
    if isinstance(encoder, nn.Module) and encoder._forward_hooks:
        raise UserError("a swap or another hook is attached to the image_encoder; detach it before encoding")


def _narrowed(level: Tensor, dtype: torch.dtype) -> Tensor:
    """Features in the storage format.

    Raises:
        UserError: a finite value would become infinite.
    """
    level = level.detach()
    narrow = level.to(dtype)
    if dtype is torch.float16 and bool((narrow.isinf() & level.isfinite()).any()):
        largest = float(level[level.isfinite()].abs().max())
        raise UserError(f"features as large as {largest:.6g} are beyond float16; keep features in float32")
    return narrow


def _serialised(key: str, entry: _Entry) -> bytes:
    levels = tuple(level.contiguous().cpu() for level in entry.levels)
    names = ["maps", *(f"high_resolution_{k}" for k in range(len(levels) - 1))]
    frame = json.dumps([entry.frame.original, entry.frame.resized], default=int)
    about = {"key": key, "levels": names, "frame": frame, "seal": _seal(key, frame, levels)}
    # safetensors keeps several fields in no fixed order; with one, equal features make equal files.
    return save(dict(zip(names, levels, strict=True)), {"redfree": json.dumps(about)})


def _deserialised(path: Path, key: str) -> _Entry:
    """The features in a file.

    Raises:
        ValueError: it is of another key, or not what was written.
        OSError, SafetensorError, KeyError, TypeError: it is not there, cut short, or of another kind.
    """
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})["redfree"])
        if about["key"] != key:
            raise ValueError("a file of another key")
        levels = tuple(file.get_tensor(name) for name in about["levels"])
    if about["seal"] != _seal(key, about["frame"], levels):
        raise ValueError("not what was written")
    original, resized = (tuple(sides) for sides in json.loads(about["frame"]))
    return _Entry(Frame(original, resized), levels)


def _seal(key: str, frame: str, levels: Sequence[Tensor]) -> str:
    """Hex SHA-256 of all that a file says, shapes included: a copy of the right length may still hold other bytes."""
    shapes = [(tuple(level.shape), str(level.dtype)) for level in levels]
    digest = hashlib.sha256(repr((key, frame, shapes)).encode())
    for level in levels:
        digest.update(level.numpy().ravel().data)
    return digest.hexdigest()
