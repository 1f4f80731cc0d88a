"""Tables of 4 training and 3 test rows, as parquet files of the hub's names or saved by its library."""

import io

import datasets
import numpy as np
from PIL import Image
from trees.paint import as_grey, disc, photo

SIZES = {"train": 4, "test": 3}
OBJECT, VOID = 7, 255


def seed_of(split, row):
    return 10 * list(SIZES).index(split) + row


def classes(seed):
    """A map of classes (40, 56) uint8: the object has class 7, beside another and void."""
    found = np.where(disc(seed), OBJECT, 2).astype(np.uint8)
    found[:3] = VOID
    return found


def depth(seed):
    """Metres (40, 56) float32 with a hole."""
    rng = np.random.default_rng(seed)
    metres = rng.uniform(0.5, 9.5, (40, 56)).astype(np.float32)
    metres[:5, :7] = 0
    return metres


def points(seed):
    return [[float(seed), 10.5], [30.0, 20.0]]


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "row.png"}


def columns(split):
    """Every kind of column; `raw` ones are those of parquet files that other programs wrote."""
    seeds = [seed_of(split, row) for row in range(SIZES[split])]
    return {
        "image": [png(photo(seed)) for seed in seeds],
        "mask": [png(as_grey(disc(seed))) for seed in seeds],
        "classes": [png(classes(seed)) for seed in seeds],
        "mask_array": [disc(seed).tolist() for seed in seeds],
        "depth": [depth(seed) for seed in seeds],
        "depth_array": [depth(seed) for seed in seeds],
        "millimetres": [png(np.round(1000 * depth(seed)).astype(np.uint16)) for seed in seeds],
        "label": [seed % 3 for seed in seeds],
        "points": [points(seed) for seed in seeds],
        "point": [points(seed)[0] for seed in seeds],
        "raw_image": [png(photo(seed))["bytes"] for seed in seeds],
        "name": [f"row {seed}" for seed in seeds],
    }


def table(split, **replaced):
    features = datasets.Features(
        {
            **dict.fromkeys(("image", "mask", "classes", "depth", "millimetres"), datasets.Image()),
            "mask_array": datasets.List(datasets.List(datasets.Value("bool"))),
            "depth_array": datasets.Array2D((40, 56), "float32"),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "points": datasets.List(datasets.List(datasets.Value("float32"))),
            "point": datasets.List(datasets.Value("float32")),
            "name": datasets.Value("string"),
        }
    )
    found = columns(split) | replaced
    table = datasets.Dataset.from_dict({name: found[name] for name in features}, features=features)
    return table.add_column("raw_image", found["raw_image"])


def build(root, names=None):
    """Writes parquet files; `names` from a split to the file of its table."""
    names = names or {split: f"data/{split}-00000-of-00001.parquet" for split in SIZES}
    for split, name in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        table(split).to_parquet(root / name)
    # What lies around.
    (root / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    (root / ".DS_Store").write_bytes(b"\0")
    (root / "._train.parquet").write_bytes(b"\0")
    (root / "train.csv").write_text("a,b\n")
    return root


def save(root):
    """Saves both splits as the library does."""
    datasets.DatasetDict({split: table(split) for split in SIZES}).save_to_disk(root)
    return root


def save_alone(root, **replaced):
    """Saves the training rows without a split, with other contents of some columns."""
    table("train", **replaced).save_to_disk(root)
    return root
