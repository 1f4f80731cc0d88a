"""Methods by name: what each one chooses from the search images alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from redfree.bench.catalogue import (
    NoParams,
    RandomSwapParams,
    SwapParams,
    TunedSwapParams,
    TunerParams,
    ZeroParams,
)
from redfree.channels import ChannelMap
from redfree.measure.phases import Stopwatch
from redfree.records.schema import Protocol
from redfree.search.base import Evaluator, Search, SearchResult
from redfree.search.exhaustive import ExhaustiveSearch
from redfree.search.greedy import GreedySearch
from redfree.search.guard import GuardVerdict, cross_validate
from redfree.search.racing import RacingSearch
from redfree.search.shortlist import ShortlistSearch
from redfree.tuners.catalogue import TUNERS


@dataclass(frozen=True)
class Choice:
    """What a method decided.

    Attributes:
        maps: the maps to evaluate; several only for random draws.
        searched: the search's result, before the guard.
        guard: the verdict, None without guard.
    """

    maps: tuple[ChannelMap, ...]
    searched: SearchResult | None = None
    guard: GuardVerdict | None = None


@dataclass(frozen=True)
class Situation:
    """All that a method may look at; never the test split, but for the oracle.

    Attributes:
        channels: channels of the features.
        evaluator: scores maps on the images that choose; None for methods that need none.
        protocol: the suite's protocol.
        seed: the cell's seed.
        stopwatch: measures the phases.
    """

    channels: int
    evaluator: Evaluator | None
    protocol: Protocol
    seed: int
    stopwatch: Stopwatch

    def choosing(self) -> Evaluator:
        """The evaluator, for a method that has one."""
        if self.evaluator is None:
            raise ValueError("the method needs search images")
        return self.evaluator


@dataclass(frozen=True)
class Method:
    """A registered method: its parameters and its decision."""

    params: type[BaseModel]
    choose: Callable[[Situation, Any], Choice]


def _baseline(situation: Situation, _params: NoParams) -> Choice:
    return Choice((ChannelMap(situation.channels),))


def build_search(params: SwapParams, protocol: Protocol, seed: int) -> Search:
    """The search that the parameters of a swap name."""
    pairs, semantics, options = protocol.n_pairs, protocol.semantics, params.options
    match params.strategy:
        case "greedy":
            return GreedySearch(pairs, **options)
        case "shortlist":
            return ShortlistSearch(pairs, semantics, **options)
        case "racing":
            return RacingSearch(pairs, semantics, **options, seed=seed)
        case "exhaustive":
            return ExhaustiveSearch(pairs, semantics)


def _searched(situation: Situation, search: Search, rule: str) -> Choice:
    evaluator, protocol = situation.choosing(), situation.protocol
    with situation.stopwatch.phase("search"):
        found = search(evaluator, range(len(evaluator)))
    if rule == "none":
        return Choice((found.channel_map,), found)
    with situation.stopwatch.phase("guard"):
        verdict = cross_validate(search, evaluator, protocol.folds, situation.seed, rule)
    chosen = found.channel_map if verdict.accepted else ChannelMap(situation.channels)
    return Choice((chosen,), found, verdict)


def _swap(situation: Situation, params: SwapParams) -> Choice:
    return _searched(situation, build_search(params, situation.protocol, situation.seed), params.guard)


def _zero(situation: Situation, params: ZeroParams) -> Choice:
    search = ExhaustiveSearch(situation.protocol.n_pairs, zero=True, climbs=params.subsets == "climb")
    return _searched(situation, search, params.guard)


def _random_swap(situation: Situation, params: RandomSwapParams) -> Choice:
    rng, channels = np.random.default_rng(situation.seed), situation.channels
    maps = []
    for _ in range(params.draws):
        sources = rng.choice(channels, params.pairs, replace=False)
        targets = [
            int(t) + (int(t) >= i) for i, t in zip(sources, rng.integers(channels - 1, size=len(sources)), strict=True)
        ]
        maps.append(ChannelMap.from_pairs(channels, zip(sources.tolist(), targets, strict=True)))
    return Choice(tuple(maps))


def _tuned(situation: Situation, _params: TunerParams) -> Choice:
    return Choice((ChannelMap(situation.channels),))


def _tuned_swap(situation: Situation, params: TunedSwapParams) -> Choice:
    return _swap(situation, params.swap)


METHODS: Mapping[str, Method] = {
    "baseline": Method(NoParams, _baseline),
    "swap": Method(SwapParams, _swap),
    "zero": Method(ZeroParams, _zero),
    "random-swap": Method(RandomSwapParams, _random_swap),
    **{name: Method(TunerParams, _tuned) for name in TUNERS},
    **{f"{name}+swap": Method(TunedSwapParams, _tuned_swap) for name in TUNERS},
}
