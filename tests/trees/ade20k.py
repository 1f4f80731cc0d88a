"""SceneParse150 as its archive unpacks: 6 training and 3 validation images."""

import numpy as np
from trees.paint import disc, photo, save

PARTS = {"training": ("train", range(1, 7)), "validation": ("val", range(1, 4))}
OTHER, WALL, FLOOR, FLAG = 0, 1, 4, 150


def stem(part, number):
    return f"ADE_{PARTS[part][0]}_{number:08d}"


def truth(part, number):
    """Labels (40, 56) uint8: a wall, the floor before it, a flag, and a corner of no class."""
    labels = np.full((40, 56), WALL, np.uint8)
    labels[28:] = FLOOR
    labels[disc(_seed(part, number))] = FLAG
    labels[:6, : 10 + number] = OTHER
    return labels


def build(root, within="ADEChallengeData2016"):
    folder = root / within
    for part, (_, numbers) in PARTS.items():
        for number in numbers:
            image = photo(_seed(part, number))
            save(folder / "images" / part / f"{stem(part, number)}.jpg", image)
            save(folder / "annotations" / part / f"{stem(part, number)}.png", truth(part, number))
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    (folder / "sceneCategories.txt").write_text(f"{stem('training', 1)} airport_terminal\n")
    # What lies around.
    (folder / "images" / "training" / "._ADE_train_00000001.jpg").write_bytes(b"\0")
    (folder / "images" / "training" / "Thumbs.db").write_bytes(b"\0")
    (folder / "annotations" / ".DS_Store").write_bytes(b"\0")
    (root / "__MACOSX" / "ADEChallengeData2016").mkdir(parents=True)
    return root


def _seed(part, number):
    return number + 100 * (part == "validation")
