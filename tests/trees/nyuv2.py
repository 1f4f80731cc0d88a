"""NYU Depth V2: the owner's two MATLAB files with 5 images, and what BTS extracts from them."""

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat
from trees.paint import photo, save

COUNT = 5
TRAIN, TEST = (3, 4, 5), (1, 2)  # MATLAB's numbers, which start at 1
SCENES = ("kitchen", "kitchen", "bathroom", "office", "office")
HEIGHT, WIDTH = 480, 640
HOLE = (slice(100, 120), slice(200, 230))
FAR = (slice(300, 310), slice(300, 320))


def image(number):
    """The image of MATLAB's number, 1 to 5."""
    return photo(number, HEIGHT, WIDTH)


def filled(number):
    """Metres without holes: a slope, steeper to the right than downwards, and one patch at the sensor's limit."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    depth = 1 + number / 8 + x / 256 + y / 512
    depth[FAR] = 10
    return depth.astype(np.float32)


def raw(number):
    """Metres with a hole of zeros."""
    depth = filled(number)
    depth[HOLE] = 0
    return depth


def build(root):
    """The owner's layout. MATLAB's axes are reversed in the file, and `splits` are columns of doubles."""
    root.mkdir(parents=True, exist_ok=True)
    numbers = range(1, COUNT + 1)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, of in (("images", image), ("depths", filled), ("rawDepths", raw)):
            values = np.stack([of(number).T for number in numbers])
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression=1)
    with (root / "nyu_depth_v2_labeled.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    columns = {f"{name}Ndxs": np.array(numbers, float)[:, None] for name, numbers in (("train", TRAIN), ("test", TEST))}
    savemat(root / "splits.mat", columns)
    (root / ".DS_Store").write_bytes(b"\0")
    return root


def build_bts(root, lists=False):
    """What BTS extracts: numbers from 0, a black border, millimetres; with a list for test whose paths start with /."""
    lines = []
    for number, scene in enumerate(SCENES):
        folder = root / ("test" if number + 1 in TEST else "train") / scene
        bordered = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        bordered[7:474, 7:632] = image(number + 1)[7:474, 7:632]
        save(folder / f"rgb_{number:05d}.jpg", bordered)
        millimetres = (raw(number + 1) * 1000).astype(np.uint16)
        Image.fromarray(millimetres).save(folder / f"sync_depth_{number:05d}.png", compress_level=1)
        (folder / f"._rgb_{number:05d}.jpg").write_bytes(b"\0")
        lines += [f"/{scene}/rgb_{number:05d}.jpg /{scene}/sync_depth_{number:05d}.png 518.8579\n"] * (number + 1 == 2)
    if lists:
        (root / "nyudepthv2_test_files_with_gt.txt").write_text("".join(lines))
    return root
