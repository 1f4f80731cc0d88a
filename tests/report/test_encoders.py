import json

from redfree.measure.encoder_speed import EncoderSpeed
from redfree.report.encoders import write_encoder_speeds

SPEEDS = [
    EncoderSpeed("sam_vit_b", "official", 2, 40.04, 1.0, 3 * 2**30, 0.0),
    EncoderSpeed("sam_vit_b", "lean", 2, 10.0, 4.004, 2**30, 1.2e-6),
]


def test_the_table_names_times_memory_and_machine(tmp_path):
    table = write_encoder_speeds(SPEEDS, 5, tmp_path)
    text = (tmp_path / "encoders.md").read_text()
    assert table in text
    assert "Medians of 5 rounds" in text
    official, lean = table.splitlines()[2:]
    assert [cell.strip() for cell in official.split("|")[3:-1]] == ["official", "40", "1.00 x", "3072 MiB", "0"]
    assert [cell.strip() for cell in lean.split("|")[3:-1]] == ["lean", "10", "4.00 x", "1024 MiB", "1e-06"]


def test_the_file_holds_what_was_measured(tmp_path):
    write_encoder_speeds(SPEEDS, 5, tmp_path)
    data = json.loads((tmp_path / "encoders.json").read_text())
    assert data["speeds"][1]["peak_rss_bytes"] == 2**30
    assert data["speeds"][0]["attention"] == "official"
    assert data["rounds"] == 5
    assert data["env"]["packages"]["torch"]
