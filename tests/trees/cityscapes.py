"""Cityscapes as its two archives unpack: 6 training, 3 validation and 2 test images of four cities."""

import numpy as np
from trees.paint import disc, photo, save

CITIES = {"aachen": ("train", range(4)), "zurich": ("train", range(2)), "lindau": ("val", range(3))}
DUMMY_CITY = "berlin"
# Label ids: of the ego vehicle, which is not trained on, of a car, the road, the sky, and a caravan, not trained on.
EGO, ROAD, SKY, CAR, CARAVAN = 1, 7, 23, 26, 29
TRAIN_IDS = {EGO: 255, ROAD: 0, SKY: 10, CAR: 13, CARAVAN: 255}


def stem(city, number):
    return f"{city}_{number:06d}_000019"


def truth(city, number):
    """Label ids (32, 64) uint8: sky over a road, a car, a caravan, the bonnet of one's own car."""
    labels = np.full((32, 64), SKY, np.uint8)
    labels[14:] = ROAD
    labels[disc(_seed(city, number), 32, 64)] = CAR
    labels[10:14, :8] = CARAVAN
    labels[29:] = EGO
    return labels


def build(root, kinds=("labelIds",)):
    """Writes the tree; the owner's scripts add the kind "labelTrainIds"."""
    for city, (part, numbers) in CITIES.items():
        for number in numbers:
            save(_image(root, part, city, number), photo(_seed(city, number), 32, 64))
            _write_truth(root / "gtFine" / part / city, stem(city, number), truth(city, number), kinds)
    for number in range(2):
        save(_image(root, "test", DUMMY_CITY, number), photo(_seed(DUMMY_CITY, number), 32, 64))
        dummy = np.zeros((32, 64), np.uint8)
        _write_truth(root / "gtFine" / "test" / DUMMY_CITY, stem(DUMMY_CITY, number), dummy, kinds)
    (root / "license.txt").write_text("see the owner's page\n")
    # What lies around.
    (root / "leftImg8bit" / "train" / "aachen" / f"._{stem('aachen', 0)}_leftImg8bit.png").write_bytes(b"\0")
    (root / "leftImg8bit" / "train" / ".DS_Store").write_bytes(b"\0")
    (root / "gtFine" / "train" / "aachen" / "Thumbs.db").write_bytes(b"\0")
    return root


def _image(root, part, city, number):
    return root / "leftImg8bit" / part / city / f"{stem(city, number)}_leftImg8bit.png"


def _write_truth(folder, name, labels, kinds):
    if "labelIds" in kinds:
        save(folder / f"{name}_gtFine_labelIds.png", labels)
    if "labelTrainIds" in kinds:
        save(folder / f"{name}_gtFine_labelTrainIds.png", as_train_ids(labels))
    save(folder / f"{name}_gtFine_instanceIds.png", labels.astype(np.uint16) * 1000)
    save(folder / f"{name}_gtFine_color.png", np.zeros((32, 64, 4), np.uint8))
    (folder / f"{name}_gtFine_polygons.json").write_text("{}\n")


def as_train_ids(labels):
    table = np.full(256, 255, np.uint8)
    for label, train_id in TRAIN_IDS.items():
        table[label] = train_id
    return table[labels]


def _seed(city, number):
    return 100 * [*CITIES, DUMMY_CITY].index(city) + number
