"""The user's own images: flat triples, subfolders or a manifest, alone or in a folder for each split."""

import json
import zlib

from trees.paint import as_grey, disc, photo, save

STEMS = ["2", "9", "10", "scan 1"]
# As the paper's authors have it: search images are drawn from the training images too.
AUTHORS = {"search-1024": ["3", "20"], "train-1024": ["3", "4", "20", "100"], "test-1024": ["1", "2", "4"]}


def seed_of(name):
    return zlib.crc32(name.encode())


def points_of(name):
    return [(26.0 + seed_of(name) % 5, 20.0), (29.5, 20.0)]


def save_points(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"{x:g},{y:g}" for x, y in points_of(name)))


def flat(root, stems=tuple(STEMS), points=True, name="{}"):
    """Triples; `name` is what the seed of a stem is made of."""
    for stem in stems:
        seed = seed_of(name.format(stem))
        save(root / f"{stem}.jpg", photo(seed), quality=95)
        save(root / f"{stem}.png", as_grey(disc(seed)))
        if points:
            save_points(root / f"{stem}.txt", name.format(stem))
    for stray in (".DS_Store", "Thumbs.db", "._2.jpg", "README.md"):
        (root / stray).write_bytes(b"\0")
    return root


def subfolders(root, stems=tuple(STEMS), points=True):
    for stem in stems:
        save(root / "images" / f"{stem}.bmp", photo(seed_of(stem)))
        save(root / "masks" / f"{stem}.png", as_grey(disc(seed_of(stem))))
        if points:
            save_points(root / "points" / f"{stem}.txt", stem)
    return root


def manifest(root, stems=tuple(STEMS), points=True):
    """A manifest in reverse order; returns its path."""
    lines = []
    for stem in reversed(stems):
        save(root / "in" / f"{stem}.tif", photo(seed_of(stem)))
        save(root / "out" / f"m {stem}.png", as_grey(disc(seed_of(stem))))
        line = {"image": f"in/{stem}.tif", "mask": f"out/m {stem}.png"}
        lines.append(json.dumps(line | {"point": points_of(stem)[0]} if points else line))
    path = root / "data.jsonl"
    path.write_text("\n".join(lines))
    return path


def build(root):
    """The paper's authors' layout."""
    for folder, stems in AUTHORS.items():
        flat(root / folder, stems, name=f"{folder}/{{}}")
    (root / ".DS_Store").write_bytes(b"\0")
    (root / "__MACOSX" / "test-1024").mkdir(parents=True)
    (root / "README.md").write_text("samples")
    return root
