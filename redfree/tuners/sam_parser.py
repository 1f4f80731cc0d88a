"""SAM-PARSER (Peng et al., AAAI 2024): singular values of the neck's convolutions.

A convolution's weight, a row for each output channel, is W = U diag(s) V^T; U and V are frozen and s is trained, free
to become negative. In SAM these are the two convolutions of the neck, 512 numbers for every official size. SAM 2 has no
output convolution after its lateral ones: there it is the lateral convolution of the level that swaps act on, the
counterpart of SAM's first one, 256 numbers; the coarser level that is added to it stays as it is. The authors define
nothing for SAM 2.

`original` also trains the mask decoder, as the paper describes: 4,058,852 parameters in SAM. The released code frees
4,983,600: its condition `'vector_S' and 'neck' in name` is no more than `'neck' in name`, by the precedence of `in`, so
that U, V and the norms of the neck train too; and the prompt encoder is never frozen.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.tuners.anatomy import Anatomy, anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, parameters_of, replace_modules


class Options(TunerOptions):
    """Options of SAM-PARSER, which has none of its own."""


class SingularConv(nn.Module):
    """A convolution whose weight is composed of its singular vectors and trained singular values.

    Attributes:
        conv: the convolution, whose own weight is not used; its bias is, if it has one.
        singular_values: (r,) with r the lesser of the weight's rows and columns.
        left: U, (rows, r).
        right: V^T, (r, columns).
    """

    left: Tensor
    right: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Decomposes the weight of a convolution."""
        super().__init__()
        self.conv = conv
        # In double precision the vectors of nearly equal values, and with them trained values, mean the same anywhere.
        rows = conv.weight.detach().double().flatten(1)
        left, values, right = (part.to(conv.weight.dtype) for part in torch.linalg.svd(rows, full_matrices=False))
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.singular_values = nn.Parameter(values)

    def weight(self) -> Tensor:
        """The weight that the convolution computes with."""
        # Under autocast a product of rounded factors would be further from the weight than the rounded weight is.
        with torch.autocast(self.left.device.type, enabled=False):
            return ((self.left * self.singular_values) @ self.right).view_as(self.conv.weight)

    def forward(self, features: Tensor) -> Tensor:
        """One plain convolution of (B, C, H, W)."""
        return cast(Tensor, self.conv._conv_forward(features, self.weight(), self.conv.bias))


def attach(module: nn.Module, options: Options) -> Attachment:
    """Attaches SAM-PARSER.

    Raises:
        UserError: the model has no neck, or it has the tuner already.
    """
    anatomy = anatomy_of(module)
    layers = {name: SingularConv(_conv(anatomy, name)) for name in _names(anatomy)}
    restore = replace_modules(module, layers)

    def fold() -> None:
        for layer in layers.values():
            layer.conv.weight.copy_(layer.weight())
        restore()

    prefix = f"{anatomy.encoder_name}."
    inserted = {f"{name.removeprefix(prefix)}.singular_values": part.singular_values for name, part in layers.items()}
    freed = parameters_of(anatomy, [anatomy.decoder_name]) if options.variant == "original" else {}
    return Attachment(anatomy, inserted, freed, restore, fold)


def _names(anatomy: Anatomy) -> list[str]:
    neck = f"{anatomy.encoder_name}.neck"
    if anatomy.decoder_name == "mask_decoder":
        return [f"{neck}.0", f"{neck}.2"]
    if anatomy.decoder_name == "sam_mask_decoder":
        # The neck lists its convolutions from the coarsest level, and the encoder drops its `scalp` coarsest levels.
        encoder = cast(Any, anatomy.module.get_submodule(anatomy.encoder_name))
        return [f"{neck}.convs.{encoder.scalp}.conv"]
    kind = type(anatomy.module).__name__
    raise UserError(f"{kind}: sam-parser is defined on models with a neck; choose one of segment_anything or sam2")


def _conv(anatomy: Anatomy, name: str) -> nn.Conv2d:
    found = anatomy.module.get_submodule(name)
    if not isinstance(found, nn.Conv2d):
        kind = type(found).__name__
        raise UserError(f"{name}: sam-parser needs a plain convolution here, not {kind}; detach what is attached")
    return found
