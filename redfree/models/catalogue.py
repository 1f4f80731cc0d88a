"""Names and sizes of the models that ship in the package; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NanoArchitecture:
    """Sizes of a small SAM.

    Attributes:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels; the features have image_size / patch_size rows and columns.
        channels: channels of the encoder output, on which swaps act.
        encoder_dim: width of the image encoder.
        encoder_depth: number of encoder blocks, all with global attention.
        encoder_heads: attention heads of an encoder block.
        decoder_mlp_dim: hidden width of the two-way transformer's MLPs.
    """

    image_size: int = 128
    patch_size: int = 16
    channels: int = 64
    encoder_dim: int = 192
    encoder_depth: int = 5
    encoder_heads: int = 6
    decoder_mlp_dim: int = 256


NANO_ARCHITECTURES = {"sam_nano": NanoArchitecture(), "sam_nano256": NanoArchitecture(channels=256)}
