"""Images of three classes, in the root or in two splits, with the capital that sorts before the others."""

from trees.paint import photo, save

CLASSES = ["Zebra", "ant", "bee 2"]
NAMES = ["1.jpg", "2.png", "10.JPEG"]


def seed_of(split, label, index):
    return 100 * (split == "train") + 10 * label + index


def classes_in(folder, split=None):
    for label, name in enumerate(CLASSES):
        for index, file in enumerate(NAMES):
            save(folder / name / file, photo(seed_of(split, label, index), 20, 28))
        (folder / name / ".DS_Store").write_bytes(b"\0")
        (folder / name / "._1.jpg").write_bytes(b"\0")
        (folder / name / "notes.txt").write_text("stray")
    (folder / "Thumbs.db").write_bytes(b"\0")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "__MACOSX").mkdir()


def build(root, test="val"):
    """Training images, and those to test on in a folder of this name; None for classes in the root."""
    if test is None:
        classes_in(root)
        return root
    for split in ("train", test):
        classes_in(root / split, split)
    return root
