"""CIFAR-10 and CIFAR-100: photographs of 32 x 32 pixels in the owner's pickles."""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from redfree.data.about import about_of
from redfree.data.source import Entry, require
from redfree.errors import UserError
from redfree.validation import Strict

_SIZE = 32
# NumPy has no public name for what its pickles are rebuilt with, and its modules were renamed since CIFAR was pickled.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # How Python 3 writes bytes for Python 2.
    ("_codecs", "encode"): codecs.encode,
}


@dataclass(frozen=True)
class Batches:
    """The files of one dataset, as torchvision lists them.

    Attributes:
        folder: top folder of the owner's archive.
        train: hex MD5 of each file of training images, in order.
        test: hex MD5 of each file of test images.
    """

    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]


@lru_cache
def published_batches(dataset: str) -> Batches:
    """Files and MD5s of "cifar10" or "cifar100"."""
    # Takes seconds, and the options of a dataset are checked without its files.
    from torchvision.datasets import CIFAR10, CIFAR100  # noqa: PLC0415

    published = {"cifar10": CIFAR10, "cifar100": CIFAR100}[dataset]
    return Batches(published.base_folder, dict(published.train_list), dict(published.test_list))


class Cifar10:
    """The owner's archive as it unpacks, or the contents of its folder."""

    class Options(Strict):
        """Nothing to choose."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the files are."""
        self._archive = _Archive("cifar10", root, "labels")

    def entries(self) -> list[Entry]:
        """One sample an image: `train-00000` for the first of the first training file."""
        return self._archive.entries()

    def counts(self) -> Mapping[str, int]:
        """Number of images for training and test."""
        return self._archive.counts()

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph, (32, 32, 3)."""
        return self._archive.image(entry)

    def target(self, entry: Entry) -> int:
        """The class, 0 to 9."""
        return self._archive.label(entry)


class Cifar100:
    """The owner's archive as it unpacks, or the contents of its folder."""

    class Options(Strict):
        """Which classes are told apart.

        Attributes:
            labels: "fine", the 100 classes; "coarse", the 20 groups of five of them.
        """

        labels: Literal["fine", "coarse"] = "fine"

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the files are."""
        self._archive = _Archive("cifar100", root, f"{(options or self.Options()).labels}_labels")

    def entries(self) -> list[Entry]:
        """One sample an image: `train-00000` for the first of the training file."""
        return self._archive.entries()

    def counts(self) -> Mapping[str, int]:
        """Number of images for training and test."""
        return self._archive.counts()

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The photograph, (32, 32, 3)."""
        return self._archive.image(entry)

    def target(self, entry: Entry) -> int:
        """The class, 0 to 99, or 0 to 19 of the coarse ones."""
        return self._archive.label(entry)


@dataclass(frozen=True)
class _Archive:
    """All files of a dataset. An entry's key is the file's name and the row in it."""

    dataset: str
    root: Path
    labels: str

    def entries(self) -> list[Entry]:
        batches = published_batches(self.dataset)
        return [
            Entry(f"{split}-{number:05d}", split=split, key=key)
            for split, files in (("train", batches.train), ("test", batches.test))
            for number, key in enumerate((name, row) for name in files for row in range(len(self._read(name)["data"])))
        ]

    def counts(self) -> Mapping[str, int]:
        return Counter(entry.split for entry in self.entries() if entry.split)

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        name, row = entry.key
        planes = self._read(name)["data"][row].reshape(3, _SIZE, _SIZE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def label(self, entry: Entry) -> int:
        name, row = entry.key
        return int(self._read(name)[self.labels][row])

    def _read(self, name: str) -> Mapping[str, Any]:
        batches = published_batches(self.dataset)
        nested = self.root / batches.folder
        folder = nested if nested.is_dir() else self.root
        path = require(folder / name, about_of(self.dataset))
        return _read_batch(path, {**batches.train, **batches.test}[name])


# Of the process and not of a source, which is pickled together with whatever it holds.
@lru_cache(maxsize=12)
def _read_batch(path: Path, md5: str) -> Mapping[str, Any]:
    """The dictionary of one file; nothing is unpickled before its MD5 was checked.

    Raises:
        UserError: the file is not the one that the owner published.
    """
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(f"{path}: its MD5 is {found}, not {md5} as published; unpack the archive anew")
    try:
        batch = _Restricted(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a pickle of arrays alone ({reason}); unpack the archive anew") from error
    batch["data"].flags.writeable = False
    return dict(batch)


class _Restricted(pickle.Unpickler):
    """Builds arrays and plain values: MD5 can be forged, so no other name of a pickle is looked up."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return _ADMITTED[module, name]
