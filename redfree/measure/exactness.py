"""How far our models are from the official predictors, family by family."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor
from segment_anything import SamPredictor
from torch import Tensor, nn

from redfree.channels import ChannelMap
from redfree.data.schema import Prompt
from redfree.models.base import Features
from redfree.models.catalogue import MODELS
from redfree.models.loading import build_module, load_module
from redfree.models.promptable import PromptableModel
from redfree.models.sam import SamModel
from redfree.models.sam2 import Sam2Model
from redfree.models.tokens import TokenModel

# Odd on purpose: portrait and panorama, neither of the model's size.
SIZES = ((190, 107), (75, 260))
PROMPTS = {
    "point": Prompt(((40.0, 31.0),), (1,)),
    "3 points": Prompt(((40.0, 31.0), (5.0, 60.0), (90.0, 20.0)), (1, 0, 1)),
    "box": Prompt((), (), (11.0, 12.0, 80.0, 60.0)),
}


@dataclass(frozen=True)
class Exactness:
    """The largest difference of one comparison.

    Attributes:
        model: name of the model.
        weights: trained, or random where the official weights are not here.
        comparison: what was compared with the official code.
        difference: largest absolute difference.
        largest: largest absolute value of the official output.
    """

    model: str
    weights: str
    comparison: str
    difference: float
    largest: float


def measure_exactness(name: str) -> list[Exactness]:
    """Compares one model of the catalogue with the official code, with its own weights where these ship.

    Args:
        name: a key of `MODELS`.
    """
    entry = MODELS[name]
    if entry.ships:
        module, weights = load_module(name)[0], "trained"
    else:
        torch.manual_seed(0)
        module, weights = _spread(build_module(entry, entry.options())), "random"
    if entry.family == "timm":
        rows = _of_tokens(TokenModel(name, module, "", fit="squash"))
    else:
        wrapper = Sam2Model if entry.family == "sam2" else SamModel
        rows = _of_masks(wrapper(name, cast(Any, module), ""))
    return [Exactness(name, weights, comparison, *_difference(*pair)) for comparison, pair in rows]


def _spread(module: nn.Module) -> nn.Module:
    """The module with position tables that are not zero, as the packages leave them, where an error would not show."""
    for key, parameter in module.named_parameters():
        if "pos" in key:
            nn.init.normal_(parameter, std=0.1)
    return module.eval().requires_grad_(False)


def _difference(ours: list[Tensor], official: list[Tensor]) -> tuple[float, float]:
    pairs = list(zip(ours, official, strict=True))
    return max(float((a - b).abs().max()) for a, b in pairs), max(float(b.abs().max()) for _, b in pairs)


def _images() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def _swap(channels: int) -> ChannelMap:
    return ChannelMap(channels, ((0, 3), (5, 1), (7, channels - 1)), (2,))


def _of_masks(model: PromptableModel) -> Iterator[tuple[str, tuple[list[Tensor], list[Tensor]]]]:
    predictor, images = _predictor(model), _images()
    features = [model.encode([image]) for image in images]
    official: dict[str, list[Tensor]] = {"plain": [], "swapped": []}
    swap = _swap(model.channels)
    for kind in official:
        for image in images:
            if kind == "swapped":
                with swap.attach(model.module):
                    official[kind] += _predict(predictor, image)
            else:
                official[kind] += _predict(predictor, image)
    swapped = [one.with_maps(swap.apply(one.maps)) for one in features]
    yield "logits, against the predictor", (_decode(model, features), official["plain"])
    yield "logits of a swap, against the predictor with it attached", (_decode(model, swapped), official["swapped"])
    yield "the same by the shared decoder", (_decode_shared(model, features, swap), official["swapped"])


def _predictor(model: PromptableModel) -> Any:  # noqa: ANN401
    if isinstance(model, SamModel):
        return SamPredictor(model.sam)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package scripts its transforms, which torch is phasing out
        predictor = SAM2ImagePredictor(cast(Sam2Model, model).sam2)
    # The predictor assumes an input of 1024 pixels.
    predictor._bb_feat_sizes = [(model.input_side // stride, model.input_side // stride) for stride in (4, 8, 16)]
    return predictor


def _predict(predictor: Any, image: NDArray[np.uint8]) -> list[Tensor]:  # noqa: ANN401
    predictor.set_image(image)
    masks = []
    for prompt in PROMPTS.values():
        points = (np.array(prompt.points), np.array(prompt.labels)) if prompt.points else (None, None)
        box = None if prompt.box is None else np.array(prompt.box)
        masks.append(predictor.predict(*points, box=box, multimask_output=False, return_logits=True)[0][0])
    return [torch.as_tensor(mask) for mask in masks]


def _decode(model: PromptableModel, features: list[Features]) -> list[Tensor]:
    return [model.decode(one, [prompt])[0] for one in features for prompt in PROMPTS.values()]


def _decode_shared(model: PromptableModel, features: list[Features], swap: ChannelMap) -> list[Tensor]:
    index, masks = torch.tensor([swap.index()]), []
    for one in features:
        for prompt in PROMPTS.values():
            low = model.swap_decoder(one, model.prompt_tokens(prompt, one.frames[0]))(index)
            masks.append(model.upscale(low, one.frames[0], one.frames[0].original)[0])
    return masks


@torch.inference_mode()
def _of_tokens(model: TokenModel) -> Iterator[tuple[str, tuple[list[Tensor], list[Tensor]]]]:
    module, swap = cast(Any, model.module), _swap(model.channels)
    inputs = torch.stack([cast(Any, model)._transform(Image.fromarray(image)) for image in _images()])
    features = model.encode(_images())
    yield "tokens, against forward_features", ([features.tokens], [module.forward_features(inputs)])
    with swap.attach(model.module):
        official = module.forward_features(inputs)
    yield "tokens of a swap, against the model with it attached", ([model.swapped(features, swap).tokens], [official])
