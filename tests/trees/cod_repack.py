"""The repack of SINet and its successors: one training set that mixes two datasets, a folder for each test set."""

import zlib

import numpy as np
from scipy.ndimage import binary_dilation
from trees.paint import as_grey, disc, photo, save

CAMO_TRAIN = ["camourflage_00002", "camourflage_00010", "camourflage_00100"]
CAMO_TEST = ["camourflage_00001", "camourflage_00012"]
COD10K_TRAIN = ["COD10K-CAM-1-Aquatic-3-Crab-72", "COD10K-CAM-2-Terrestrial-23-Cat-9"]
COD10K_TEST = ["COD10K-CAM-1-Aquatic-3-Crab-71", "COD10K-CAM-2-Terrestrial-23-Cat-10"]
CHAMELEON = ["animal-2", "animal-9", "animal-10"]


def seed_of(stem):
    return zlib.crc32(stem.encode())


def truth(stem):
    """The object of a sample, (40, 56) bool."""
    return disc(seed_of(stem))


def softened(mask):
    """A mask as it is stored where its edge is antialiased: a ring of 90 lies around the object."""
    return np.where(binary_dilation(mask) & ~mask, np.uint8(90), as_grey(mask))


def reddened(grey):
    """A grey mask in shades of pure red."""
    return np.stack([grey, np.zeros_like(grey), np.zeros_like(grey)], axis=2)


def save_pair(images, masks, stem, paint=softened):
    save(images / f"{stem}.jpg", photo(seed_of(stem)), quality=95)
    save(masks / f"{stem}.png", paint(truth(stem)))


def build(root):
    """All of it, with files of file managers."""
    sets = {
        "TrainDataset": CAMO_TRAIN + COD10K_TRAIN,
        "TestDataset/CAMO": CAMO_TEST,
        "TestDataset/COD10K": COD10K_TEST,
        "TestDataset/CHAMELEON": CHAMELEON,
    }
    for folder, stems in sets.items():
        for stem in stems:
            save_pair(root / folder / "Imgs", root / folder / "GT", stem)
        (root / folder / "Imgs" / "Thumbs.db").write_bytes(b"\0")
        (root / folder / "Imgs" / f"._{stems[0]}.jpg").write_bytes(b"\0")
        (root / folder / "GT" / ".DS_Store").write_bytes(b"\0")
    (root / "__MACOSX" / "TestDataset").mkdir(parents=True)
    return root
