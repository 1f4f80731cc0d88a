"""Names of the methods and their parameters; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

from redfree.records.schema import Strict


class NoParams(Strict):
    """A method without parameters."""


class SwapParams(Strict):
    """Parameters of a searched swap.

    Attributes:
        guard: the acceptance rule, or none for the paper's rule, which always uses what the search chose.
        select_on: the split that chooses. `test` is the oracle control, which only measures leakage.
    """

    guard: Literal["one_standard_error", "none"] = "one_standard_error"
    select_on: Literal["search", "test"] = "search"


class RandomSwapParams(Strict):
    """Parameters of the random control: how many pairs, and how many independent draws are averaged."""

    pairs: int = Field(default=5, ge=1)
    draws: int = Field(default=20, ge=1)


METHOD_PARAMS: Mapping[str, type[BaseModel]] = {
    "baseline": NoParams,
    "swap": SwapParams,
    "zero": SwapParams,
    "random-swap": RandomSwapParams,
}
