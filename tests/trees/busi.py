"""BUSI: masks of four modes, images with two and three masks, the known duplicate, and the class without lesions."""

import numpy as np
from PIL import Image
from trees.paint import as_grey, disc, photo, save

TOP = "Dataset_BUSI_with_GT"
NUMBERS = {"benign": (1, 2, 4, 10, 65, 99, 195), "malignant": (1, 53)}
LESIONS = {"benign (4)": 2, "benign (195)": 3, "malignant (53)": 2}
SAME = {"benign (99)": "benign (65)"}
MODES = {"benign (2)": "1", "benign (10)": "RGBA", "malignant (1)": "RGB", "benign (4)": "RGBA"}


def stems():
    return [f"{name} ({number})" for name, numbers in NUMBERS.items() for number in numbers]


def seed_of(stem):
    return 10 * stems().index(SAME.get(stem, stem))


def lesions(stem):
    """Each lesion (H, W) bool."""
    return [disc(seed_of(stem) + order) for order in range(LESIONS.get(stem, 1))]


def image(stem):
    """A grey picture; the second of the duplicates is brighter."""
    return np.clip(photo(seed_of(stem)).mean(2, keepdims=True).repeat(3, 2) + 4 * (stem in SAME), 0, 255).astype(
        np.uint8
    )


def save_mask(path, mask, mode):
    Image.fromarray(as_grey(mask)).convert(mode).save(path)


def build(root, top=TOP):
    for stem in stems():
        folder = root / top / stem.split()[0]
        save(folder / f"{stem}.png", image(stem))
        for order, lesion in enumerate(lesions(stem)):
            save_mask(folder / f"{stem}_mask{f'_{order}' if order else ''}.png", lesion, MODES.get(stem, "L"))
    for number in (1, 2):
        save(root / top / "normal" / f"normal ({number}).png", photo(900 + number))
        save(root / top / "normal" / f"normal ({number})_mask.png", np.zeros((40, 56), np.uint8))
    (root / top / "benign" / "Thumbs.db").write_bytes(b"\0")
    (root / top / "benign" / "._benign (1).png").write_bytes(b"\0")
    (root / top / "benign" / "._benign (1)_mask_1.png").write_bytes(b"\0")
    return root
