"""Kvasir-SEG: frames of several sizes with masks in noisy JPEG, one of them of two polyps, and the file of boxes."""

import json

from trees.paint import as_grey, disc, photo, save

TOP = "Kvasir-SEG"
# Height and width of each frame.
FRAMES = {
    "cju0qkwl35piu0993l0dewei2": (61, 83),
    "cju0qoxqj9q6s0835b43399p4": (96, 120),
    "cju0roawvklrq0799vmjorwfv": (72, 90),
    "cju1871y11d6r0799k6cw4yze": (64, 100),
    "cju2p91qir00k08350ddfif0w": (80, 80),
}
TWO_POLYPS = "cju0roawvklrq0799vmjorwfv"


def polyps(name):
    """All polyps of a frame, (H, W) bool."""
    seed, size = 10 * list(FRAMES).index(name), FRAMES[name]
    return disc(seed, *size) | disc(seed + 2, *size) if name == TWO_POLYPS else disc(seed, *size)


def build(root, top=TOP):
    boxes = {}
    for seed, (name, (height, width)) in enumerate(FRAMES.items()):
        save(root / top / "images" / f"{name}.jpg", photo(seed, height, width))
        mask = as_grey(polyps(name))[..., None].repeat(3, 2)
        save(root / top / "masks" / f"{name}.jpg", mask, quality=75)
        boxes[name] = {"height": height, "width": width, "bbox": []}
    (root / top / "kavsir_bboxes.json").write_text(json.dumps(boxes))
    (root / top / "images" / ".DS_Store").write_bytes(b"\0")
    (root / top / "images" / "._cju0qkwl35piu0993l0dewei2.jpg").write_bytes(b"\0")
    (root / "__MACOSX").mkdir()
    return root
