"""What a tuner leaves on a live model: parameters that it added and freed, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.tuners.anatomy import Anatomy
from redfree.validation import Strict

State = Mapping[str, Tensor]


class TunerOptions(Strict):
    """What every tuner can be told.

    Attributes:
        variant: `paper` trains as the swap paper counts: what the tuner adds, with the decoder frozen. `original`
            trains all that the tuner's own authors train.
    """

    variant: Literal["paper", "original"] = "paper"


@dataclass(frozen=True)
class Attachment:
    """A tuner on a live model, which computes with it until it is detached or merged.

    Attributes:
        anatomy: the parts of the model.
        inserted: parameters that the tuner added, by names of its own that stay the same from run to run.
        freed: the model's own parameters that the method trains, by their names in the model.
        unmount: puts back the modules and hooks as they were.
        fold: writes what was inserted into the model's own weights, then unmounts; None where that is not exact.
        originals: values of the freed parameters before training.
    """

    anatomy: Anatomy
    inserted: Mapping[str, nn.Parameter]
    freed: Mapping[str, nn.Parameter]
    unmount: Callable[[], None]
    fold: Callable[[], None] | None = None
    originals: State = field(init=False)

    def __post_init__(self) -> None:
        """Keeps what training will overwrite, and lets gradients reach what trains, and nothing else."""
        object.__setattr__(self, "originals", {name: value.detach().clone() for name, value in self.freed.items()})
        self.anatomy.module.requires_grad_(False)
        for parameter in self.trained().values():
            parameter.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimiser moves: inserted and freed, but for what a single mask does not depend on.

        Adam would move parameters without a gradient by its weight decay alone.
        """
        unused = self.anatomy.unused_by_single_mask()
        return {**self.inserted, **{name: value for name, value in self.freed.items() if name not in unused}}

    @property
    def inserted_count(self) -> int:
        """Number of parameters that the tuner added."""
        return sum(value.numel() for value in self.inserted.values())

    @property
    def declared_count(self) -> int:
        """Number of parameters that the method trains by its authors' account, with or without a gradient."""
        return self.inserted_count + sum(value.numel() for value in self.freed.values())

    @property
    def trained_count(self) -> int:
        """Number of parameters that the optimiser moves."""
        return sum(value.numel() for value in self.trained().values())

    def state(self) -> dict[str, Tensor]:
        """Values of all that trains, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.trained().items()}

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Takes over values that `state` gave.

        Raises:
            UserError: names or shapes are others than those of this tuner on this model.
        """
        trained = self.trained()
        wrong = sorted(trained.keys() ^ state.keys())
        wrong += sorted(name for name in trained.keys() & state.keys() if trained[name].shape != state[name].shape)
        if wrong:
            raise UserError(f"{len(wrong)} tensors are not those of this tuner on this model, such as {wrong[0]}")
        for name, value in trained.items():
            value.copy_(state[name])

    def _end(self) -> None:
        if "ended" in vars(self):
            raise ValueError("the tuner is on its model no more: it was detached or merged")
        object.__setattr__(self, "ended", True)

    @torch.no_grad()
    def detach(self) -> None:
        """Restores the model bit for bit.

        Raises:
            ValueError: the tuner was detached or merged before.
        """
        self._end()
        self.unmount()
        for name, value in self.freed.items():
            value.copy_(self.originals[name])
        self.anatomy.module.requires_grad_(False)

    @torch.no_grad()
    def merge(self) -> None:
        """Makes the tuned model a plain one of the same architecture, which computes the same to 1e-5.

        Raises:
            UserError: what was inserted is not expressed by the model's own weights.
            ValueError: the tuner was detached or merged before.
        """
        if self.fold is None:
            raise UserError("this tuner cannot be merged: what it adds is not expressed by the model's own weights")
        self._end()
        self.fold()
        self.anatomy.module.requires_grad_(False)


def replace_modules(root: nn.Module, replacements: Mapping[str, nn.Module]) -> Callable[[], None]:
    """Puts modules in the place of others, by name; returns what puts the others back."""
    originals = {name: root.get_submodule(name) for name in replacements}

    def put(modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, module)

    put(replacements)
    return lambda: put(originals)


def named(groups: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Parameter]:
    """Parameters of some modules, by the modules' names and their own; each parameter once."""
    found = {f"{prefix}.{name}": value for prefix, module in groups for name, value in module.named_parameters()}
    first = {id(value): name for name, value in reversed(found.items())}
    return {name: value for name, value in found.items() if first[id(value)] == name}


def parameters_of(anatomy: Anatomy, parts: Iterable[str | None]) -> dict[str, nn.Parameter]:
    """The model's own parameters below some parts."""
    return {k: v for part in parts if part is not None for k, v in anatomy.parameters_of(part).items()}
