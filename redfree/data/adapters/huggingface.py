"""Any dataset in the format of Hugging Face: of the hub, saved by its library, or as parquet files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets.data_files import SPLIT_KEYWORDS
from datasets.exceptions import DatasetGenerationError, DatasetsError
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from redfree.data.adapters.depth_maps import counted
from redfree.data.reading import read_image, read_indices, read_mask
from redfree.data.source import DepthTarget, Entry, SegmentationTarget, Target
from redfree.errors import UserError, unknown
from redfree.files import cache_folder
from redfree.validation import Strict

Task = Literal["segmentation", "depth", "classification"]
Split = Literal["train", "test"]
_DEFAULT_SPLITS: Mapping[Split, str] = {"train": "train", "test": "test"}
# Files by which its library knows a dataset that it saved.
_SAVED = ("dataset_dict.json", "state.json")
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*")
_KEYWORDS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
_SCRIPT = "scripts are no longer supported"


class Columns(Strict):
    """What a dataset calls its columns; those of other tasks do not matter.

    Attributes:
        image: the images.
        mask: the masks, for segmentation.
        depth: the depth maps, for depth.
        label: the classes 0..K-1, for classification.
        points: one point or a list of points, (x, y) in pixels, for segmentation; None without.
    """

    image: str = "image"
    mask: str = "mask"
    depth: str = "depth"
    label: str = "label"
    points: str | None = None

    def of(self, task: Task) -> dict[str, str]:
        """The columns of a task by the fields that name them."""
        target = {"segmentation": "mask", "depth": "depth", "classification": "label"}[task]
        columns = {"image": self.image, target: getattr(self, target)}
        return columns | {"points": self.points} if task == "segmentation" and self.points else columns


class HuggingFace:
    """Rows of a table, with columns of images and of targets that the options name.

    Where the root is a folder, it holds a dataset that was saved with `save_to_disk`, or the parquet files of one
    dataset, whose names or folders tell the split (`train-00000-of-00001.parquet`, `val/0.parquet`). Where there is no
    such folder, the dataset is downloaded from the hub. Parquet files and downloads are unpacked once, into the cache.

    Images and masks are files in the cells, or arrays. Depth is a 16-bit file, a file of floats or an array.
    """

    class Options(Strict):
        """What the columns and splits are called, and how targets are read.

        Attributes:
            path: OWNER/NAME of a dataset of the hub; "parquet" where the root is a folder.
            config: part of a dataset of the hub that has several; None for its only or default one.
            revision: branch, tag or commit of a dataset of the hub; None for its newest.
            task: what the targets are for.
            columns: what the dataset calls its columns.
            splits: the dataset's own names of what is trained and tested on; None where these are train and test, or
                where the dataset has one split, which then is not divided.
            mask_threshold: the least value of the object; None where masks hold 0 and one other value.
            mask_value: the one value of the object in a map of classes; None where masks have one object alone.
            units_per_metre: what depth maps hold at one metre, such as 1000 for millimetres.
        """

        path: str = Field(default="parquet", pattern=r"^(parquet|\w[\w.-]*/\w[\w.-]*)$")
        config: str | None = None
        revision: str | None = None
        task: Task = "segmentation"
        columns: Columns = Columns()
        splits: dict[Split, str] | None = Field(default=None, min_length=1)
        mask_threshold: int | None = Field(default=None, ge=1)
        mask_value: int | None = Field(default=None, ge=0)
        units_per_metre: float = Field(default=1.0, gt=0, allow_inf_nan=False)

        @model_validator(mode="after")
        def _consistent(self) -> HuggingFace.Options:
            if self.mask_threshold is not None and self.mask_value is not None:
                raise ValueError("mask_threshold and mask_value exclude each other; remove one of them")
            names = list((self.splits or {}).values())
            if len(set(names)) < len(names):
                raise ValueError(f"splits: {names[0]} is trained and tested on; name two splits")
            return self

    def __init__(self, root: Path, options: Options | None = None) -> None:
        """Remembers where the dataset is.

        Args:
            root: a folder; or a path that does not exist, for a dataset of the hub.
            options: names of the dataset, its splits and its columns.
        """
        self.root, self.options = root, options or self.Options()

    @property
    def task(self) -> Task:
        """What the targets are for."""
        return self.options.task

    @property
    def _name(self) -> str:
        return str(self.root) if self.root.exists() else self.options.path

    def entries(self) -> list[Entry]:
        """One sample a row, `SPLIT-NNNNNNN` with the dataset's own name of the split; see `Source.entries`.

        Raises:
            UserError: also where the dataset cannot be loaded, or has no such split or column.
        """
        return [
            Entry(f"{theirs}-{row:07d}", split=ours, key=(theirs, row))
            for theirs, ours in self._division().items()
            for row in range(len(self._tables[theirs]))
        ]

    def counts(self) -> Mapping[str, int]:
        """Empty: no counts are published of all datasets."""
        return {}

    def image(self, entry: Entry) -> NDArray[np.uint8]:
        """The image of a row."""
        with self._file(entry, "image") as path:
            return read_image(path)

    def target(self, entry: Entry) -> Target:
        """The truth of a row, of the options' task."""
        if self.task == "classification":
            return self._label(entry)
        if self.task == "depth":
            depth = self._depth(entry) / np.float32(self.options.units_per_metre)
            everywhere = slice(None)
            return DepthTarget(depth, counted(depth, everywhere, everywhere, np.inf))
        return SegmentationTarget(
            self._mask(entry), points=self._points(entry) if self.options.columns.points else None
        )

    def _division(self) -> dict[str, Split | None]:
        """The dataset's own splits that are used, and what they are to us."""
        there = self._loaded
        if self.options.splits is None and len(there) == 1:
            return dict.fromkeys(there)
        wanted = self.options.splits or _DEFAULT_SPLITS
        for name in wanted.values():
            if name not in there:
                known = ", ".join(there)
                raise UserError(
                    f"{self._name}: has no split {name!r}, but {known}; name its splits with the option splits, "
                    "such as {train: train, test: validation}"
                )
        return {theirs: ours for ours, theirs in wanted.items()}

    @cached_property
    def _tables(self) -> dict[str, datasets.Dataset]:
        """The splits that are used by the dataset's own names, with the columns of the task alone."""
        return {name: _undecoded(self._columns_of(self._loaded[name])) for name in self._division()}

    def _columns_of(self, table: datasets.Dataset) -> datasets.Dataset:
        columns = self.options.columns.of(self.task)
        for option, column in columns.items():
            if column not in table.column_names:
                error = unknown("column", column, table.column_names)
                raise UserError(f"{self._name}: option columns.{option}: {error}")
        return table.select_columns(list(columns.values()))

    @cached_property
    def _loaded(self) -> dict[str, datasets.Dataset]:
        """All splits by the dataset's own names."""
        try:
            loaded = self._from_folder() if self.root.exists() else self._from_hub()
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise self._not_loaded(error) from error
        if isinstance(loaded, datasets.Dataset):
            # Saved without splits.
            return {str(loaded.split or "all"): loaded}
        return {str(name): table for name, table in loaded.items()}

    def _from_folder(self) -> datasets.DatasetDict | datasets.Dataset:
        if any((self.root / name).is_file() for name in _SAVED):
            return datasets.load_from_disk(str(self.root))
        return datasets.load_dataset("parquet", data_files=_parquet_files(self.root), cache_dir=_cache())

    def _from_hub(self) -> datasets.DatasetDict:
        options = self.options
        if options.path == "parquet":
            raise UserError(f"{self.root}: no such folder; correct it, or name one of the hub with the option path")
        # The library would take a folder of this name, relative to the one we are in, for the dataset.
        if Path(options.path).exists():
            raise UserError(f"{options.path}: is a folder here too; take it as the root, or work in another folder")
        return datasets.load_dataset(options.path, options.config, revision=options.revision, cache_dir=_cache())

    def _not_loaded(self, error: Exception) -> UserError:
        # This error says no more than that it occurred.
        told = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        reason = " ".join(str(told).split())
        if _SCRIPT in reason:
            mend = "take a copy of it that is stored as parquet files"
            return UserError(f"{self._name}: is a script, which datasets no longer runs; {mend}")
        there = self.root.exists()
        mend = "restore the files" if there else "correct the option path, or download it where there is a network"
        return UserError(f"{self._name}: cannot be loaded ({reason.rstrip('.')}); {mend}")

    def _cell(self, entry: Entry, option: str) -> tuple[str, Any]:
        """What a cell holds, and its name for messages."""
        split, row = entry.key
        column = self.options.columns.of(self.task)[option]
        name = f"{self._name}: {entry.id}: column {column}"
        value = self._tables[split].select_columns([column])[row][column]
        if value is None:
            raise UserError(f"{name}: is empty; remove the row")
        return name, value

    @contextmanager
    def _file(self, entry: Entry, option: str) -> Iterator[Path]:
        """The contents of a cell as a file, whose errors name the cell."""
        name, cell = self._cell(entry, option)
        with tempfile.NamedTemporaryFile() as file:
            path = Path(file.name)
            file.write(_contents(cell, name))
            file.flush()
            try:
                yield path
            except UserError as error:
                raise UserError(str(error).replace(str(path), name)) from error

    def _mask(self, entry: Entry) -> NDArray[np.bool_]:
        with self._file(entry, "mask") as path:
            if self.options.mask_value is None:
                return read_mask(path, self.options.mask_threshold)
            values = read_indices(path)
            mask = np.asarray(values == self.options.mask_value)
            if not mask.any():
                there = ", ".join(str(value) for value in np.unique(values)[:10])
                raise UserError(f"{path}: no pixel is {self.options.mask_value}, but {there}; correct mask_value")
            return mask

    def _points(self, entry: Entry) -> tuple[tuple[float, float], ...]:
        name, cell = self._cell(entry, "points")
        with suppress(ValueError, TypeError):
            points = np.asarray(cell, np.float64)
            if points.size and points.shape[-1] == 2 and points.ndim <= 2 and np.isfinite(points).all():
                return tuple((float(x), float(y)) for x, y in points.reshape(-1, 2))
        raise UserError(f"{name}: is {str(cell)[:40]}; store a point as [x, y] in pixels, or a list of points")

    def _depth(self, entry: Entry) -> NDArray[np.float32]:
        """(H, W) as stored, 0 where there is no finite value."""
        with self._file(entry, "depth") as path:
            # What Pillow cannot read here is refused with a reason by the reader of whole numbers.
            values: NDArray[Any] | None = None
            with suppress(Exception), Image.open(path) as image:
                values = np.asarray(image) if image.mode == "F" else None
            found = (read_indices(path) if values is None else values).astype(np.float32)
        return np.where(np.isfinite(found), found, np.float32(0))

    def _label(self, entry: Entry) -> int:
        name, cell = self._cell(entry, "label")
        if isinstance(cell, bool) or not isinstance(cell, int) or cell < 0:
            raise UserError(f"{name}: is {cell!r}; store classes as whole numbers from 0")
        return cell


def _cache() -> str:
    return str(cache_folder() / "huggingface")


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """Parquet files of each split."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.parquet"))]
    splits = {path: _split_of(path) for path in files if not any(part.startswith((".", "__")) for part in path.parts)}
    if not splits:
        raise UserError(f"{folder}: holds no parquet files and no saved dataset; name a folder that does")
    found: dict[str, list[str]] = {}
    for path, split in splits.items():
        if split is None and any(splits.values()):
            raise UserError(f"{folder / path}: is of no split, as others are; name it after one, such as train.parquet")
        found.setdefault(split or "train", []).append(str(folder / path))
    return found


def _split_of(path: Path) -> str | None:
    """The split that a file's name or folders tell, in the way of the hub: val is validation."""
    if shard := _SHARD.fullmatch(path.stem):
        return shard[1]
    for part in (*reversed(path.parent.parts), path.stem):
        for word in re.split(r"[-._ 0-9]+", part):
            if word in _KEYWORDS:
                return _KEYWORDS[word]
    return None


def _undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """The table with images left as they are stored."""
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


def _contents(cell: object, name: str) -> bytes:
    """The bytes of an image file that a cell holds, names, or is an array of."""
    match cell:
        case bytes():
            return cell
        case {"bytes": bytes() as contents}:
            return contents
        case {"path": str() as path} if Path(path).is_file():
            return Path(path).read_bytes()
        case list():
            with suppress(ValueError, TypeError):
                return _encoded(np.asarray(cell))
    raise UserError(f"{name}: holds no image; name a column of image files or arrays")


def _encoded(array: NDArray[Any]) -> bytes:
    """An array as an image file that holds the same values, in 8 bits where these are enough."""
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    contents: bytes = datasets.Image().encode_example(array)["bytes"]
    return contents
