"""Models by name: built by the package that they come from, loaded strictly, wrapped in the common interface."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import nn

from redfree.errors import UserError, unknown
from redfree.files import sha256_of
from redfree.models.base import Model
from redfree.models.catalogue import (
    DINO_NANO_ARCHITECTURES,
    MODELS,
    NANO_ARCHITECTURES,
    SAM2_NANO_ARCHITECTURES,
    ModelEntry,
    ModelOptions,
    Sam2Options,
    TokenOptions,
)
from redfree.models.nano import build_nano
from redfree.models.promptable import Encoding
from redfree.models.sam import SamModel
from redfree.models.weights import State, find_weights, load_strictly, read_state
from redfree.validation import validate

if TYPE_CHECKING:
    from redfree.models.tokens import TokenModel

Options = Mapping[str, Any]


def check_name(name: str) -> None:
    """Checks that a name is in the catalogue or is an import path.

    Raises:
        UserError: it is neither; the nearest name is given.
    """
    if ":" not in name and name not in MODELS:
        raise unknown("model", name, MODELS)


def check_options(name: str, options: Options | None) -> ModelOptions | None:
    """The options of a named model, with their defaults; None for an import path, whose function checks its own.

    Raises:
        UserError: the model is unknown, it has no such option, or a value is not valid.
    """
    check_name(name)
    return None if ":" in name else validate(MODELS[name].options, dict(options or {}), f"options of {name}")


def load_model(name: str, checkpoint: Path | None = None, options: Options | None = None) -> Model:
    """Builds a model that makes masks from prompts.

    Args:
        name: a key of `MODELS`, or an import path `module:function` to a function of (checkpoint, options).
        checkpoint: a weights file to use instead of the shipped or downloaded one.
        options: options that are not at their default, see the entry's `options`.

    Raises:
        UserError: the name or an option is unknown, the model takes no prompts, its weights are not here, or the file
            is truncated, unsafe or of another architecture.
    """
    given = check_options(name, options)
    if given is None:
        return _load_custom(name, checkpoint, options or {})
    if not MODELS[name].promptable:
        raise UserError(f"{name} gives tokens, not masks; choose one of {', '.join(promptable_names())}")
    return _promptable(name, *load_module(name, checkpoint, options), given)


def _promptable(name: str, module: nn.Module, sha256: str, given: ModelOptions) -> Model:
    encoding = _encoding(MODELS[name], given)
    if isinstance(given, Sam2Options):
        from redfree.models.sam2 import Sam2Model  # noqa: PLC0415

        return Sam2Model(name, cast(Any, module), sha256, encoding, given.swap_at)
    return SamModel(name, cast(Sam, module), sha256, encoding)


def load_tokens(name: str, checkpoint: Path | None = None, options: Options | None = None) -> TokenModel:
    """Builds a model that gives tokens.

    Args:
        name: a key of `MODELS` of the family timm, or the name of any other backbone of timm, which needs a checkpoint.
        checkpoint: a weights file to use instead of the shipped or downloaded one.
        options: options that are not at their default, see `TokenOptions`.

    Raises:
        UserError: as `load_model`.
    """
    given = validate(TokenOptions, dict(options or {}), f"options of {name}")
    if name in MODELS and MODELS[name].family != "timm":
        raise UserError(f"{name} makes masks, it gives no tokens; choose a model of the family timm")
    return _tokens(name, *load_module(name, checkpoint, options), given)


def _tokens(name: str, module: nn.Module, sha256: str, given: TokenOptions) -> TokenModel:
    from redfree.models.tokens import TokenModel  # noqa: PLC0415

    encoding = _encoding(MODELS.get(name), given)
    return TokenModel(name, module, sha256, encoding, swap_on=given.swap_on, swap_at=given.swap_at, fit=given.fit)


def untrained_model(name: str, options: Options | None = None) -> Model | TokenModel:
    """A model of the catalogue with random weights: as fast and as large as the trained one.

    Raises:
        UserError: an option is unknown or not valid.
    """
    given = validate(MODELS[name].options, dict(options or {}), f"options of {name}")
    module = build_module(MODELS[name], given).to(given.device)
    if isinstance(given, TokenOptions):
        return _tokens(name, module, "", given)
    return _promptable(name, module, "", given)


def load_module(
    name: str, checkpoint: str | Path | None = None, options: Options | None = None
) -> tuple[nn.Module, str]:
    """The plain model of the package that it comes from, with its weights, and the SHA-256 of their file.

    Raises:
        UserError: as `load_model`.
    """
    entry = MODELS.get(name) or ModelEntry("timm", name, 0, 0)
    if name not in MODELS and checkpoint is None:
        raise UserError(f"{name}: not a model of redfree; a backbone of timm needs its weights, give --checkpoint FILE")
    given = validate(entry.options, dict(options or {}), f"options of {name}")
    path, sha256 = (Path(checkpoint), None) if checkpoint else find_weights(name)
    state, module = read_state(path), build_module(entry, given)
    load_strictly(module, _convert(entry, module, state), path, name)
    return module.to(given.device), sha256 or sha256_of(path)


def load_sam(name: str, checkpoint: str | Path | None = None) -> Sam:
    """The plain `segment_anything` model of a name, for `SamPredictor` and the user's own code.

    Raises:
        UserError: as `load_model`.
    """
    check_name(name)
    if MODELS[name].family != "segment_anything":
        raise UserError(f"{name} is not of segment_anything; use redfree.load_module")
    return cast(Sam, load_module(name, checkpoint)[0])


def promptable_names() -> list[str]:
    """Names of the models that make masks from prompts."""
    return [name for name, entry in MODELS.items() if entry.promptable]


def build_module(entry: ModelEntry, options: ModelOptions) -> nn.Module:
    """Builds an untrained model of the package that it comes from."""
    return _BUILDERS[entry.family](entry.architecture, options)


def _build_sam(architecture: str, _options: ModelOptions) -> nn.Module:
    if architecture in NANO_ARCHITECTURES:
        return cast(nn.Module, build_nano(NANO_ARCHITECTURES[architecture]))
    return cast(nn.Module, sam_model_registry[architecture](checkpoint=None))


def _build_sam2(architecture: str, options: ModelOptions) -> nn.Module:
    from redfree.models.sam2_configs import build_sam2  # noqa: PLC0415
    from redfree.models.sam2_nano import build_sam2_nano  # noqa: PLC0415

    post_processes = cast(Sam2Options, options).apply_postprocessing
    if architecture in SAM2_NANO_ARCHITECTURES:
        return cast(nn.Module, build_sam2_nano(SAM2_NANO_ARCHITECTURES[architecture], post_processes))
    return cast(nn.Module, build_sam2(architecture, post_processes))


def _build_timm(architecture: str, options: ModelOptions) -> nn.Module:
    from redfree.models.dino_nano import build_dino_nano  # noqa: PLC0415
    from redfree.models.tokens import build_timm  # noqa: PLC0415

    side = cast(TokenOptions, options).input_side
    if architecture in DINO_NANO_ARCHITECTURES:
        return cast(nn.Module, build_dino_nano(DINO_NANO_ARCHITECTURES[architecture], side))
    return build_timm(architecture, side)


def _build_mobile_sam(architecture: str, _options: ModelOptions) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports timm by paths that timm has renamed
            registry = importlib.import_module("mobile_sam").sam_model_registry
    except ImportError:
        raise UserError(
            "mobile_sam needs its own package; pip install git+https://github.com/ChaoningZhang/MobileSAM.git"
        ) from None
    return cast(nn.Module, registry[architecture](checkpoint=None))


_BUILDERS: Mapping[str, Callable[[str, ModelOptions], nn.Module]] = {
    "segment_anything": _build_sam,
    "sam2": _build_sam2,
    "timm": _build_timm,
    "mobile_sam": _build_mobile_sam,
}


def _convert(entry: ModelEntry, module: nn.Module, state: State) -> State:
    """The state dict in the keys of the module, which for timm are not always those of the official file."""
    if entry.family != "timm":
        return state
    from redfree.models.tokens import timm_state  # noqa: PLC0415

    return timm_state(module, state)


def _encoding(entry: ModelEntry | None, options: ModelOptions) -> Encoding:
    small = entry is not None and entry.ships
    return Encoding(options.batch or (16 if small else 1), options.precision, options.attention)


def _load_custom(path: str, checkpoint: Path | None, options: Options) -> Model:
    module_name, _, function_name = path.partition(":")
    # As `python -m` does, so that a file beside the user's data can be named.
    sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--model {path}: {error}; give module:function, the module being importable from here"
        ) from None
    finally:
        sys.path.pop(0)
    model = build(checkpoint, dict(options))
    lacking = [name for name in _MODEL_MEMBERS if not hasattr(model, name)]
    if lacking:
        raise UserError(f"--model {path}: what the function returned has no {', '.join(lacking)}; see docs/models.md")
    return cast(Model, model)


_MODEL_MEMBERS = sorted({*Model.__annotations__, *(name for name in vars(Model) if not name.startswith("_"))})
