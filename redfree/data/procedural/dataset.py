"""The dataset adapter of the procedural domains."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import datasets

from redfree.data.procedural.scenes import DOMAINS, draw
from redfree.data.prompts import DEFAULT_RULE, PromptRule
from redfree.data.schema import Sample, encode_rows
from redfree.errors import UserError, unknown

SIZE = 128
REVISION = "1"
_SPLITS = ("search", "train", "validation", "test")


def sample(domain: str, split: str, index: int, seed: int, prompt: PromptRule = DEFAULT_RULE) -> Sample:
    """Scene `index` of a stream, with its largest visible object as the target."""
    scene = draw(domain, split, index, seed, SIZE)
    mask = scene.masks[int(scene.masks.sum((1, 2)).argmax())]
    id_ = f"{domain}-{split}-{seed}-{index:05d}"
    return Sample(id_, scene.image, mask, prompt.place(mask, id_))


@lru_cache(maxsize=8)
def _rows(domain: str, split: str, count: int, seed: int, prompt: PromptRule) -> datasets.Dataset:
    return encode_rows([sample(domain, split, index, seed, prompt) for index in range(count)])


class ProceduralDataset:
    """One procedural domain.

    Every (domain, split, seed) is a stream of its own; the test split is the stream of seed 0 whatever the seed of the
    run, so that methods and seeds are compared on the same images.
    """

    def __init__(self, domain: str, prompt: PromptRule = DEFAULT_RULE) -> None:
        """Chooses the domain, and where prompts are placed.

        Raises:
            UserError: there is no such domain.
        """
        if domain not in DOMAINS:
            raise unknown("procedural domain", domain, DOMAINS)
        self.domain, self.prompt = domain, prompt

    def load(self, split: str, count: int | None, seed: int) -> datasets.Dataset:
        """Returns the first `count` scenes of a stream, as `DatasetAdapter.load`."""
        if split not in _SPLITS:
            raise unknown("split", split, _SPLITS)
        if count is None:
            raise UserError(f"procedural/{self.domain}: a stream of scenes has no end; ask for a number of them")
        return _rows(self.domain, split, count, 0 if split == "test" else seed, self.prompt)

    def describe(self) -> dict[str, Any]:
        """Returns name, revision, source, licence and prompt rule."""
        return {
            "name": f"procedural/{self.domain}",
            "revision": REVISION,
            "source": "procedural: drawn by redfree, not photographs",
            "licence": "Apache-2.0",
            "prompt_rule": self.prompt.name,
        }

    def verify(self) -> list[str]:
        """Nothing on disk can be defective."""
        return []
