"""SAM-Adapter (Chen et al., 2023): prompts made of the image's high frequencies, added before every block of SAM.

For tokens E that the patch embedding gives and an image I, block i reads its input plus P_i = U GELU(D_i F + d_i) + u
with F = Conv(|high-pass(I)|) + G E + g. U, u are shared by all blocks. Weights are drawn as the authors draw them, not
zero: a fresh adapter changes SAM's features. The neck and all else of the encoder stay frozen. What is added depends on
the image and is not linear, so that it cannot be merged.

`original` also trains the mask decoder and the embedding that stands for the absence of a mask prompt. The authors'
code loads neither that embedding nor the positional encoding of the features from SAM's weights, because it looks for
them under other names; here both are SAM's. Their adapter of SAM 2 is another one, on a separate branch.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from redfree.errors import UserError
from redfree.tuners.anatomy import Anatomy, anatomy_of
from redfree.tuners.base import Attachment, TunerOptions, named, parameters_of

_NAME = "prompt_generator"


class Options(TunerOptions):
    """Options of SAM-Adapter.

    Attributes:
        reduction: the width of the encoder divided by that of the adapter.
        removed_area: share of the spectrum's area, a centred square, that the high-pass filter removes.
    """

    reduction: int = Field(default=32, ge=1)
    removed_area: float = Field(default=0.25, gt=0, le=1)


def high_pass(images: Tensor, removed_area: float) -> Tensor:
    """Absolute values of images (B, C, H, W), square as SAM's input is, without their low frequencies.

    Of the centred spectrum the square of half side int(sqrt(H W removed_area) // 2) is set to zero: at 1024 x 1024
    pixels and a quarter of the area that is 512 x 512.
    """
    height, width = images.shape[-2:]
    half = int(math.sqrt(height * width * removed_area) // 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))
    rows, columns = slice(height // 2 - half, height // 2 + half), slice(width // 2 - half, width // 2 + half)
    spectrum[..., rows, columns] = 0
    filtered: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)))
    return filtered.real.abs()


class PromptGenerator(nn.Module):
    """The layers that SAM-Adapter inserts.

    Attributes:
        patch_conv: from patches of the high-passed image to the adapter's width.
        embedding_generator: from embedded patches to the same width.
        lightweight_mlps: of each block, what turns the sum of both into that block's own.
        shared_mlp: back to the width of the encoder, the same for every block.
    """

    def __init__(self, patch_embedding: nn.Conv2d, depth: int, options: Options) -> None:
        """Draws the layers for an encoder of `depth` blocks."""
        super().__init__()
        inner = patch_embedding.out_channels // options.reduction
        kernel = cast(tuple[int, int], patch_embedding.kernel_size)
        self._removed_area = options.removed_area
        self.patch_conv = nn.Conv2d(patch_embedding.in_channels, inner, kernel, kernel)
        self.embedding_generator = nn.Linear(patch_embedding.out_channels, inner)
        self.lightweight_mlps = nn.ModuleList(nn.Linear(inner, inner) for _ in range(depth))
        self.shared_mlp = nn.Linear(inner, patch_embedding.out_channels)
        self.apply(_draw)

    def of_image(self, images: Tensor) -> Tensor:
        """(B, H, W, c) from normalised images (B, 3, H patch, W patch)."""
        found: Tensor = self.patch_conv(high_pass(images, self._removed_area))
        return found.permute(0, 2, 3, 1)

    def forward(self, features: Tensor, block: int) -> Tensor:
        """What is added to the input of a block (B, H, W, C), from features (B, H, W, c)."""
        prompt: Tensor = self.shared_mlp(nn.functional.gelu(self.lightweight_mlps[block](features)))
        return prompt


@torch.no_grad()
def _draw(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Conv2d):
        fan_out = layer.out_channels * math.prod(layer.kernel_size)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(cast(Tensor, layer.bias))


class _Pass:
    """Hooks that hand each other what is known of the images being encoded, until the last block is done."""

    def __init__(self, generator: PromptGenerator) -> None:
        self._generator = generator
        self._features: Tensor | None = None

    def begin(self, _encoder: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._features = self._generator.of_image(arguments[0])

    def embed(self, _embedding: nn.Module, _arguments: tuple[Any, ...], tokens: Tensor) -> None:
        self._features = self._current() + self._generator.embedding_generator(tokens)

    def add(self, block: int, _block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *others = arguments
        return (tokens + self._generator(self._current(), block), *others)

    def end(self, *_: object) -> None:
        self._features = None

    def _current(self) -> Tensor:
        if self._features is None:
            raise RuntimeError("a part of an adapted encoder was called without the encoder, which is given the image")
        return self._features


def attach(module: nn.Module, options: Options) -> Attachment:
    """Attaches SAM-Adapter.

    Raises:
        UserError: the model is not of `segment_anything`, its encoder is narrower than the reduction, or it has an
            adapter already.
    """
    anatomy = anatomy_of(module)
    encoder = _encoder_of(anatomy, options)
    embedding = encoder.patch_embed.proj
    generator = PromptGenerator(embedding, len(anatomy.blocks), options).to(embedding.weight)
    # As a part of the encoder it follows the model to another device.
    encoder.add_module(_NAME, generator)
    state = _Pass(generator)
    handles = [
        encoder.register_forward_pre_hook(state.begin),
        encoder.patch_embed.register_forward_hook(state.embed),
        *(b.register_forward_pre_hook(partial(state.add, k)) for k, b in enumerate(anatomy.blocks.values())),
        encoder.neck.register_forward_pre_hook(state.end),
    ]

    def unmount() -> None:
        for handle in handles:
            handle.remove()
        encoder._modules.pop(_NAME, None)

    return Attachment(anatomy, named([(_NAME, generator)]), _freed(anatomy, options), unmount)


def _encoder_of(anatomy: Anatomy, options: Options) -> Any:  # noqa: ANN401 - segment_anything has no types
    kind = type(anatomy.module).__name__
    if anatomy.decoder_name != "mask_decoder" or not anatomy.blocks:
        raise UserError(f"{kind}: sam-adapter is defined on SAM of segment_anything alone; choose such a model")
    encoder = anatomy.module.get_submodule(anatomy.encoder_name)
    width = cast(Any, encoder).patch_embed.proj.out_channels
    if width < options.reduction:
        raise UserError(
            f"{kind}: an encoder of width {width} cannot be reduced {options.reduction} times; lower reduction"
        )
    if hasattr(encoder, _NAME):
        raise UserError(f"{kind}: sam-adapter is attached to this model already; detach it first")
    return encoder


def _freed(anatomy: Anatomy, options: Options) -> dict[str, nn.Parameter]:
    if options.variant == "paper":
        return {}
    return parameters_of(anatomy, [anatomy.decoder_name, f"{anatomy.prompt_encoder_name}.no_mask_embed"])
