"""Tuners that add nothing: a part of the model's own parameters trains."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from redfree.errors import UserError
from redfree.tuners.anatomy import Anatomy
from redfree.tuners.base import Attachment


def free(anatomy: Anatomy, freed: Mapping[str, nn.Parameter]) -> Attachment:
    """An attachment that trains some of the model's own parameters, and is merged as it stands."""
    return Attachment(anatomy, {}, freed, unmount=_nothing, fold=_nothing)


def mask_decoder_of(anatomy: Anatomy, tuner: str) -> str:
    """The name of a model's mask decoder.

    Raises:
        UserError: the model gives tokens.
    """
    if anatomy.decoder_name is None:
        kind = type(anatomy.module).__name__
        raise UserError(f"{tuner}: {kind} has no mask decoder; use a model of segment_anything or sam2")
    return anatomy.decoder_name


def require_any(freed: Mapping[str, nn.Parameter], tuner: str, what: str) -> None:
    """Checks that a tuner finds what it trains.

    Raises:
        UserError: it finds none.
    """
    if not freed:
        raise UserError(f"{tuner}: the encoder has no {what}; use another tuner")


def _nothing() -> None:
    pass
