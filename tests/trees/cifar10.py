"""CIFAR-10 as its archive unpacks: five batches of 3 training images and one of 4, pickled as Python 2 did."""

import hashlib
import pickle
import struct

import numpy as np
from trees.paint import photo

FOLDER = "cifar-10-batches-py"
TRAIN, TEST = {f"data_batch_{number}": 3 for number in range(1, 6)}, {"test_batch": 4}
CLASSES = 10


class Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 writes it: strings and bytes alike, and NumPy's modules by their names of that time."""

    def save_string(self, value):
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    def save_global(self, obj, name=None):
        if obj is np.empty(0).__reduce__()[0]:
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
            return self.memoize(obj)
        return super().save_global(obj, name)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string, str: save_string}


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    return path


def image(name, row):
    return photo(sum(map(ord, name)) * 10 + row, 32, 32)


def label(name, row, classes=CLASSES):
    return (sum(map(ord, name)) * 7 + 3 * row) % classes


def planes(name, rows):
    """(rows, 3072) uint8: all of red, then green, then blue, each row by row."""
    return np.stack([image(name, row).transpose(2, 0, 1).ravel() for row in range(rows)])


def build(root):
    for name, rows in {**TRAIN, **TEST}.items():
        content = {
            "batch_label": f"{name} of 6",
            "labels": [label(name, row) for row in range(rows)],
            "data": planes(name, rows),
            "filenames": [f"{name}_{row}.png" for row in range(rows)],
        }
        dump(root / FOLDER / name, content)
    dump(root / FOLDER / "batches.meta", {"label_names": [f"class {number}" for number in range(CLASSES)]})
    (root / FOLDER / "readme.html").write_text("<html></html>")
    return root


def md5s(root, folder=FOLDER, train=TRAIN, test=TEST):
    """The fields of `redfree.data.adapters.cifar.Batches` for this tree; its hashes are not those of the owner."""

    def hashed(names):
        return {name: hashlib.md5((root / folder / name).read_bytes()).hexdigest() for name in names}

    return folder, hashed(train), hashed(test)
