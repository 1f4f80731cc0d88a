"""A differentiable stand-in for the IoU of a mask, where a search needs a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Chosen on search images of seeds that no benchmark uses. Of the 10 truly best of 4,032 pairs, 9 (camouflaged) and 10
# (medical) rank among the first 48 with it; with cross-entropy plus Dice 0 and 6 do.
_TEMPERATURE = 0.03


def sharp_iou_loss(logits: Tensor, target: Tensor, ignore: Tensor | None = None) -> Tensor:
    """1 - soft IoU (Jaccard) of one mask, where only pixels near its present contour count.

    IoU changes where a pixel changes sides. A loss that also rewards pixels for being more certain, as cross-entropy
    does, ranks swaps by something else. The sigmoid is therefore much narrower than the spread of the logits.

    Args:
        logits: (H, W), positive on the object.
        target: (H, W) bool.
        ignore: (H, W) bool, pixels off the target that do not count; None where all do.

    Returns:
        A scalar in 0..1.
    """
    truth = target.float()
    probability = (logits / (_TEMPERATURE * logits.detach().std().clamp(min=1e-6))).sigmoid()
    if ignore is not None:
        probability = torch.where(ignore, 0, probability)
    overlap = (probability * truth).sum()
    return 1 - overlap / (probability.sum() + truth.sum() - overlap).clamp(min=1e-6)
