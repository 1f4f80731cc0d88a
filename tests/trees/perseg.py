"""PerSeg: four objects, each with a reference 00 and some more images, with masks of (128,0,0) on black."""

import numpy as np
from trees.paint import disc, photo, save

OBJECTS = {"backpack": 3, "cat": 4, "cat2": 2, "red_teapot": 3}


def seed_of(name, number):
    return 100 * list(OBJECTS).index(name) + number


def dark_red(mask):
    return mask[..., None] * np.array([128, 0, 0], np.uint8)


def build(root, top="data"):
    images, masks = root / top / "Images", root / top / "Annotations"
    for name, count in OBJECTS.items():
        for number in range(count):
            seed = seed_of(name, number)
            save(images / name / f"{number:02d}.jpg", photo(seed))
            save(masks / name / f"{number:02d}.png", dark_red(disc(seed)))
    for folder in (images, masks, images / "cat", masks / "cat"):
        (folder / ".DS_Store").write_bytes(b"\0")
    (images / "cat" / "._00.jpg").write_bytes(b"\0")
    (masks / "cat" / "._00.png").write_bytes(b"\0")
    (images / "__MACOSX").mkdir()
    return root
