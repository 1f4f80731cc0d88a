"""MedSAM (Ma et al., 2024): image encoder and mask decoder train, the prompt encoder is frozen.

This is its trainable set, not its data, losses or weights. The swap paper counts all of SAM, which is more by the
prompt encoder.
"""

from __future__ import annotations

from torch import nn

from redfree.tuners.anatomy import anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, parameters_of
from redfree.tuners.freeing import free, mask_decoder_of


class Options(TunerOptions):
    """No hyperparameters of its own; both variants are the same, since what is freed is the method."""


def attach(module: nn.Module, options: Options) -> Attachment:
    """Frees the image encoder and the mask decoder of a model of `segment_anything` or `sam2`.

    Raises:
        UserError: the model has no mask decoder.
    """
    anatomy = anatomy_of(module)
    return free(anatomy, parameters_of(anatomy, [anatomy.encoder_name, mask_decoder_of(anatomy, "medsam")]))
