"""CHAMELEON as the repack holds it: 6 images to test on."""

from trees.cod_repack import save_pair

STEMS = [f"animal-{number}" for number in (1, 2, 9, 10, 11, 76)]


def build(root, within="TestDataset/CHAMELEON", images="Imgs", masks="GT"):
    folder = root / within
    for stem in STEMS:
        save_pair(folder / images, folder / masks, stem)
    (folder / images / "Thumbs.db").write_bytes(b"\0")
    (folder / images / "._animal-1.jpg").write_bytes(b"\0")
    (folder / masks / ".DS_Store").write_bytes(b"\0")
    return root
