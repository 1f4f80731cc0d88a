from dataclasses import fields

import pytest
import yaml

from redfree.bench.catalogue import STRATEGY_OPTIONS, SwapParams
from redfree.bench.methods import build_search
from redfree.bench.suite import load_suite, plan
from redfree.errors import UserError
from redfree.records.schema import Protocol
from redfree.search.exhaustive import ExhaustiveSearch
from redfree.search.greedy import GreedySearch
from redfree.search.racing import RacingSearch
from redfree.search.shortlist import ShortlistSearch

STRATEGIES = {
    "greedy": GreedySearch,
    "shortlist": ShortlistSearch,
    "racing": RacingSearch,
    "exhaustive": ExhaustiveSearch,
}
OPTIONS = [(name, option) for name, options in STRATEGY_OPTIONS.items() for option in sorted(options)]


@pytest.fixture
def refusal(tmp_path):
    """The complaint about a swap with some parameters in a suite."""

    def complain(**params):
        path = tmp_path / "trial.yaml"
        methods = [{"name": "swap", "params": params}]
        suite = {"suite": "trial", "title": "A trial", "task": "segmentation", "seeds": [0], "methods": methods}
        path.write_text(yaml.safe_dump({**suite, "models": ["sam_nano"], "datasets": ["procedural/natural"]}))
        with pytest.raises(UserError) as raised:
            plan(load_suite(str(path)))
        message = str(raised.value)
        assert "\n" not in message
        return message

    return complain


def test_every_strategy_is_there():
    assert set(STRATEGY_OPTIONS) == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_options_are_the_numbers_of_the_strategy_s_class(name):
    numbers = {f.name for f in fields(STRATEGIES[name]) if str(f.type) in ("int", "int | None")}
    assert STRATEGY_OPTIONS[name] == numbers - {"n_pairs", "seed"}
    assert {f.name for f in fields(STRATEGIES[name])} - numbers <= {"semantics", "zero", "climbs"}, (
        "nothing else to set"
    )


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("option", ["n_pairs", "seed", "semantics", "zero", "nonsense"])
def test_an_unknown_option_is_one_line(refusal, name, option):
    message = refusal(strategy=name, options={option: 3})
    assert f"strategy {name} has no option {option!r}" in message
    assert all(known in message for known in STRATEGY_OPTIONS[name] or {"none"})


def test_an_option_of_another_strategy_is_one_line(refusal):
    assert "strategy shortlist has no option 'budget'" in refusal(strategy="shortlist", options={"budget": 3})


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_negative_value_is_one_line(refusal, name, option):
    message = refusal(strategy=name, options={option: -1})
    assert option in message
    assert "-1" in message


@pytest.mark.parametrize("value", [1.5, "many", None])
def test_a_value_that_is_no_whole_number_is_one_line(refusal, value):
    assert "budget" in refusal(strategy="greedy", options={"budget": value})


def test_an_unknown_strategy_is_one_line(refusal):
    message = refusal(strategy="gready")
    assert all(name in message for name in ("strategy", "greedy", "shortlist", "racing", "exhaustive"))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("semantics", ["simultaneous", "sequential"])
def test_each_strategy_is_built_with_its_options(name, semantics):
    options = {option: 3 + n for n, option in enumerate(sorted(STRATEGY_OPTIONS[name]))}
    search = build_search(SwapParams(strategy=name, options=options), Protocol(n_pairs=7, semantics=semantics), 11)
    assert type(search) is STRATEGIES[name]
    assert search.n_pairs == 7
    assert {option: getattr(search, option) for option in options} == options
    assert getattr(search, "semantics", semantics) == semantics
    assert getattr(search, "seed", 11) == 11
    assert getattr(search, "zero", False) is False


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_options_a_strategy_has_its_defaults(name):
    search, plain = build_search(SwapParams(strategy=name), Protocol(), 0), STRATEGIES[name]()
    assert all(getattr(search, option) == getattr(plain, option) for option in STRATEGY_OPTIONS[name])
