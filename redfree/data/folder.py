"""The dataset adapter of the user's own images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from redfree.data.lazy import lazy_rows
from redfree.data.listing import by_stem, images_in, visible_files
from redfree.data.prompts import PromptRule, distance_transform
from redfree.data.reading import check_sizes, read_image, read_mask
from redfree.data.schema import SEGMENTATION, Sample, prompt_row
from redfree.data.splits import split_ids
from redfree.errors import UserError

_GIVEN = PromptRule("file")
_LAYOUTS = (
    "put NAME.jpg, NAME.png (mask) and NAME.txt (x,y) side by side, or use images/ and masks/ subfolders, "
    "or pass a .jsonl manifest"
)


@dataclass(frozen=True)
class Entry:
    """Where the parts of one sample are.

    Attributes:
        id: unique within its dataset.
        image: the image file.
        mask: the mask file.
        point: a file with x,y in its first line, or (x, y) itself, or None where a rule places the point.
        source: what names the point in messages: its file, or its manifest and line.
    """

    id: str
    image: Path
    mask: Path
    point: Path | tuple[float, float] | None
    source: str


class FolderDataset:
    """Images with masks, and optionally points, that lie in a folder or that a manifest names.

    Three layouts are told apart by what is there:

    * flat: `NAME.jpg` (or another image format), `NAME.png` as its mask and `NAME.txt` with `x,y`. The mask of a PNG
      image is `NAME_mask.png`.
    * subfolders: `images/`, `masks/` and optionally `points/`, with the same names.
    * manifest: a `.jsonl` file whose lines hold `image`, `mask` and optionally `id` and `point`, with paths relative
      to the manifest.

    Without any points the distance transform places them. Files of other kinds, and masks and points without an image,
    are ignored. Nothing is decoded until a row is read.
    """

    def __init__(self, root: Path, mask_threshold: int | None = None, n_search: int = 0) -> None:
        """Lists the files.

        Args:
            root: a folder or a `.jsonl` manifest.
            mask_threshold: the least mask value of the object, at least 1; None where masks hold 0 and one other value.
            n_search: number of images of the search split; the others are the test split.

        Raises:
            UserError: the folder is missing, holds no images, or an image lacks its mask or point; the manifest has a
                bad line; or an argument is out of range.
        """
        if mask_threshold is not None and mask_threshold < 1:
            raise UserError(f"--mask-threshold is {mask_threshold}; pass at least 1")
        if n_search < 0:
            raise UserError(f"--n-search is {n_search}; pass at least 0")
        self.root = root
        self.mask_threshold = mask_threshold
        self.n_search = n_search
        self.layout, entries = list_entries(root)
        self._entries = {entry.id: entry for entry in entries}
        self._has_points = entries[0].point is not None

    def __len__(self) -> int:
        """Number of images."""
        return len(self._entries)

    @property
    def ids(self) -> list[str]:
        """Ids in natural order (9 before 10), or in the manifest's order."""
        return list(self._entries)

    def load(self, split: str, count: int | None, seed: int) -> datasets.Dataset:
        """Returns the first `count` rows of a split, decoded when they are read.

        The rows read as `SEGMENTATION` rows. Unlike other datasets' test split, that of a folder depends on the seed,
        which divides the folder; rows come in shuffled order except in "all". `rows.select_columns("id")` reads the ids
        without decoding anything.

        Args:
            split: search, test, or all.
            count: number of rows; None or 0 for the whole split.
            seed: seed of the division into search and test.

        Raises:
            UserError: there is no such split, or it holds fewer rows. Reading a row raises it for defective files.
        """
        ids = self._split(split, seed)
        if count and count > len(ids):
            raise self._too_few(split, count, len(ids))
        chosen = ids[:count] if count else ids
        return lazy_rows(chosen, SEGMENTATION, lambda id_, _: _row(read_entry(self._entries[id_], self.mask_threshold)))

    def describe(self) -> dict[str, Any]:
        """Returns name, revision, source, licence, prompt rule, layout and mask threshold."""
        return {
            "name": f"folder/{self.root.resolve().name}",
            "revision": None,
            "source": "user's own images",
            "licence": None,
            "prompt_rule": "file" if self._has_points else "distance_transform",
            "layout": self.layout,
            "mask_threshold": self.mask_threshold,
        }

    def verify(self) -> list[str]:
        """Reads every sample and returns one line for each defective one."""
        defects = []
        for entry in self._entries.values():
            try:
                read_entry(entry, self.mask_threshold)
            except UserError as error:
                defects.append(str(error))
        return defects

    def _split(self, split: str, seed: int) -> list[str]:
        if split == "all":
            return self.ids
        if split not in ("search", "test"):
            raise UserError(f"{self.root}: a folder has no {split} split; ask for search, test or all")
        if self.n_search > len(self):
            raise self._too_few("search", self.n_search, self.n_search)
        search, test = split_ids(self._entries, self.n_search, seed)
        if split == "test" and not test:
            raise UserError(
                f"{self.root}: has {len(self)} images, all of them search images, none to test on; "
                f"pass --n-search N below {len(self)}"
            )
        return search if split == "search" else test

    def _too_few(self, split: str, asked: int, there: int) -> UserError:
        asks = f"{asked} {split} images asked for"
        if split == "search" and asked >= len(self):
            return UserError(f"{self.root}: has {len(self)} images, {asks}; pass --n-search N below {len(self)}")
        mend = f"pass --n-search {asked}" if split == "search" else f"ask for at most {there}"
        there_are = f"{len(self)} images" if split == "all" else f"{len(self)} images, {there} of them {split} images"
        return UserError(f"{self.root}: has {there_are}, {asks}; {mend}")


def read_entry(entry: Entry, mask_threshold: int | None) -> Sample:
    """Reads and checks one sample.

    Args:
        entry: where its parts are.
        mask_threshold: as of `read_mask`.

    Raises:
        UserError: a file is defective, mask and image differ in size, or the point is malformed or off the object.
    """
    image = read_image(entry.image)
    mask = read_mask(entry.mask, mask_threshold)
    check_sizes(entry.mask, mask, entry.image, image.shape[:2])
    if entry.point is None:
        return Sample(entry.id, image, mask, distance_transform(mask))
    point = _read_point(entry.point) if isinstance(entry.point, Path) else entry.point
    return Sample(entry.id, image, mask, _GIVEN.place(mask, entry.source, [point]))


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "id": sample.id,
        "image": Image.fromarray(sample.image),
        "mask": Image.fromarray(sample.mask.astype(np.uint8) * 255),
        "ignore": None,
        "prompt": prompt_row(sample.prompt),
    }


def read_points(path: Path) -> tuple[tuple[float, float], ...]:
    """Reads every point of a file, `x,y` in pixels on a line each; blank lines are skipped.

    Raises:
        UserError: the file holds no point, or a line is malformed.
    """
    lines = _lines_of(path)
    numbers = [number for number, line in enumerate(lines) if line] or [0]
    return tuple(_point_on(path, lines, number) for number in numbers)


def _read_point(path: Path) -> tuple[float, float]:
    return _point_on(path, _lines_of(path), 0)


def _lines_of(path: Path) -> list[str]:
    # Windows editors put a byte order mark before the first number.
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines] or [""]


def _point_on(path: Path, lines: list[str], number: int) -> tuple[float, float]:
    """The point on a line, by its number from 0."""
    try:
        x, y = (float(part) for part in lines[number].split(","))
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        which = f"line {number + 1}" if number else "the first line"
        raise UserError(f"{path}: {which} is {lines[number][:40]!r}; write the point as x,y in pixels, such as 120,85")
    return x, y


def list_entries(root: Path) -> tuple[str, list[Entry]]:
    """Lists the samples of a folder or manifest, in one of the layouts of `FolderDataset`.

    Args:
        root: a folder or a `.jsonl` manifest.

    Returns:
        Name of the layout, and the entries, of which there is at least one.

    Raises:
        UserError: there is no such folder, it holds no images, or a part of a sample is missing.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder or manifest; correct the path")
    if root.is_file():
        if root.suffix.lower() != ".jsonl":
            raise UserError(f"{root}: is neither a folder nor a .jsonl manifest; {_LAYOUTS}")
        layout, entries = "manifest", _manifest_entries(root)
    elif (root / "images").is_dir() and (root / "masks").is_dir():
        layout, entries = "subfolders", _subfolder_entries(root)
    else:
        layout, entries = "flat", _flat_entries(root)
    if not entries:
        raise UserError(f"{root}: holds no images; {_LAYOUTS}")
    check_points(entries)
    return layout, entries


def check_points(entries: list[Entry]) -> None:
    """Checks that points are given for all images or for none: the prompt rule is one of the whole dataset.

    Raises:
        UserError: some images lack their point.
    """
    without = [entry for entry in entries if entry.point is None]
    if 0 < len(without) < len(entries):
        raise UserError(f"{without[0].source}: the point is missing; add it, or remove the points of all images")


def _points_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return by_stem(path for path in visible_files(folder) if path.suffix.lower() == ".txt")


def _pair(images: dict[str, Path], masks: dict[str, Path], mask_folder: Path, point_folder: Path) -> list[Entry]:
    """Entries of images, given the image and mask files by stem of the image and where masks and points belong."""
    points = _points_in(point_folder)
    entries = []
    for stem, image in images.items():
        if stem not in masks:
            suffix = "_mask" if image.parent == mask_folder and image.suffix.lower() == ".png" else ""
            expected = mask_folder / f"{stem}{suffix}.png"
            raise UserError(f"{image}: has no mask; add {expected} or remove the image")
        source = points.get(stem, point_folder / f"{stem}.txt")
        entries.append(Entry(stem, image, masks[stem], points.get(stem), str(source)))
    return entries


def _subfolder_entries(root: Path) -> list[Entry]:
    images, masks = by_stem(images_in(root / "images")), by_stem(images_in(root / "masks"))
    return _pair(images, masks, root / "masks", root / "points")


def _flat_entries(root: Path) -> list[Entry]:
    files = images_in(root)
    png = by_stem(path for path in files if path.suffix.lower() == ".png")
    other = by_stem(path for path in files if path.suffix.lower() != ".png")
    png_images = _png_images(png, other)
    images = by_stem([*other.values(), *png_images.values()])
    masks = {stem: png[stem] for stem in other if stem in png}
    masks |= {stem: png[f"{stem}_mask"] for stem in png_images if f"{stem}_mask" in png}
    return _pair(images, masks, root, root)


def _png_images(png: dict[str, Path], other: dict[str, Path]) -> dict[str, Path]:
    """PNG files of a flat folder that are images, not masks."""
    free = {stem: path for stem, path in png.items() if stem not in other and not stem.endswith("_mask")}
    # A PNG without a partner is an image that lacks its mask where images are PNG, and a stray mask elsewhere.
    if other and not any(f"{stem}_mask" in png for stem in free):
        return {}
    return free


class _Line(BaseModel):
    """One line of a manifest; unknown fields are refused so that a misspelt one is not silently unused."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)

    id: str | None = None
    image: str
    mask: str
    point: tuple[float, float] | None = None


def _manifest_entries(manifest: Path) -> list[Entry]:
    """Entries of a manifest in its order; blank lines are skipped."""
    try:
        lines = manifest.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _line_entry(manifest, f"{manifest}:{number}", line)
        if entry.id in entries:
            raise UserError(f"{entry.source}: field id: {entry.id!r} is taken; give each line an id of its own")
        entries[entry.id] = entry
    return list(entries.values())


def _line_entry(manifest: Path, source: str, text: str) -> Entry:
    try:
        line = _Line.model_validate_json(text)
    except ValidationError as error:
        raise _line_error(source, error) from error
    image, mask = manifest.parent / line.image, manifest.parent / line.mask
    for field, path in (("image", image), ("mask", mask)):
        if not path.is_file():
            raise UserError(f"{source}: field {field}: no such file {path}; paths are relative to the manifest")
    return Entry(line.id if line.id is not None else image.stem, image, mask, line.point, source)


def _line_error(source: str, error: ValidationError) -> UserError:
    """The first problem of a line, by field where it has one."""
    problem = error.errors()[0]
    field = f"field {problem['loc'][0]}: " if problem["loc"] else ""
    form = '{"image": PATH, "mask": PATH}, optionally with "id" and "point": [x, y]'
    return UserError(f"{source}: {field}{problem['msg']}; write {form}")
