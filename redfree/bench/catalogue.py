"""Names of the methods and their parameters; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field, JsonValue, model_validator

from redfree.tuners.catalogue import TUNERS
from redfree.tuners.fit_options import FitParams
from redfree.validation import Strict

GuardRule = Literal["one_standard_error", "k_fold", "split_half", "none"]

STRATEGY_OPTIONS: Mapping[str, frozenset[str]] = {
    "greedy": frozenset({"scored", "together", "patience", "budget"}),
    "shortlist": frozenset({"scored", "rounds"}),
    "racing": frozenset({"first_images", "keep", "growth", "finalists"}),
    "exhaustive": frozenset(),
}


class NoParams(Strict):
    """A method without parameters."""


class SwapParams(Strict):
    """Parameters of a searched swap.

    Attributes:
        strategy: how the pairs are found; `exhaustive` is the paper's.
        options: options of the strategy, such as {scored: 48} for greedy; see its class.
        guard: the acceptance rule, or none for the paper's rule, which always uses what the search chose.
        select_on: the split that chooses. `test` is the oracle control, which only measures leakage.
    """

    strategy: Literal["greedy", "shortlist", "racing", "exhaustive"] = "greedy"
    options: dict[str, int] = Field(default_factory=dict)
    guard: GuardRule = "one_standard_error"
    select_on: Literal["search", "test"] = "search"

    @model_validator(mode="after")
    def _strategy_has_options(self) -> SwapParams:
        known = STRATEGY_OPTIONS[self.strategy]
        for name, value in self.options.items():
            if name not in known:
                offered = ", ".join(sorted(known)) or "none"
                raise ValueError(f"strategy {self.strategy} has no option {name!r}; it has: {offered}")
            if value < (least := int(name != "patience")):
                raise ValueError(f"option {name} is {value}; give {least} or more")
        return self


class ZeroParams(Strict):
    """Parameters of the deactivation control, which scores every channel set to zero; see `SwapParams`.

    Attributes:
        subsets: climb among the subsets of the Top-N, or score all of them.
        guard: as for a swap.
        select_on: as for a swap.
    """

    subsets: Literal["climb", "all"] = "climb"
    guard: GuardRule = "one_standard_error"
    select_on: Literal["search", "test"] = "search"


class RandomSwapParams(Strict):
    """Parameters of the random control: how many pairs, and how many independent draws are averaged."""

    pairs: int = Field(default=5, ge=1)
    draws: int = Field(default=20, ge=1)


class TunerParams(Strict):
    """Parameters of a tuner.

    Attributes:
        options: of the tuner itself, such as {variant: original, rank: 8}.
        fit: how it is fitted.
        n_train: images of the train split; null for all of them, and without a meaning for search images.
        train_on: the train split, or the search images, for whoever has no others.
    """

    options: dict[str, JsonValue] = Field(default_factory=dict)
    fit: FitParams = FitParams()
    n_train: int | None = Field(default=None, ge=1)
    train_on: Literal["train", "search"] = "train"


class TunedSwapParams(Strict):
    """Parameters of a tuner and of the swap that is searched on the tuned model."""

    tuner: TunerParams = TunerParams()
    swap: SwapParams = SwapParams()


METHOD_PARAMS: Mapping[str, type[BaseModel]] = {
    "baseline": NoParams,
    "swap": SwapParams,
    "zero": ZeroParams,
    "random-swap": RandomSwapParams,
    **dict.fromkeys(TUNERS, TunerParams),
    **{f"{name}+swap": TunedSwapParams for name in TUNERS},
}
# Methods that choose a swap from images.
SEARCHING = frozenset({"swap", "zero", *(f"{name}+swap" for name in TUNERS)})
