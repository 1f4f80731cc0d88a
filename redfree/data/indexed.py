"""A dataset in its owner's layout, from its source: splits, prompts, lazy rows, description and verification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue

from redfree.data.about import About
from redfree.data.division import Division, DivisionOptions, divide
from redfree.data.duplicates import PerceptualHash, near_duplicates, perceptual_hash
from redfree.data.lazy import lazy_rows
from redfree.data.prompts import DEFAULT_RULE, PromptRule
from redfree.data.schema import TASKS, prompt_row
from redfree.data.source import DepthTarget, Entry, SegmentationTarget, Source, Target
from redfree.errors import UserError
from redfree.progress import track

# To be raised with any change of how files become samples.
REVISION = "1"
# Below so many pixels different images look alike to a perceptual hash: two handwritten ones, of 8 by 8.
_LEAST_SIDE = 16
_OWNERS_DIVISION = DivisionOptions()


@dataclass(frozen=True)
class IndexedDataset:
    """A dataset adapter over a source.

    Attributes:
        name: name in records.
        about: the facts of the dataset.
        source: where its samples are.
        division: how it is divided.
        prompt: where prompts are placed; of no meaning to depth and classification.
        options: options of the source, for the description.
    """

    name: str
    about: About
    source: Source
    division: DivisionOptions = _OWNERS_DIVISION
    prompt: PromptRule = DEFAULT_RULE
    options: Mapping[str, JsonValue] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; it lists the files anew, as rows are pickled with every split of them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """All samples by id.

        Raises:
            UserError: there is none, two have the same id, or the layout is not the owner's.
        """
        listed = self.source.entries()
        if not listed:
            raise UserError(
                f"{self.name}: holds no samples; see `redfree fetch {self.about.name}` for what is expected"
            )
        entries = {entry.id: entry for entry in listed}
        if len(entries) < len(listed):
            raise UserError(f"{self.name}: two samples have the same id; remove one of the copies")
        return entries

    @cached_property
    def _division(self) -> Division:
        return divide(self.about.name, list(self.entries.values()), self.division)

    def ids(self, split: str, count: int | None, seed: int) -> list[str]:
        """Ids of a split, without reading anything; arguments as of `load`."""
        return self._division.draw(split, count, seed)

    def load(self, split: str, count: int | None, seed: int) -> datasets.Dataset:
        """Returns rows of a split, read when they are asked for; see `DatasetAdapter.load`.

        Search and train samples come from the owner's training samples alone and are disjoint for one seed. A smaller
        count takes the first samples of the same order.
        """
        return lazy_rows(self.ids(split, count, seed), TASKS[self.about.task][0], self._row)

    def describe(self) -> dict[str, Any]:
        """Returns name, revision, source, licence, terms, citation, encoding, prompt rule and options."""
        about = self.about
        published = {name: getattr(about, name) for name in ("licence", "terms", "citation", "encoding", "splits")}
        options = {**self.options, **self.division.model_dump(mode="json", exclude_none=True)}
        return {
            "name": self.name,
            "revision": REVISION,
            "source": about.page or about.title,
            "prompt_rule": self.prompt.name if about.task == "segmentation" else None,
            "options": options,
            "division": self._division.rule,
            "overlap": dict(self._division.overlap),
            **published,
        }

    def verify(self) -> list[str]:
        """Reads everything, behind a progress bar.

        Returns:
            One line for each difference from the owner's counts, each sample that is defective, and each pair of
            near-duplicate images of which one is trained or chosen on and the other tested on; images of fewer than 16
            pixels a side are not compared.
        """
        hashes: dict[str, PerceptualHash] = {}
        defects = list(self._miscounts())
        images = self._by_image()
        for entries in track(images, len(images), f"verify {self.name}"):
            defects += self._defects(entries, hashes)
        try:
            return defects + self._straddling(hashes)
        except UserError as error:  # the images may not be those of the committed list
            return [*defects, str(error)]

    def _miscounts(self) -> Iterator[str]:
        found, doubt = self.source.counts(), "" if self.about.confirmed else " (a figure that is not confirmed)"
        for part, published in self.about.splits.items():
            if (there := found.get(part, 0)) != published:
                yield f"{self.name}: {part}: {there} images, {published} are published{doubt}; unpack the archive anew"

    def _by_image(self) -> list[list[Entry]]:
        """Entries that share an image, together."""
        found: dict[object, list[Entry]] = {}
        for entry in self.entries.values():
            found.setdefault(entry.files[0] if entry.files else entry.id, []).append(entry)
        return list(found.values())

    def _defects(self, entries: Sequence[Entry], hashes: dict[str, PerceptualHash]) -> list[str]:
        defects = []
        try:
            image = self.source.image(entries[0])
        except UserError as error:
            return [str(error)]
        if min(image.shape[:2]) >= _LEAST_SIDE:
            hashes[entries[0].id] = perceptual_hash(image)
        for entry in entries:
            try:
                target = self.source.target(entry)
                require_size(entry, image, target)
                self._prompt(entry, target)
            except UserError as error:
                defects.append(str(error))
        return defects

    def _straddling(self, hashes: Mapping[str, PerceptualHash]) -> list[str]:
        train, test = set(self._division.pools.train), set(self._division.pools.test)
        pairs = [pair for pair in near_duplicates(hashes) if train & set(pair) and test & set(pair)]
        return [
            f"{self.name}: {a} and {b} show the same, one of them in the test split; name the group, or report it"
            for a, b in pairs
        ]

    def _prompt(self, entry: Entry, target: Target) -> dict[str, Any]:
        """Columns of a prompt; none for other tasks than segmentation."""
        if not isinstance(target, SegmentationTarget):
            return {}
        return {"prompt": prompt_row(self.prompt.place(target.mask, entry.id, target.points))}

    def _row(self, id_: str, columns: frozenset[str]) -> dict[str, Any]:
        """The columns asked for, and perhaps more."""
        entry, row = self.entries[id_], dict[str, Any](id=id_)
        image = self.source.image(entry) if "image" in columns else None
        if image is not None:
            row["image"] = Image.fromarray(image)
        if columns <= {"id", "image"}:
            return row
        target = self.source.target(entry)
        if image is not None:
            require_size(entry, image, target)
        return {**row, **target_columns(target), **self._prompt(entry, target)}


def target_columns(target: Target) -> dict[str, Any]:
    """The columns of a target but for the prompt."""
    if isinstance(target, SegmentationTarget):
        ignore = None if target.ignore is None else _black_and_white(target.ignore)
        return {"mask": _black_and_white(target.mask), "ignore": ignore}
    if isinstance(target, DepthTarget):
        return {"depth": Image.fromarray(target.depth), "valid": _black_and_white(target.valid)}
    return {"label": target}


def _black_and_white(values: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8) * 255)


def require_size(entry: Entry, image: NDArray[np.uint8], target: Target) -> None:
    """Refuses a target of another size than its image.

    Raises:
        UserError: the sizes differ; the message names the file of the target, or the sample.
    """
    if isinstance(target, int):
        return
    values = target.mask if isinstance(target, SegmentationTarget) else target.depth
    if values.shape != image.shape[:2]:
        where = entry.files[-1] if entry.files else Path(entry.id)
        raise UserError(
            f"{where}: is {values.shape[1]}x{values.shape[0]} but its image is {image.shape[1]}x{image.shape[0]}; "
            "restore the owner's file"
        )
