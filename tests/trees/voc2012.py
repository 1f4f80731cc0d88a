"""PASCAL VOC 2012 as its archive unpacks: 5 training and 4 validation images, each with two people and a cat."""

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation
from trees.paint import disc, photo, save

PARTS = {"train": range(5), "val": range(5, 9)}
CAT, PERSON, VOID = 8, 15, 255
_CLASSES = (PERSON, CAT, PERSON)


def stem(number):
    return f"2007_{number:06d}"


def colours():
    """The owner's palette (256, 3) uint8: the bits of an index are dealt out to red, green and blue, highest first."""
    palette = np.zeros((256, 3), np.uint8)
    for index in range(256):
        for bit in range(8):
            palette[index, bit % 3] |= (index >> bit & 1) << 7 - bit // 3
    return palette


def truth(number):
    """Classes and objects of an image, (40, 56) uint8 each: three ellipses, void around them."""
    objects = np.zeros((40, 56), np.uint8)
    for index in range(len(_CLASSES)):
        columns = np.s_[:, 18 * index : 18 * index + 18]
        objects[columns][disc(10 * number + index, 40, 18)] = index + 1
    void = binary_dilation(objects > 0, iterations=2) & (objects == 0)
    classes = np.array([0, *_CLASSES], np.uint8)[objects]
    return np.where(void, VOID, classes).astype(np.uint8), np.where(void, VOID, objects).astype(np.uint8)


def save_indices(path, indices):
    """Writes label maps as the owner does, with a palette."""
    image = Image.fromarray(indices, "P")
    image.putpalette(colours().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def build(root, within="VOCdevkit/VOC2012"):
    folder = root / within
    for number in [*PARTS["train"], *PARTS["val"], 90]:
        save(folder / "JPEGImages" / f"{stem(number)}.jpg", photo(number))
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{stem(number)}.xml").write_text("<annotation/>\n")
    for number in [*PARTS["train"], *PARTS["val"]]:
        for kind, indices in zip(("Class", "Object"), truth(number), strict=True):
            save_indices(folder / f"Segmentation{kind}" / f"{stem(number)}.png", indices)
    _write_lists(folder / "ImageSets")
    # What lies around: files of file managers, and the sets of other tasks, whose lines have a second column.
    (folder / "JPEGImages" / "._2007_000000.jpg").write_bytes(b"\0")
    (folder / "SegmentationClass" / ".DS_Store").write_bytes(b"\0")
    (folder / "JPEGImages" / "Thumbs.db").write_bytes(b"\0")
    return root


def _write_lists(folder):
    for name in ("Segmentation", "Main"):
        (folder / name).mkdir(parents=True)
    for part, numbers in {**PARTS, "trainval": range(9)}.items():
        (folder / "Segmentation" / f"{part}.txt").write_text("".join(f"{stem(number)}\n" for number in numbers))
    (folder / "Main" / "cat_train.txt").write_text(f"{stem(90)} -1\n")
