"""BitFit (Ben Zaken et al., 2022): of the backbone, the bias terms train and nothing else."""

from __future__ import annotations

from torch import nn

from redfree.tuners.anatomy import Anatomy, anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, parameters_of
from redfree.tuners.freeing import free, require_any


class Options(TunerOptions):
    """No hyperparameters of its own.

    The backbone is the image encoder. `paper` trains all of its bias terms, those of norms included. `original` trains
    the whole mask decoder beside them, as BitFit's authors train their task's own layer in full.
    """


def attach(module: nn.Module, options: Options) -> Attachment:
    """Frees the bias terms of the image encoder.

    Raises:
        UserError: the encoder has none.
    """
    anatomy = anatomy_of(module)
    biases = _biases_of(anatomy)
    require_any(biases, "bitfit", "bias terms")
    decoder = parameters_of(anatomy, [anatomy.decoder_name] if options.variant == "original" else [])
    return free(anatomy, {**biases, **decoder})


def _biases_of(anatomy: Anatomy) -> dict[str, nn.Parameter]:
    """Biases by name, such as `bias`, or `q_bias` in timm's models that keep those of queries and values apart."""
    own = anatomy.parameters_of(anatomy.encoder_name)
    return {name: value for name, value in own.items() if name.endswith("bias")}
