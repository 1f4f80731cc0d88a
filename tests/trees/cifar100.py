"""CIFAR-100 as its archive unpacks: 6 training and 4 test images, pickled as Python 2 did."""

from trees import cifar10
from trees.cifar10 import dump, label, planes

FOLDER = "cifar-100-python"
TRAIN, TEST = {"train": 6}, {"test": 4}


def build(root):
    for name, rows in {**TRAIN, **TEST}.items():
        content = {
            "filenames": [f"{name}_{row}.png" for row in range(rows)],
            "batch_label": f"{name} batch 1 of 1",
            "fine_labels": [label(name, row, 100) for row in range(rows)],
            "coarse_labels": [label(name, row, 20) for row in range(rows)],
            "data": planes(name, rows),
        }
        dump(root / FOLDER / name, content)
    dump(root / FOLDER / "meta", {"fine_label_names": [], "coarse_label_names": []})
    (root / FOLDER / "file.txt~").write_bytes(b"")
    return root


def md5s(root):
    return cifar10.md5s(root, FOLDER, TRAIN, TEST)
