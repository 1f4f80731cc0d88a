"""COD10K's third version: 5 camouflaged training and 4 test images, among as many without camouflage."""

import numpy as np
from trees.cod_repack import reddened, save_pair, softened
from trees.paint import photo, save

CAM = {
    "Train": [
        "COD10K-CAM-1-Aquatic-1-BatFish-1",
        "COD10K-CAM-1-Aquatic-1-BatFish-3",
        "COD10K-CAM-1-Aquatic-1-BatFish-7",
        "COD10K-CAM-2-Terrestrial-23-Cat-1453",
        "COD10K-CAM-4-Amphibian-67-Frog-4",
    ],
    "Test": [
        "COD10K-CAM-1-Aquatic-1-BatFish-2",
        "COD10K-CAM-1-Aquatic-1-BatFish-4",
        "COD10K-CAM-2-Terrestrial-23-Cat-1466",
        "COD10K-CAM-3-Flying-60-Moth-10",
    ],
}
# The last one is a background, without a class.
NON_CAM = {
    "Train": ["COD10K-NonCAM-1-Aquatic-8-Fish-1", "COD10K-NonCAM-5-Background-1"],
    "Test": ["COD10K-NonCAM-1-Aquatic-8-Fish-2", "COD10K-NonCAM-5-Background-2"],
}


def red(mask):
    """A mask as some copies store it."""
    return reddened(softened(mask))


def build(root, within="COD10K-v3", paint=softened):
    folder = root / within
    for part, stems in CAM.items():
        images, masks = folder / part / "Image", folder / part / "GT_Object"
        for stem in stems:
            save_pair(images, masks, stem, paint)
            save(folder / part / "GT_Edge" / f"{stem}.png", np.zeros((40, 56), np.uint8))
        for index, stem in enumerate(NON_CAM[part]):
            save(images / f"{stem}.jpg", photo(900 + index))
        # Of the images without camouflage some have black masks, others none.
        save(masks / f"{NON_CAM[part][0]}.png", np.zeros((40, 56), np.uint8))
        (images / f"._{stems[0]}.jpg").write_bytes(b"\0")
        (masks / ".DS_Store").write_bytes(b"\0")
        (folder / part / f"CAM_Instance_{part}.json").write_text("{}")
        write_list(folder, f"CAM_{part.lower()}", stems)
        write_list(folder, f"NonCAM_{part.lower()}", NON_CAM[part])
    (folder / "Readme.txt").write_text("COD10K\n")
    return root


def write_list(folder, name, stems):
    path = folder / "Info" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{stem}.jpg\r\n" for stem in stems))
