"""DoRA (Liu et al. 2024): LoRA on directions, and a length of its own for every row, of queries and values."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from redfree.tuners.anatomy import anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, parameters_of
from redfree.tuners.low_rank import LowRank, attach_low_rank


class Options(TunerOptions):
    """What DoRA can be told.

    Its authors have no version for SAM, so `original` is `paper` with the mask decoder, as other tuners of SAM train
    it. Neither they nor the swap paper name a rank or layers for SAM: those here are SAMed's.

    Attributes:
        rank: columns of B and rows of A.
    """

    rank: int = Field(default=4, ge=1)


class WeightDecomposed(LowRank):
    """Makes some rows of a weight m (W + BA) / ||W + BA||, each row with a norm of its own; the bias stays as it is.

    No gradient flows through the norm (section 4.3 of the paper; the authors' `dora_simple` and peft's only way).

    Attributes:
        magnitude: m (D,), at first the norms of the rows of W.
    """

    def __init__(self, layer: nn.Linear, rows: slice, rank: int) -> None:
        super().__init__(layer, rows, rank)
        # Through the same sum as ever after, so that the quotient is one, not nearly one, at the start.
        self.magnitude = nn.Parameter(self._norms(layer))

    def forward(self, tokens: Tensor, given: Tensor, layer: nn.Linear) -> Tensor:
        """What the rows give (..., D) after the change, from tokens (..., C) and what the layer gives there."""
        stretch = self.magnitude / self._norms(layer)
        weighted = given if layer.bias is None else given - layer.bias[self.rows]
        return (given + (stretch - 1) * weighted + stretch * self.product_with(tokens)).to(given.dtype)

    def folded(self, layer: nn.Linear) -> Tensor:
        """Weights (D, C) with which the rows of the layer alone give the same."""
        return (self.magnitude / self._norms(layer))[:, None] * super().folded(layer)

    @torch.no_grad()
    def _norms(self, layer: nn.Linear) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(super().folded(layer), dim=1)
        return norms


def attach(module: nn.Module, options: Options) -> Attachment:
    """Gives the queries and values of every block the decomposed weight; at first it is the frozen one.

    It is defined on models of `segment_anything`, `sam2` and timm's vision transformers.

    Raises:
        UserError: the model is none of these, or its blocks have no fused projection.
    """
    anatomy = anatomy_of(module)
    also = (anatomy.decoder_name,) if options.variant == "original" else ()
    return attach_low_rank(anatomy, partial(WeightDecomposed, rank=options.rank), parameters_of(anatomy, also), {})
