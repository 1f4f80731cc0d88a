"""ImageNet's validation images, flat, beside the development kit: 6 classes, 2 groups of classes, 8 images."""

import io

import numpy as np
from PIL import Image
from scipy.io import savemat
from trees.paint import photo, save

# The owner's number, WordNet id, number of children. Numbers are not in the order of WordNet ids; groups come last.
SYNSETS = (
    (1, "n02119789", 0),
    (2, "n02100735", 0),
    (3, "n01440764", 0),
    (4, "n07873807", 0),
    (5, "n02110185", 0),
    (6, "n01443537", 0),
    (7, "n00001740", 2),
    (8, "n02084071", 4),
)
TRUTH = (3, 1, 6, 4, 2, 5, 1, 3)
SORTED = sorted(wnid for _, wnid, children in SYNSETS if not children)
CMYK, PNG, GREY = 2, 5, 7  # images that are not RGB JPEG


def name(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def wnid(number):
    """The WordNet id of validation image 1 to 8."""
    return SYNSETS[TRUTH[number - 1] - 1][1]


def encoded(number):
    """The bytes of a validation image."""
    image, buffer = Image.fromarray(photo(number)), io.BytesIO()
    if number in (CMYK, GREY):
        image = image.convert("CMYK" if number == CMYK else "L")
    image.save(buffer, "PNG" if number == PNG else "JPEG")
    return buffer.getvalue()


def build_devkit(root):
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.empty((len(SYNSETS), 1), [(field, object) for field in fields])
    for row, (number, wordnet_id, children) in enumerate(SYNSETS):
        below = np.arange(1, children + 1, dtype=float)[None]
        values = (float(number), wordnet_id, f"word {number}, synonym", "a gloss", float(children), below, 0.0)
        synsets[row, 0] = values
    savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in TRUTH))
    return root


def build(root):
    build_devkit(root)
    for number in range(1, len(TRUTH) + 1):
        (root / name(number)).write_bytes(encoded(number))
    (root / f"._{name(1)}").write_bytes(b"\0")
    return root


def build_nested(root, devkit=True):
    """The layout of torchvision and others: validation images in folders of WordNet ids; with 3 training images."""
    if devkit:
        build_devkit(root)
    for number in range(1, len(TRUTH) + 1):
        path = root / "val" / wnid(number) / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    for number, wordnet_id in ((26, SORTED[0]), (30, SORTED[0]), (10, SORTED[4])):
        save(root / "train" / wordnet_id / f"{wordnet_id}_{number}.JPEG", photo(number))
    (root / "train" / SORTED[0] / f"._{SORTED[0]}_26.JPEG").write_bytes(b"\0")
    (root / "val" / ".DS_Store").write_bytes(b"\0")
    (root / "__MACOSX" / "val").mkdir(parents=True)
    return root
