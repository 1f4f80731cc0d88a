"""Conv-LoRA (Zhong et al. 2024): LoRA with a convolution at one of several scales between its two factors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.tuners.anatomy import anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, named, parameters_of, replace_modules
from redfree.tuners.low_rank import block_label, factors, tunable_qkv


class Options(TunerOptions):
    """What Conv-LoRA can be told. Its `original` variant also trains the mask decoder.

    Attributes:
        rank: channels between the factors.
        experts: convolutions to choose from; the n-th sees its map magnified n times.
    """

    rank: int = Field(default=3, ge=1)
    experts: int = Field(default=8, ge=1)


class Mixture(nn.Module):
    """Passes each map of a batch through one of several convolutions, chosen by a gate that sees the map's mean.

    The gate is that of Shazeer et al. 2017 for one expert: while the module trains, its scores bear normal noise of a
    learned width; the chosen expert has weight one. Theirs learns from a loss that balances the load of the experts,
    which is left out here, since a tuner has no loss of its own. Instead the weight of one carries the gradient of the
    chosen expert's share in the softmax of all scores: without it nothing would ever move the gate.
    """

    def __init__(self, channels: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, experts, bias=False)
        self.noise = nn.Linear(channels, experts, bias=False)
        nn.init.zeros_(self.noise.weight)
        self.experts = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(experts))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, r, H, W) after the expert that each has chosen."""
        shares = self._scores(maps.mean(dim=(2, 3))).softmax(dim=1)
        share, chosen = shares.max(dim=1)
        members = [(chosen == number).nonzero()[:, 0] for number in range(len(self.experts))]
        mixed = [self._scaled(number, maps[group]) for number, group in enumerate(members) if len(group)]
        in_order = torch.cat(mixed)[torch.cat(members).argsort()]
        return in_order * (share / share.detach())[:, None, None, None].to(in_order.dtype)

    def _scores(self, means: Tensor) -> Tensor:
        scores: Tensor = self.gate(means)
        return scores + torch.randn_like(scores) * F.softplus(self.noise(means)) if self.training else scores

    def _scaled(self, number: int, maps: Tensor) -> Tensor:
        size = maps.shape[2:]
        magnified = F.interpolate(maps, scale_factor=number + 1, mode="bilinear") if number else maps
        return F.interpolate(self.experts[number](magnified), size, mode="bilinear")


class ConvolvedLowRank(nn.Module):
    """What is added to all outputs of a fused projection: B (m + mixture(m)) for the map m = A x; at first zero.

    Attributes:
        A: (rank, C).
        B: (3 D, rank).
        mixture: the convolutions and their gate.
    """

    def __init__(self, layer: nn.Linear, options: Options) -> None:
        super().__init__()
        self.A, self.B = factors(layer.in_features, layer.out_features, options.rank, layer.weight)
        self.mixture = Mixture(options.rank, options.experts).to(layer.weight.device, layer.weight.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """The addition (B, H, W, 3 D) for tokens (B, H, W, C), each of the B, an image or a window, on its own."""
        maps = F.linear(tokens, self.A).movedim(-1, 1)
        return F.linear((maps + self.mixture(maps)).movedim(1, -1), self.B)


class ConvolvedQkv(nn.Module):
    """A fused projection (B, H, W, C) -> (B, H, W, 3 D) and what is added to it.

    Attributes:
        layer: the frozen projection.
        change: what is added.
    """

    def __init__(self, layer: nn.Linear, options: Options) -> None:
        super().__init__()
        self.layer, self.change = layer, ConvolvedLowRank(layer, options)
        self.train(layer.training)

    def forward(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values of tokens."""
        changed: Tensor = self.layer(tokens) + self.change(tokens)
        return changed


def attach(module: nn.Module, options: Options) -> Attachment:
    """Adds to queries, keys and values of every block; names are such as `blocks.3.qkv.mixture.experts.0.weight`.

    It is defined on models of `segment_anything`, and as it stands on `sam2`, whose blocks keep tokens in their rows
    and columns. It cannot be merged.

    Raises:
        UserError: the model is none of these.
    """
    anatomy = anatomy_of(module)
    if anatomy.decoder_name is None:
        raise UserError("conv-lora needs tokens in rows and columns: it is defined on segment_anything and sam2 alone")
    also = (anatomy.decoder_name,) if options.variant == "original" else ()
    tuned = {name: ConvolvedQkv(layer, options) for name, layer in tunable_qkv(anatomy).items()}
    inserted = named((f"{block_label(name)}.qkv", qkv.change) for name, qkv in tuned.items())
    return Attachment(anatomy, inserted, parameters_of(anatomy, also), replace_modules(anatomy.module, tuned))
