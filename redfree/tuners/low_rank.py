"""Low-rank changes of the queries and values that an encoder's blocks make, which leave their keys alone.

The layers of `peft` are not used: each computes the product of the layer that it wraps itself, so that queries, keys
and values would need a layer and a product each, which need not round as the one product of the frozen model does; and
it merges into the weight of that layer, which for DoRA it replaces, not into rows of a fused one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.tuners.anatomy import Anatomy
from redfree.tuners.base import Attachment, named, replace_modules


def factors(inputs: int, outputs: int, rank: int, like: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """Factors A (rank, inputs), drawn as torch draws a linear layer, and B (outputs, rank), zero, of a LoRA product BA.

    Source: Hu et al. 2022, "LoRA", with the initialisation of its authors' code, which SAMed and peft share.
    """
    first = nn.Parameter(like.new_empty(rank, inputs))
    nn.init.kaiming_uniform_(first, a=math.sqrt(5))
    return first, nn.Parameter(like.new_zeros(outputs, rank))


class LowRank(nn.Module):
    """Adds BA to some rows of the weight of a linear layer, as LoRA with alpha = r does; at first it changes nothing.

    Attributes:
        rows: of the layer's outputs, those that change.
        A: (rank, C).
        B: (D, rank), for D rows.
    """

    def __init__(self, layer: nn.Linear, rows: slice, rank: int) -> None:
        super().__init__()
        self.rows = rows
        self.A, self.B = factors(layer.in_features, rows.stop - rows.start, rank, layer.weight)

    def forward(self, tokens: Tensor, given: Tensor, layer: nn.Linear) -> Tensor:
        """What the rows give (..., D) after the change, from tokens (..., C) and what the layer gives there."""
        return given + self.product_with(tokens)

    def product_with(self, tokens: Tensor) -> Tensor:
        """BA applied to tokens (..., C), without ever forming BA."""
        return F.linear(F.linear(tokens, self.A), self.B)

    def folded(self, layer: nn.Linear) -> Tensor:
        """Weights (D, C) with which the rows of the layer alone give the same."""
        return layer.weight[self.rows] + self.B @ self.A


# Makes the change of some rows of a layer, its queries or its values.
MakeChange = Callable[[nn.Linear, slice], LowRank]


class TunedQkv(nn.Module):
    """A fused projection (..., C) -> (..., 3 D), whose one product stays what it was, with queries and values changed.

    Attributes:
        layer: the frozen projection.
        q: the change of the queries, its first D outputs.
        v: that of the values, its last D.
    """

    def __init__(self, layer: nn.Linear, change: MakeChange) -> None:
        super().__init__()
        third = layer.out_features // 3
        self.layer = layer
        self.q = change(layer, slice(0, third))
        self.v = change(layer, slice(2 * third, 3 * third))
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The weight (3 D, C) with both changes; Eva-02 and BEiT in timm multiply by it and never call the layer."""
        _, keys, _ = self.layer.weight.chunk(3)
        return torch.cat([self.q.folded(self.layer), keys, self.v.folded(self.layer)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values (..., 3 D) of tokens (..., C)."""
        queries, keys, values = self.layer(tokens).chunk(3, dim=-1)
        return torch.cat([self.q(tokens, queries, self.layer), keys, self.v(tokens, values, self.layer)], dim=-1)


def tunable_qkv(anatomy: Anatomy) -> dict[str, nn.Linear]:
    """The fused projection of every block, by name in the model.

    Raises:
        UserError: there is no block, or a block has none.
    """
    if not anatomy.blocks:
        raise UserError("the encoder has no blocks with a linear attn.qkv to tune; choose a vision transformer")
    for name in anatomy.blocks:
        if f"{name}.attn.qkv" not in anatomy.qkv:
            raise UserError(f"{name} has no linear attn.qkv to tune; choose a model that has, without a tuner on it")
    return dict(anatomy.qkv)


def block_label(name: str) -> str:
    """The name of a block, such as `blocks.3`, from that of its projection in any model."""
    return name[name.rindex("blocks.") :].removesuffix(".attn.qkv")


def attach_low_rank(
    anatomy: Anatomy, change: MakeChange, freed: Mapping[str, nn.Parameter], shared: Mapping[str, nn.Module]
) -> Attachment:
    """Changes the queries and values of every block; inserted parameters have names such as `blocks.3.q.A`.

    Args:
        anatomy: the model.
        change: called for the queries of the first block, for its values, for the queries of the second, and so on.
        freed: the model's own parameters that train too.
        shared: by name, modules that changes of several blocks have in common.

    Raises:
        UserError: blocks of this model cannot be changed.
    """
    tuned = {name: TunedQkv(layer, change) for name, layer in tunable_qkv(anatomy).items()}
    changes = [(f"{block_label(name)}.{part}", getattr(qkv, part)) for name, qkv in tuned.items() for part in "qv"]
    inserted = named([*shared.items(), *changes])
    unmount = replace_modules(anatomy.module, tuned)

    def fold() -> None:
        for projection in tuned.values():
            projection.layer.weight.copy_(projection.weight)
        unmount()

    return Attachment(anatomy, inserted, freed, unmount, fold)
