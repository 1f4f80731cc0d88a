"""Models for tuners, one backward pass through redfree's own encoding and decoding, and fingerprints of live models."""

import torch
from segment_anything import sam_model_registry
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from tinyworld import make_sample
from torch import nn

from redfree.models.catalogue import Sam2NanoArchitecture
from redfree.models.promptable import Encoding
from redfree.models.sam import SamModel
from redfree.models.sam2_nano import build_sam2_nano
from redfree.tuners.catalogue import attach_tuner, tuner_options

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}


def tune(name, module, **options):
    return attach_tuner(name, module, tuner_options(name, options))


def meta_vit_b():
    """SAM's ViT-B without weights."""
    with torch.device("meta"):
        return sam_model_registry["vit_b"](checkpoint=None)


def shaken(module):
    """A module whose every weight is random, biases and position tables included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return module.eval().requires_grad_(False)


def tiny_sam2():
    return shaken(build_sam2_nano(Sam2NanoArchitecture(64, 16, 8, (1, 1, 2, 1), (4, 2, 4, 2), (3,), 2)))


def tiny_vit():
    return shaken(VisionTransformer(**SMALL))


def tiny_eva():
    """A timm transformer that adds biases of its own to the weight of `qkv`, which it never calls."""
    return shaken(Eva(**SMALL))


def encode(module, image_side=64):
    """What an encoder gives for two images of noise, without gradients."""
    images = torch.randn(2, 3, image_side, image_side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        if hasattr(module, "forward_image"):
            return module.forward_image(images)["vision_features"]
        return getattr(module, "image_encoder", module)(images)


def shake(attachment, scale=0.05):
    """Moves all that trains, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def backward(sam, name, shaken_by=0.0, **options):
    """A tuner on a SAM, after one backward pass of a random sum of one image's logits.

    Returns:
        The attachment, and the gradients of all parameters of the live model that have one, by the parameter's id.
    """
    model, sample = SamModel("tiny", sam, "", Encoding(attention="official")), make_sample(0)
    attachment = tune(name, sam, **options)
    shake(attachment, shaken_by)
    features = model._encode_batch([sample.image])
    tokens = model.prompt_tokens(sample.prompt, features.frames[0])
    logits = model._logits(features.maps, tokens.clone(), ())
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    return attachment, {id(value): value.grad for value in sam.parameters() if value.grad is not None}


def peft_layer(layer, rows, **config):
    """Peft's layer of rank 4 and factor 1 around some rows of a linear layer, which it copies."""
    from peft import LoraConfig, inject_adapter_in_model

    part = nn.Linear(layer.in_features, rows.stop - rows.start)
    part.load_state_dict({"weight": layer.weight[rows], "bias": layer.bias[rows]})
    chosen = LoraConfig(r=4, lora_alpha=4, target_modules=["part"], **config)
    return inject_adapter_in_model(chosen, nn.ModuleDict({"part": part}))["part"]


def fingerprint(module):
    """Names and values of a module's state, its modules by identity, and the number of its hooks."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules())
    return state, {name: id(child) for name, child in module.named_modules()}, hooks


def same(one, other):
    """Whether two fingerprints agree bit for bit."""
    equal = all(torch.equal(value, other[0][name]) for name, value in one[0].items() if name in other[0])
    return equal and one[0].keys() == other[0].keys() and one[1:] == other[1:]
