import json

from redfree.measure.reading_speed import ReadingMemory, ReadingSpeed
from redfree.report.reading import write_reading

SPEEDS = [ReadingSpeed("Pillow alone", 2, 81.25, 1.0), ReadingSpeed("redfree", 2, 61.06, 0.7515)]
MEMORY = [ReadingMemory(100, 300 * 2**20), ReadingMemory(5000, 301 * 2**20)]


def test_the_tables_and_their_figures_are_written(tmp_path):
    shown = write_reading(SPEEDS, MEMORY, 5, tmp_path / "out")
    text = (tmp_path / "out" / "reading.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["Pillow alone", "2", "81.2", "1.00"] in rows
    assert ["redfree", "2", "61.1", "0.75"] in rows
    assert ["5,000", "301 MiB"] in rows
    assert "Medians of 5 rounds" in text
    assert all(part in text for part in shown.split("\n\n"))


def test_the_figures_are_kept_unrounded_with_the_machine(tmp_path):
    write_reading(SPEEDS, MEMORY, 5, tmp_path)
    data = json.loads((tmp_path / "reading.json").read_text())
    assert [ReadingSpeed(**row) for row in data["speeds"]] == SPEEDS
    assert [ReadingMemory(**row) for row in data["memory"]] == MEMORY
    assert data["rounds"] == 5
    assert data["env"]["machine"]["cpu"]
