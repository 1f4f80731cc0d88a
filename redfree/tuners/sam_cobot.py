"""SAM-COBOT (Peng et al., CVPR 2024): parameter-efficient updates whose hidden numbers are linked across blocks.

A clean-room implementation: the authors' code has no licence. Beside it, these differ: the update starts at 0, and the
heads are quaternions, as the paper's counts want them, where one of its two code bases has plain matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, Literal

from pydantic import Field
from torch import nn

from redfree.errors import UserError
from redfree.tuners.anatomy import Anatomy, anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, named, parameters_of, replace_modules
from redfree.tuners.linked import AdaptedMlp, Link, LinkedAdapter, LinkedLowRank, Relation
from redfree.tuners.low_rank import attach_low_rank

_RANKS = {"lora": 4, "adapter": 16}


def _rank_of(options: dict[str, Any]) -> int:
    return _RANKS[options.get("flavour", "lora")]


class Options(TunerOptions):
    """Which of the methods that SAM-COBOT extends, and its size.

    `original` trains the mask decoder too; the prompt encoder is frozen, as in the authors' medical experiments.

    Attributes:
        flavour: `lora` updates queries and values of every block, and can be merged; `adapter` puts an Adaptformer
            beside every MLP, with a dropout of 0.1 in training. The swap paper does not say which it compares with; its
            scores are near those of LoRA.
        rank: hidden numbers of an update, a multiple of 4; by default 4 of `lora` and 16 of `adapter`.
    """

    flavour: Literal["lora", "adapter"] = "lora"
    rank: int = Field(default_factory=_rank_of, gt=0, multiple_of=4)


def attach(module: nn.Module, options: Options) -> Attachment:
    """Attaches SAM-COBOT to a model of `segment_anything`, `sam2` or timm's vision transformers.

    Raises:
        UserError: its encoder has no blocks with the layers that the flavour extends.
    """
    anatomy = anatomy_of(module)
    freed = parameters_of(anatomy, [anatomy.decoder_name] if options.variant == "original" else [])
    build = _attach_lora if options.flavour == "lora" else _attach_adapter
    return build(anatomy, freed, options.rank)


def _attach_lora(anatomy: Anatomy, freed: Mapping[str, nn.Parameter], rank: int) -> Attachment:
    relation, numbers = Relation(rank, 2 * len(anatomy.qkv)), count()

    def linked(layer: nn.Linear, rows: slice) -> LinkedLowRank:
        return LinkedLowRank(layer, rows, Link(relation, next(numbers)))

    return attach_low_rank(anatomy, linked, freed, {"relation": relation})


def _attach_adapter(anatomy: Anatomy, freed: Mapping[str, nn.Parameter], rank: int) -> Attachment:
    mlps = {
        f"{name}.mlp": mlp
        for name, block in anatomy.blocks.items()
        if isinstance(mlp := getattr(block, "mlp", None), nn.Module)
    }
    if not mlps:
        kind = type(anatomy.module).__name__
        raise UserError(
            f"sam-cobot: {kind} has no MLP in a block; use segment_anything, sam2 or timm's vision transformers"
        )
    relation = Relation(rank, len(mlps))
    adapters = [_adapter(relation, number, mlp) for number, mlp in enumerate(mlps.values())]
    adapted = {name: AdaptedMlp(mlp, adapter) for (name, mlp), adapter in zip(mlps.items(), adapters, strict=True)}
    groups = [(f"blocks.{number}", adapter) for number, adapter in enumerate(adapters)]
    unmount = replace_modules(anatomy.module, adapted)
    return Attachment(anatomy, named([("relation", relation), *groups]), freed, unmount)


def _adapter(relation: Relation, layer: int, mlp: nn.Module) -> LinkedAdapter:
    first = next(layer for layer in mlp.modules() if isinstance(layer, nn.Linear))
    return LinkedAdapter(Link(relation, layer), first.in_features).to(first.weight)
