"""Encoder-only: the whole image encoder trains, position tables and neck included; the decoder passes gradients on."""

from __future__ import annotations

from torch import nn

from redfree.tuners.anatomy import anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, parameters_of
from redfree.tuners.freeing import free


class Options(TunerOptions):
    """No hyperparameters of its own; both variants are the same, since what is freed is the method."""


def attach(module: nn.Module, options: Options) -> Attachment:
    """Frees the image encoder, which is all of a model that gives tokens."""
    anatomy = anatomy_of(module)
    return free(anatomy, parameters_of(anatomy, [anatomy.encoder_name]))
