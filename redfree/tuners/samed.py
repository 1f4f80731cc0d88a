"""SAMed (Zhang and Liu 2023): LoRA on the queries and values of every block of the encoder."""

from __future__ import annotations

from functools import partial

from pydantic import Field
from torch import nn

from redfree.tuners.anatomy import anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, parameters_of
from redfree.tuners.low_rank import LowRank, attach_low_rank


class Options(TunerOptions):
    """What SAMed can be told. Its `original` variant also trains the mask decoder and the prompt encoder.

    The decoder stays the model's own: SAMed's head of several classes takes no point prompts.

    Attributes:
        rank: columns of B and rows of A.
    """

    rank: int = Field(default=4, ge=1)


def attach(module: nn.Module, options: Options) -> Attachment:
    """Adds B_q A_q x to the queries and B_v A_v x to the values of tokens x, without a factor; B is zero at first.

    It is defined on models of `segment_anything`, `sam2` and timm's vision transformers.

    Raises:
        UserError: the model is none of these, or its blocks have no fused projection.
    """
    anatomy = anatomy_of(module)
    also = (anatomy.decoder_name, anatomy.prompt_encoder_name) if options.variant == "original" else ()
    return attach_low_rank(anatomy, partial(LowRank, rank=options.rank), parameters_of(anatomy, also), {})
