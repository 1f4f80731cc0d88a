"""Norm-only: scale and shift of every layer norm train, and nothing else (LayerNorm tuning, Zhao et al., 2024)."""

from __future__ import annotations

from torch import nn

from redfree.tuners.anatomy import Anatomy, anatomy_of
from redfree.tuners.base import Attachment, TunerOptions
from redfree.tuners.freeing import free, require_any


class Options(TunerOptions):
    """No hyperparameters of its own; `paper` trains the norms of the image encoder, `original` the decoder's too."""


def attach(module: nn.Module, options: Options) -> Attachment:
    """Frees the affine parameters of layer norms.

    Raises:
        UserError: the encoder has none.
    """
    anatomy = anatomy_of(module)
    norms = _norms_of(anatomy, anatomy.encoder_name)
    require_any(norms, "norm-only", "layer norms with parameters")
    if options.variant == "original" and anatomy.decoder_name is not None:
        norms |= _norms_of(anatomy, anatomy.decoder_name)
    return free(anatomy, norms)


def _norms_of(anatomy: Anatomy, part: str) -> dict[str, nn.Parameter]:
    owners = {name for name, module in anatomy.module.named_modules() if _is_layer_norm(module)}
    return {name: value for name, value in anatomy.parameters_of(part).items() if name.rpartition(".")[0] in owners}


def _is_layer_norm(module: nn.Module) -> bool:
    # segment_anything and sam2 have a class of this name each, of maps, which torch's is not the base of.
    return isinstance(module, nn.LayerNorm) or type(module).__name__ == "LayerNorm2d"
