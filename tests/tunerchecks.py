"""What holds for every tuner of SAM and SAM 2: gradients on what it declares, and nowhere else."""

import torch
from tinyworld import make_sample
from tunerworld import shake, tune

from redfree.models.promptable import Encoding
from redfree.models.sam import SamModel
from redfree.models.sam2 import Sam2Model

# Attention does not depend on what is added to all keys alike, so that the gradient is zero but for rounding.
WITHOUT_EFFECT = "k_proj.bias"


def after_backward(module, name, shaken_by=0.0, **options):
    """The attachment of a tuner to a SAM or a SAM 2, after one backward pass through redfree's own computation."""
    wrapper, sample = Sam2Model if hasattr(module, "sam_mask_decoder") else SamModel, make_sample(0)
    model = wrapper("tiny", module, "", Encoding(attention="official"))
    attachment = tune(name, module, **options)
    shake(attachment, shaken_by)
    features = model._encode_batch([sample.image])
    tokens = model.prompt_tokens(sample.prompt, features.frames[0])
    logits = model._logits(features.maps, tokens.clone(), features.high_resolution)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    return attachment


def check_gradients(attachment, zero=()):
    """Checks that a backward pass reached all that trains, and nothing else.

    Args:
        attachment: that of a model after a backward pass.
        zero: names of what has a gradient of exactly zero.
    """
    trained = attachment.trained()
    reached = {id(p) for p in attachment.anatomy.module.parameters() if p.grad is not None}
    assert reached == {id(p) for p in trained.values()}
    idle = {name for name, p in trained.items() if not p.grad.any()}
    assert {name for name in idle if not name.endswith(WITHOUT_EFFECT)} == set(zero)
