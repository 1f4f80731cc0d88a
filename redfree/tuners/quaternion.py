"""A linear layer over quaternions, with a quarter of the parameters of one over real numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QuaternionLinear(nn.Module):
    """Maps vectors of quaternions to vectors of as many, without bias: each output sums products weight * input.

    A vector (..., r) holds r / 4 quaternions: all real parts, then all parts of i, of j and of k (Parcollet et al.,
    2019). The real parts of the weights start at 0, the others are drawn from 0..1, as SAM-COBOT has it.

    Attributes:
        weight: (4, r / 4, r / 4), real parts and those of i, j, k of the weights from each input to each output.
    """

    def __init__(self, width: int) -> None:
        """Draws the weights of a layer for vectors of `width` numbers, a multiple of 4."""
        super().__init__()
        side = width // 4
        self.weight = nn.Parameter(torch.cat([torch.zeros(1, side, side), torch.rand(3, side, side)]))

    def matrix(self) -> Tensor:
        """The real matrix K (r, r) that makes a row vector u to u K, after the Hamilton product.

        With one quaternion q it satisfies K K^T = |q|^2 I: it turns and stretches.
        """
        r, i, j, k = self.weight.unbind(0)
        rows = ((r, i, j, k), (-i, r, k, -j), (-j, -k, r, i), (-k, j, -i, r))
        return torch.cat([torch.cat(row, dim=1) for row in rows])

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (..., r) of as many quaternions."""
        return vectors @ self.matrix()
