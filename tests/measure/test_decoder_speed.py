import json

import pytest

from redfree.measure import decoder_speed
from redfree.measure.decoder_speed import DecoderSpeed, measure_decoders
from redfree.models.catalogue import NanoArchitecture
from redfree.report.decoders import write_decoder_speeds


@pytest.fixture
def tiny(monkeypatch):
    arch = NanoArchitecture(image_size=64, channels=128, encoder_dim=8, encoder_depth=1, encoder_heads=1)
    monkeypatch.setattr(decoder_speed, "SHAPES", {"tiny": arch})


@pytest.mark.usefixtures("tiny")
def test_every_decoder_is_timed_against_the_official_one():
    rows = measure_decoders("tiny", threads=1, candidates=3, rounds=2)
    assert [(row.shape, row.decoder, row.threads) for row in rows] == [
        ("tiny", "official", 1),
        ("tiny", "generic", 1),
        ("tiny", "shared", 1),
    ]
    assert rows[0].speed_up == 1
    assert all(row.milliseconds > 0 and row.speed_up > 0 for row in rows)


@pytest.mark.usefixtures("tiny")
def test_decoders_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.setattr(
        decoder_speed, "_random_pairs", lambda channels, count: decoder_speed.np.zeros((count, 128), "i2")
    )
    real = decoder_speed._plain_loop
    wrong = lambda *given: lambda maps: 1 - real(*given)(maps)  # noqa: E731
    monkeypatch.setattr(decoder_speed, "_plain_loop", wrong)
    with pytest.raises(ArithmeticError, match="does not score as the official one"):
        measure_decoders("tiny", threads=1, candidates=2, rounds=1)


def test_the_table_names_machine_and_rounds(tmp_path):
    speeds = [DecoderSpeed("sam_vit_b", "official", 1, 100.0, 1.0), DecoderSpeed("sam_vit_b", "shared", 1, 25.0, 4.0)]
    table = write_decoder_speeds(speeds, 32, 5, tmp_path)
    text = (tmp_path / "decoders.md").read_text()
    assert table in text
    assert "4.00 x" in text
    assert "32 candidates" in text
    assert json.loads((tmp_path / "decoders.json").read_text())["speeds"][1]["speed_up"] == 4.0
