from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redfree.search.batching import MAX_BATCH, default_batch, in_batches

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
EXHAUSTED = [lambda: torch.OutOfMemoryError("CUDA out of memory."), lambda: RuntimeError(CPU_ERROR)]


class Machine:
    """Doubles items, as many at a time as its memory holds, and lists what it was asked."""

    def __init__(self, room, error):
        self.room, self.error, self.asked = room, error, []

    def __call__(self, part):
        self.asked.append(part.tolist())
        if len(part) > self.room:
            raise self.error()
        return 2 * part


@given(st.integers(1, 40), st.integers(1, 64), st.integers(1, 64), st.sampled_from(EXHAUSTED))
def test_every_item_is_computed_once_and_in_order(count, batch, room, error):
    machine = Machine(room, error)
    parts = in_batches(machine, torch.arange(count), batch)
    assert torch.cat(parts).tolist() == list(range(0, 2 * count, 2))
    assert [part.numel() for part in parts] == [len(a) for a in machine.asked if len(a) <= room]
    assert max(map(len, machine.asked)) == min(batch, count)


@pytest.mark.parametrize("error", EXHAUSTED)
def test_where_memory_runs_out_half_the_batch_is_tried_and_kept(error):
    machine = Machine(2, error)
    in_batches(machine, torch.arange(12), 8)
    assert [len(asked) for asked in machine.asked] == [8, 4, 2, 2, 2, 2, 2, 2]


def test_enough_memory_takes_whole_batches():
    machine = Machine(8, EXHAUSTED[0])
    in_batches(machine, torch.arange(20), 8)
    assert [len(asked) for asked in machine.asked] == [8, 8, 4]


def test_an_odd_batch_is_halved_down_to_one():
    machine = Machine(1, EXHAUSTED[1])
    assert len(in_batches(machine, torch.arange(5), 5)) == 5
    assert [len(asked) for asked in machine.asked] == [5, 2, 1, 1, 1, 1, 1]


def test_no_items_are_no_parts():
    assert in_batches(Machine(1, EXHAUSTED[0]), torch.zeros(0, 3), 4) == []


@pytest.mark.parametrize("error", EXHAUSTED)
def test_a_single_item_that_does_not_fit_is_an_error(error):
    machine = Machine(0, error)
    with pytest.raises(RuntimeError, match="memory"):
        in_batches(machine, torch.arange(4), 4)
    assert [len(asked) for asked in machine.asked] == [4, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("x"), KeyError("memory")])
def test_other_errors_pass_at_once(error):
    machine = Machine(0, lambda: error)
    with pytest.raises(type(error)) as raised:
        in_batches(machine, torch.arange(4), 4)
    assert raised.value is error
    assert len(machine.asked) == 1


@pytest.fixture
def machine_of(monkeypatch):
    """Sets the memory that is installed, with another amount free each time."""

    def install(total, available=1):
        memory = SimpleNamespace(total=total, available=available, free=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return install


SHAPES = [(1, 16, 4, 4), (1, 64, 8, 8), (1, 256, 32, 32), (1, 256, 64, 64), (1, 1280, 64, 64), (1, 4096, 128, 128)]


def meta(shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("gigabytes", [1, 2, 8, 64, 2048])
def test_the_default_batch_is_a_power_of_two_that_falls_with_the_size(machine_of, gigabytes):
    machine_of(gigabytes * 2**30)
    batches = [default_batch(meta(shape)) for shape in SHAPES]
    assert batches == sorted(batches, reverse=True)
    assert all(1 <= b <= MAX_BATCH == 64 and b & (b - 1) == 0 for b in batches)
    assert (batches[0], batches[-1]) == (64, 1)
    assert len(set(batches)) >= 3


@given(st.integers(1, 512), st.integers(1, 6), st.integers(1, 6))
def test_the_default_batch_is_monotone(channels, side, factor):
    small, large = (
        default_batch(meta((1, channels, side * 8, side * 8))),
        default_batch(meta((1, channels * factor, side * 8, side * 8))),
    )
    assert small >= large


def test_equal_machines_choose_equally_whatever_is_free(machine_of):
    chosen = set()
    for available in (2**20, 2**33):
        machine_of(2**34, available)
        chosen.add(tuple(default_batch(meta(shape)) for shape in SHAPES))
    assert len(chosen) == 1


def test_the_default_batch_depends_on_one_image_not_on_their_number(machine_of):
    machine_of(2**34)
    assert default_batch(meta((1, 256, 64, 64))) == default_batch(meta((500, 256, 64, 64)))


def test_less_memory_and_wider_numbers_mean_smaller_batches(machine_of):
    features, doubles = meta((1, 256, 16, 16)), meta((1, 256, 16, 16), torch.float64)
    machine_of(2**40)
    plenty = default_batch(features)
    assert default_batch(doubles) == plenty // 2
    machine_of(2**30)
    assert default_batch(features) < plenty
    machine_of(2**20)
    assert default_batch(features) == 1
