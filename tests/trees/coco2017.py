"""COCO 2017: seven training and three validation images with the oddities of their annotations."""

import json
from itertools import groupby

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths
from trees.paint import disc, photo, save

HEIGHT, WIDTH = 40, 56
# Category ids have gaps, as the owner's: 12 is not used.
CATEGORIES = {"person": 1, "stop sign": 13, "toothbrush": 90}
# Images without annotations: 34, 285. Grey: 36. CMYK: 42.
IMAGES = {"train": (9, 25, 30, 34, 36, 42, 49), "val": (139, 285, 632)}


def rectangle(left, top, right, bottom):
    """The polygon around the pixels of `left <= x < right` and `top <= y < bottom`."""
    return [left, top, right, top, right, bottom, left, bottom]


def pixels(left, top, right, bottom):
    """(H, W) bool, True where the rectangle of the same corners is."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def uncompressed(mask):
    """Run lengths down the columns, from background."""
    runs = [(value, len(list(run))) for value, run in groupby(mask.T.ravel().tolist())]
    return {"counts": [0] * runs[0][0] + [length for _, length in runs], "size": list(mask.shape)}


def compressed(mask):
    encoded = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"counts": encoded["counts"].decode(), "size": encoded["size"]}


# Annotation id: image, category, segmentation, further fields. Not in the order of the images, as the owner's.
ANNOTATIONS = {
    "train": {
        1768: (25, "person", [rectangle(4, 5, 30, 20)], {}),
        2096: (9, "person", [rectangle(10, 10, 30, 30)], {}),
        # Overlaps the one before.
        2097: (9, "toothbrush", [rectangle(20, 20, 40, 36)], {}),
        # In two parts, one of them of two points.
        2098: (9, "stop sign", [rectangle(1, 1, 5, 6), rectangle(45, 2, 55, 9), [3, 3, 20, 20]], {}),
        3001: (30, "person", uncompressed(disc(1)), {}),
        3002: (30, "person", compressed(disc(2)), {}),
        # Left out: a crowd, an area of 0, a polygon of two points, one that is between the pixels' centres.
        900100000030: (30, "person", uncompressed(disc(3)), {"iscrowd": 1}),
        3003: (30, "person", [rectangle(7, 7, 7, 20)], {}),
        3004: (30, "person", [[3, 3, 20, 20]], {"area": 12.5, "bbox": [3, 3, 17, 17]}),
        3005: (30, "person", [[3, 3.2, 50, 3.2, 50, 3.4, 3, 3.4]], {"area": 9.4, "bbox": [3, 3.2, 47, 0.2]}),
        3601: (36, "toothbrush", [rectangle(2, 3, 12, 13)], {}),
        4201: (42, "person", [rectangle(8, 9, 20, 21)], {}),
        # Long and thin, but it covers pixels.
        4901: (49, "person", [rectangle(2, 6, 52, 7)], {}),
    },
    "val": {
        10: (139, "person", [rectangle(3, 3, 13, 13)], {}),
        9: (632, "stop sign", [rectangle(5, 6, 25, 36)], {}),
    },
}
LEFT_OUT = (900100000030, 3003, 3004, 3005)


def annotation(id_, image, category, segmentation, further):
    if isinstance(segmentation, dict):
        area, bbox = int(np.sum(uncompressed_counts(segmentation)[1::2])), [5, 5, 30, 25]
    else:
        x = [value for polygon in segmentation for value in polygon[::2]]
        y = [value for polygon in segmentation for value in polygon[1::2]]
        bbox = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        area = float(sum((part[2] - part[0]) * (part[5] - part[1]) for part in segmentation if len(part) == 8))
    fields = {
        "area": area,
        "iscrowd": 0,
        "image_id": image,
        "bbox": bbox,
        "category_id": CATEGORIES[category],
        "id": id_,
    }
    return {"segmentation": segmentation, **fields, **further}


def uncompressed_counts(segmentation):
    if isinstance(segmentation["counts"], list):
        return segmentation["counts"]
    return uncompressed(run_lengths.decode(segmentation).astype(bool))["counts"]


def content(part):
    """What the file of annotations of a part holds."""
    images = [
        {
            "license": 4,
            "file_name": f"{id_:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/{part}2017/{id_:012d}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": "http://farm7.staticflickr.com/x.jpg",
            "id": id_,
        }
        for id_ in IMAGES[part]
    ]
    return {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "http://x", "id": 4, "name": "Attribution License"}],
        "images": images,
        "annotations": [annotation(id_, *fields) for id_, fields in ANNOTATIONS[part].items()],
        "categories": [{"supercategory": "x", "id": id_, "name": name} for name, id_ in CATEGORIES.items()],
    }


def json_of(root, part):
    return root / "annotations" / f"instances_{part}2017.json"


def write(root, part, annotations):
    json_of(root, part).parent.mkdir(parents=True, exist_ok=True)
    json_of(root, part).write_text(json.dumps(annotations))


def build(root, parts=("train", "val")):
    """Both files of annotations, as in their archive, and the images of some parts."""
    for part in ("train", "val"):
        write(root, part, content(part))
    for part in parts:
        folder = root / f"{part}2017"
        for id_ in IMAGES[part]:
            path = save(folder / f"{id_:012d}.jpg", photo(id_, HEIGHT, WIDTH))
            if id_ in {36, 42}:
                Image.fromarray(photo(id_, HEIGHT, WIDTH)).convert("L" if id_ == 36 else "CMYK").save(path)
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / "._000000000009.jpg").write_bytes(b"\0")
    return root
