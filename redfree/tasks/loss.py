"""A differentiable stand-in for the IoU of a mask, where a search needs a gradient."""

from __future__ import annotations

from torch import Tensor

# Chosen on search images of seeds that no benchmark uses. Of the 10 truly best of 4,032 pairs, 9 (camouflaged) and 10
# (medical) rank among the first 48 with it; with cross-entropy plus Dice 0 and 6 do.
_TEMPERATURE = 0.03


def sharp_iou_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft IoU (Jaccard) of one mask, where only pixels near its present contour count.

    IoU changes where a pixel changes sides. A loss that also rewards pixels for being more certain, as cross-entropy
    does, ranks swaps by something else. The sigmoid is therefore much narrower than the spread of the logits.

    Args:
        logits: (H, W), positive on the object.
        target: (H, W) bool.

    Returns:
        A scalar in 0..1.
    """
    truth = target.float()
    probability = (logits / (_TEMPERATURE * logits.detach().std().clamp(min=1e-6))).sigmoid()
    overlap = (probability * truth).sum()
    return 1 - overlap / (probability.sum() + truth.sum() - overlap).clamp(min=1e-6)
