"""CAMO as its archive unpacks: 5 training and 3 test images, with the masks of both in one folder."""

from trees.cod_repack import save_pair

PARTS = {"Train": [2, 3, 10, 100, 999], "Test": [1, 12, 18]}


def stem(number):
    return f"camourflage_{number:05d}"


def build(root, within="CAMO-V.1.0-CVIU2019"):
    folder = root / within
    for part, numbers in PARTS.items():
        for number in numbers:
            save_pair(folder / "Images" / part, folder / "GT", stem(number))
        (folder / "Images" / part / "Thumbs.db").write_bytes(b"\0")
        (folder / "Images" / part / f"._{stem(numbers[0])}.jpg").write_bytes(b"\0")
    (folder / "GT" / ".DS_Store").write_bytes(b"\0")
    (root / "__MACOSX").mkdir(exist_ok=True)
    return root
