"""The official configurations of the `sam2` package, read without Hydra's global state."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import sam2
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base

# What `apply_postprocessing` of `sam2.build_sam.build_sam2` sets in the mask decoder.
POSTPROCESSING = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


def build_sam2(architecture: str, apply_postprocessing: bool = False) -> SAM2Base:
    """Builds an untrained model, as `sam2.build_sam.build_sam2` does.

    The configuration is read as a plain file: an application that has initialised Hydra for itself would hide it.

    Args:
        architecture: path of the configuration in the package, such as "configs/sam2.1/sam2.1_hiera_t.yaml".
        apply_postprocessing: whether an unstable single mask gives way to the best of the multimask outputs; the
            official function's default, but not ours.
    """
    config = OmegaConf.load(Path(sam2.__file__).parent / architecture)
    if apply_postprocessing:
        config.model.sam_mask_decoder_extra_args = POSTPROCESSING
    return cast(SAM2Base, instantiate(config.model, _recursive_=True))
