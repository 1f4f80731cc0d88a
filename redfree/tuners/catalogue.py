"""The tuners by name; imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redfree.errors import unknown
from redfree.validation import validate

if TYPE_CHECKING:
    from torch import nn

    from redfree.tuners.base import Attachment, TunerOptions

# Each module has a class `Options` and a function `attach(module, options)`.
TUNERS: Mapping[str, str] = {
    "decoder-only": "decoder_only",
    "encoder-only": "encoder_only",
    "medsam": "medsam",
    "samed": "samed",
    "dora": "dora",
    "sam-cobot": "sam_cobot",
    "sam-adapter": "sam_adapter",
    "sam-parser": "sam_parser",
    "bitfit": "bitfit",
    "norm-only": "norm_only",
    "conv-lora": "conv_lora",
}


def tuner_options(name: str, options: Mapping[str, Any]) -> TunerOptions:
    """The options of a tuner, with their defaults.

    Raises:
        UserError: the tuner or an option is unknown, or a value is not valid.
    """
    found: TunerOptions = validate(_module(name).Options, dict(options), f"options of {name}")
    return found


def attach_tuner(name: str, module: nn.Module, options: TunerOptions) -> Attachment:
    """Attaches a tuner to a live model; what it adds is drawn from torch's global generator.

    Raises:
        UserError: the tuner is unknown, or not defined on a model of this kind.
    """
    found: Attachment = _module(name).attach(module, options)
    return found


def _module(name: str) -> Any:  # noqa: ANN401 - a module
    if name not in TUNERS:
        raise unknown("tuner", name, TUNERS)
    return importlib.import_module(f"redfree.tuners.{TUNERS[name]}")
