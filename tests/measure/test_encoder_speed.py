from functools import partial

import numpy as np
import pytest

from redfree.measure import encoder_speed
from redfree.measure.encoder_speed import ENCODERS, measure_encoders
from redfree.models.catalogue import NANO_ARCHITECTURES, NanoArchitecture
from redfree.models.lean_attention import lean_attention
from redfree.models.nano import build_nano

MIB = 2**20
TINY = NanoArchitecture(image_size=64, channels=16, encoder_dim=16, encoder_depth=1, encoder_heads=2)


@pytest.fixture
def tiny(monkeypatch):
    """A small encoder whose lean attention has no budget; no process is started to measure it."""
    monkeypatch.setattr(encoder_speed, "ENCODERS", {"tiny": partial(build_nano, TINY)})
    attentions = {**encoder_speed.ATTENTIONS, "lean": partial(lean_attention, budget=0)}
    monkeypatch.setattr(encoder_speed, "ATTENTIONS", attentions)
    monkeypatch.setattr(
        encoder_speed, "_peak", lambda name, attention, threads: {"official": 300, "lean": 200}[attention]
    )


def test_the_encoders_of_every_sam_can_be_measured():
    assert set(ENCODERS) == {"sam_vit_b", "sam_vit_l", "sam_vit_h", *NANO_ARCHITECTURES}


@pytest.mark.usefixtures("tiny")
def test_lean_attention_is_measured_against_the_official():
    rows = measure_encoders("tiny", threads=1, rounds=2)
    assert [(row.encoder, row.attention, row.threads) for row in rows] == [("tiny", "official", 1), ("tiny", "lean", 1)]
    assert [row.peak_rss_bytes for row in rows] == [300, 200]
    assert all(row.seconds > 0 for row in rows)
    assert rows[0].speed_up == 1
    assert rows[0].difference == 0 < rows[1].difference <= 1e-5


@pytest.mark.usefixtures("tiny")
def test_attentions_that_disagree_are_not_timed(monkeypatch):
    real = encoder_speed._encode
    monkeypatch.setattr(
        encoder_speed, "_encode", lambda sam, key, image: real(sam, key, image) + 2e-5 * (key == "lean")
    )
    with pytest.raises(ArithmeticError, match="tiny: features of the lean attention differ by 2"):
        measure_encoders("tiny", threads=1, rounds=1)


def test_random_weights_include_relative_positions():
    sam, image = encoder_speed._build("sam_nano")
    assert sam.image_encoder.blocks[0].attn.rel_pos_h.std() > 0.05
    assert sam.image_encoder.pos_embed.std() > 0.05
    assert image.shape == (1, 3, 128, 128)


def test_the_peak_is_that_of_a_process_of_its_own():
    block = np.ones(1536 * MIB, np.uint8)
    assert 100 * MIB < encoder_speed._peak("sam_nano", "lean", 1) < block.nbytes


def test_a_process_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(encoder_speed.sys, "executable", "false")
    with pytest.raises(ChildProcessError, match="sam_nano, official attention: the measuring process ended with 1"):
        encoder_speed._peak("sam_nano", "official", 1)
