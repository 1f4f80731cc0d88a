"""The small layers of SAM-COBOT (Peng et al., CVPR 2024), whose scales are linked across the blocks of a model."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redfree.tuners.low_rank import LowRank
from redfree.tuners.quaternion import QuaternionLinear

# Of the authors' Adaptformer flavour.
_DROPOUT = 0.1


class Relation(nn.Module):
    """What all t adapted layers share: `FacT_c` and `FacT_p` of the authors.

    Attributes:
        coefficients: (r, t), a scale of each hidden number in each layer.
        matrix: (t, t), how much of each layer's scales goes into those of another.
    """

    def __init__(self, rank: int, layers: int) -> None:
        """Starts with every scale at 1, no layer linked to another."""
        super().__init__()
        self.coefficients = nn.Parameter(torch.ones(rank, layers))
        self.matrix = nn.Parameter(torch.eye(layers))

    def scales(self, layer: int) -> Tensor:
        """Scales (r,) of a layer."""
        return self.coefficients @ self.matrix[:, layer]


class Link(nn.Module):
    """What SAM-COBOT does between going down to r hidden numbers and up again: H((CP + gamma) * z).

    Attributes:
        gamma: (r,) scales of this layer alone.
        head: the quaternion layer H.
    """

    def __init__(self, relation: Relation, layer: int) -> None:
        """Links layer number `layer` of a relation."""
        super().__init__()
        rank = relation.coefficients.shape[0]
        self.relation, self.layer = relation, layer
        self.gamma = nn.Parameter(torch.ones(rank))
        self.head = QuaternionLinear(rank)

    def matrix(self) -> Tensor:
        """The matrix (r, r) that the column vector z is multiplied by: K^T diag(CP + gamma)."""
        return self.head.matrix().T * self._scales()

    def forward(self, hidden: Tensor) -> Tensor:
        """Linked hidden numbers (..., r)."""
        return cast(Tensor, self.head(self._scales() * hidden))

    def _scales(self) -> Tensor:
        return self.relation.scales(self.layer) + self.gamma


class LinkedLowRank(LowRank):
    """A low-rank change with a link between its factors, B H((CP + gamma) * A x), without a scale of its own.

    The authors' code draws A and B alike, so that the model changes before it has learnt anything; their paper does not
    say. Here B starts at 0, as LoRA's does.

    Attributes:
        link: what is between the factors.
    """

    def __init__(self, layer: nn.Linear, rows: slice, link: Link) -> None:
        """Draws A."""
        super().__init__(layer, rows, len(link.gamma))
        self.link = link.to(layer.weight)

    def product_with(self, tokens: Tensor) -> Tensor:
        """What the change adds for tokens (..., C)."""
        return F.linear(self.link(F.linear(tokens, self.A)), self.B)

    def folded(self, layer: nn.Linear) -> Tensor:
        """Weights (D, C) with which the rows of the layer alone give the same."""
        return layer.weight[self.rows] + self.B @ self.link.matrix() @ self.A


class LinkedAdapter(nn.Module):
    """Adaptformer's bottleneck with a layer norm before and a link within.

    Dropout is active where this module itself is in training mode.
    """

    def __init__(self, link: Link, width: int) -> None:
        """Draws the layer that goes down; the one that goes up starts at 0."""
        super().__init__()
        rank = len(link.gamma)
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, rank)  # torch draws its weight as the authors do
        self.link = link
        self.up = nn.Linear(rank, width)
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added to the output of an MLP for its input tokens (..., C)."""
        hidden = self.link(self.down(self.norm(tokens))).relu()
        return cast(Tensor, self.up(F.dropout(hidden, _DROPOUT, self.training)))


class AdaptedMlp(nn.Module):
    """An MLP with an adapter beside it.

    Attributes:
        mlp: the MLP.
        adapter: the adapter.
    """

    def __init__(self, mlp: nn.Module, adapter: LinkedAdapter) -> None:
        """Takes the place of an MLP, in its mode."""
        super().__init__()
        self.training = mlp.training
        self.mlp, self.adapter = mlp, adapter.train(mlp.training)

    def forward(self, tokens: Tensor) -> Tensor:
        """The sum of both."""
        return cast(Tensor, self.mlp(tokens) + self.adapter(tokens))
