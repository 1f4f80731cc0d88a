"""ChannelMap: which channel of the features each channel takes its values from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from redfree.errors import UserError
from redfree.files import write_text
from redfree.hooks import SwapAt, SwapOn, hook_sam, hook_sam2, hook_tokens

Pair = tuple[int, int]
SEMANTICS = ("simultaneous", "sequential")


@dataclass(frozen=True)
class ChannelMap:
    """An index vector f over the C channels of features X: X'[c] = X[f(c)], or 0 for a zeroed channel.

    A pair (i, j) means that channel i takes the values of channel j. The map is the paper's swap (section "Method"): it
    has no parameters and reads every j from the original features.

    Attributes:
        channels: number of channels C.
        pairs: (i, j) with i != j, ascending by i, at most one for each i.
        zeroed: channels set to zero, ascending (the paper's deactivation study, Table 1).
    """

    channels: int
    pairs: tuple[Pair, ...] = ()
    zeroed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks ranges and uniqueness.

        Raises:
            ValueError: an index is out of range, or a channel is written twice.
        """
        object.__setattr__(self, "pairs", tuple(sorted((int(i), int(j)) for i, j in self.pairs)))
        object.__setattr__(self, "zeroed", tuple(sorted(int(c) for c in self.zeroed)))
        if self.channels < 1:
            raise ValueError(f"a map needs at least 1 channel, not {self.channels}")
        for index in (*self.zeroed, *(c for pair in self.pairs for c in pair)):
            if not 0 <= index < self.channels:
                raise ValueError(f"channel {index} is outside 0..{self.channels - 1}")
        if any(i == j for i, j in self.pairs):
            raise ValueError("a pair must name two different channels")
        for first, second in pairwise(sorted((*self.zeroed, *(i for i, _ in self.pairs)))):
            if first == second:
                raise ValueError(f"channel {first} is written twice; give at most one pair for each channel")

    @classmethod
    def from_pairs(cls, channels: int, pairs: Iterable[Pair], semantics: str = "simultaneous") -> ChannelMap:
        """Builds the map of some pairs.

        Args:
            channels: number of channels C.
            pairs: (i, j) pairs, in the order in which sequential semantics applies them.
            semantics: "simultaneous" (the paper: every j is read from the original features) or "sequential" (the
                authors' release: each pair reads what the pairs before it have written).

        Returns:
            The equivalent simultaneous map; pairs that end as the identity are dropped.

        Raises:
            ValueError: an index is out of range, a channel is written twice, or the semantics are unknown.
        """
        pairs = tuple(pairs)
        plain = cls(channels, pairs)
        if semantics == "simultaneous":
            return plain
        if semantics != "sequential":
            raise ValueError(f"semantics {semantics!r} is not one of {', '.join(SEMANTICS)}")
        index = list(range(channels))
        for i, j in pairs:
            index[i] = index[j]
        return cls.from_index(index)

    @classmethod
    def from_index(cls, index: Sequence[int]) -> ChannelMap:
        """Builds the map of an index vector f, where -1 stands for a zeroed channel."""
        pairs = tuple((i, j) for i, j in enumerate(index) if j not in (i, -1))
        return cls(len(index), pairs, tuple(i for i, j in enumerate(index) if j == -1))

    @classmethod
    def zero(cls, channels: int, zeroed: Iterable[int]) -> ChannelMap:
        """Builds the map that sets some channels to zero and leaves the others."""
        return cls(channels, (), tuple(zeroed))

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return not self.pairs and not self.zeroed

    def index(self) -> list[int]:
        """The index vector f of length C; -1 where the channel is zeroed."""
        index = list(range(self.channels))
        for i, j in self.pairs:
            index[i] = j
        for c in self.zeroed:
            index[c] = -1
        return index

    def apply(self, features: Tensor, dim: int = 1) -> Tensor:
        """Returns mapped features; the argument itself where the map is the identity.

        Args:
            features: tensor with C entries along `dim`, such as (B, C, H, W).
            dim: the channel dimension.

        Raises:
            ValueError: the features have another number of channels.
        """
        if features.shape[dim] != self.channels:
            raise ValueError(f"features have {features.shape[dim]} channels, the swap is for {self.channels}")
        if self.is_identity:
            return features
        index = torch.tensor(self.index(), device=features.device)
        mapped = features.index_select(dim, index.clamp(min=0))
        return mapped.index_fill(dim, torch.nonzero(index < 0)[:, 0], 0) if self.zeroed else mapped

    def compose(self, first: ChannelMap) -> ChannelMap:
        """The map that equals applying `first`, then this one."""
        if first.channels != self.channels:
            raise ValueError(f"cannot compose maps of {self.channels} and {first.channels} channels")
        inner = first.index()
        return ChannelMap.from_index([-1 if f < 0 else inner[f] for f in self.index()])

    def attach(self, model: nn.Module, at: str | None = None, on: SwapOn = "both") -> Attachment:
        """Makes a live model decode mapped features, so that the official predictors give swapped masks.

        No parameter is touched. In a `segment_anything` model the map acts on the output of the `image_encoder`, in a
        `sam2` model on the `image_embed` that the decoder is given, also of an image that a predictor encoded before,
        and in a timm model on the tokens that `forward_features` gives.

        Args:
            model: a `Sam`, a `SAM2Base`, or a timm model that gives tokens.
            at: in a `sam2` model "image_embed" (default) or "before_no_mem_embed", in a timm model "after_norm"
                (default) or "before_norm".
            on: tokens of a timm model that are swapped; registers never are.

        Returns:
            A handle whose `detach()` restores the model; it is also a context manager.

        Raises:
            UserError: the model is of no such package, its features have another number of channels, or it has no such
                place.
        """
        if hasattr(model, "sam_mask_decoder"):
            return Attachment(hook_sam2(model, self, at or "image_embed"))
        if hasattr(model, "forward_features"):
            return Attachment(hook_tokens(model, self, on, cast(SwapAt, at or "after_norm")))
        if not isinstance(getattr(model, "image_encoder", None), nn.Module):
            raise UserError(
                f"{type(model).__name__} has no image_encoder; attach to a segment_anything, sam2 or timm model"
            )
        if at is not None:
            raise UserError(f"{type(model).__name__}: a swap acts on the encoder's output; leave out at={at!r}")
        return Attachment(hook_sam(model, self))

    def to_json(self) -> dict[str, Any]:
        """The map as plain JSON data."""
        return {"channels": self.channels, "pairs": [list(p) for p in self.pairs], "zeroed": list(self.zeroed)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ChannelMap:
        """Reads what `to_json` wrote; other keys are ignored.

        Raises:
            ValueError: a field is missing or of another kind, or the map is not valid.
        """
        try:
            channels, pairs = data["channels"], tuple((i, j) for i, j in data["pairs"])
            zeroed = tuple(data.get("zeroed", ()))
            for value in (channels, *zeroed, *(c for pair in pairs for c in pair)):
                if type(value) is not int:
                    raise TypeError(f"{value!r} is not an integer")
            return cls(channels, pairs, zeroed)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a channel map: {error}") from error

    def save(self, path: str | Path, **extra: object) -> None:
        """Writes the map as JSON, with any extra fields beside it."""
        write_text(Path(path), json.dumps({**self.to_json(), **extra}, indent=1, sort_keys=True) + "\n")


class Attachment:
    """A swap on a live model, until `detach()`."""

    def __init__(self, handle: RemovableHandle) -> None:
        """Wraps the hook that carries the swap."""
        self._handle = handle

    def detach(self) -> None:
        """Restores the model; calling it again does nothing."""
        self._handle.remove()

    def __enter__(self) -> Attachment:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Detaches."""
        self.detach()


def load_swap(path: str | Path) -> ChannelMap:
    """Reads a swap from a `swap.json`.

    Raises:
        UserError: the file is missing or holds no valid swap.
    """
    try:
        return ChannelMap.from_json(json.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a swap ({error})") from error
