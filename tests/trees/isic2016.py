"""ISIC 2016 Task 1 as its four archives unpack: 6 training and 4 test images."""

from trees.paint import as_grey, disc, photo, save

PREFIX = "ISBI2016_ISIC_Part1_"
PARTS = {"Training": range(6), "Test": range(3, 7)}


def build(root):
    for part, numbers in PARTS.items():
        for number in numbers:
            stem, seed = f"ISIC_{number + 1000 * (part == 'Test'):07d}", number + 100 * (part == "Test")
            save(root / f"{PREFIX}{part}_Data" / f"{stem}.jpg", photo(seed))
            save(root / f"{PREFIX}{part}_GroundTruth" / f"{stem}_Segmentation.png", as_grey(disc(seed)))
    # What lies around: the classification archive of the same challenge, and files of file managers.
    save(root / "ISBI2016_ISIC_Part3_Training_Data" / "ISIC_0000000.jpg", photo(900))
    (root / f"{PREFIX}Training_Data" / ".DS_Store").write_bytes(b"\0")
    (root / f"{PREFIX}Test_Data" / "._ISIC_0001003.jpg").write_bytes(b"\0")
    return root
