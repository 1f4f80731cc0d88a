"""KITTI as BTS arranges it: drives in `input` and `gt_depth`, and the two lists of Eigen's split."""

import numpy as np
from PIL import Image
from trees.paint import photo, save

# Real drives differ in size by some pixels; two frames are as large as real ones.
SIZES = {
    "2011_09_26_drive_0002_sync": (375, 1242),
    "2011_09_30_drive_0020_sync": (370, 1226),
    "2011_09_26_drive_0009_sync": (37, 124),
    "2011_09_30_drive_0018_sync": (37, 122),
}
TRAIN = {"2011_09_30_drive_0020_sync": (934,), "2011_09_30_drive_0018_sync": (7,)}
TEST = {"2011_09_26_drive_0002_sync": (69,), "2011_09_26_drive_0009_sync": (16, 0, 32)}
# A listed frame that has no depth map, and a frame that no list names.
WITHOUT, UNLISTED = ("2011_09_26_drive_0009_sync", 0), ("2011_09_26_drive_0009_sync", 5)


def image(drive, frame):
    return photo(frame + len(drive), *SIZES[drive])


def stored(drive, frame):
    """uint16, 256 to a metre: a slope up to 100 metres on every second row and column, 0 elsewhere."""
    height, width = SIZES[drive]
    y, x = np.mgrid[:height, :width]
    values = (256 * (1 + 99 * (x / width + 9 * y / height) / 10)).astype(np.uint16) + np.uint16(frame % 7)
    values[1::2], values[:, 1::2] = 0, 0
    return values


def image_path(drive, frame, date=True):
    return f"{drive[:10]}/" * date + f"{drive}/image_02/data/{frame:010d}.png"


def truth_path(drive, frame):
    return f"{drive}/proj_depth/groundtruth/image_02/{frame:010d}.png"


def build(root, date=True, images="input", truths="gt_depth"):
    """`date`: whether the lists name the date of a drive, as those of BTS do."""
    for split, drives in (("train", TRAIN), ("test", TEST)):
        frames = [(drive, frame) for drive, numbers in drives.items() for frame in numbers]
        lines = [f"{image_path(*f, date)} {'None' if f == WITHOUT else truth_path(*f)} 721.5377\n" for f in frames]
        (root / images).mkdir(parents=True, exist_ok=True)
        (root / f"eigen_{split}_files_with_gt.txt").write_text("".join(lines))
        for frame in [*frames, UNLISTED]:
            save(root / images / image_path(*frame), image(*frame), compress_level=1)
            if frame != WITHOUT:
                path = root / truths / truth_path(*frame)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(stored(*frame)).save(path, compress_level=1)
    # The archive of single scans has the same drives, and is not the truth.
    scans = root / "data_depth_velodyne" / "val" / truth_path(*UNLISTED).replace("groundtruth", "velodyne_raw")
    save(scans, np.full((37, 124), 9, np.uint8))
    (root / images / ".DS_Store").write_bytes(b"\0")
    return root
