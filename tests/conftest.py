"""Fixtures for every test: one thread, fixed seeds, a SAM small enough to run in milliseconds."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

from redfree.models import catalogue
from redfree.models.nano import NanoArchitecture, build_nano

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")
TINY = NanoArchitecture(
    image_size=64, patch_size=16, channels=16, encoder_dim=32, encoder_depth=2, encoder_heads=2, decoder_mlp_dim=32
)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    torch.manual_seed(0)


@pytest.fixture
def tiny_arch():
    return TINY


@pytest.fixture
def tiny_model(monkeypatch):
    """Makes "tiny" a named model whose weights are a part of the package."""
    entry = catalogue.ModelEntry("segment_anything", "tiny", 0, TINY.channels, ships=True)
    monkeypatch.setitem(catalogue.NANO_ARCHITECTURES, "tiny", TINY)
    monkeypatch.setitem(catalogue.MODELS, "tiny", entry)


@pytest.fixture
def tiny_sam():
    """A 64-pixel SAM of 16 channels whose every weight is random, biases and position tables included."""
    sam = build_nano(TINY).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return sam.requires_grad_(False)
