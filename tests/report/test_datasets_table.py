from redfree.data.about import abouts
from redfree.report.datasets import datasets_table


def rows_of(folder):
    lines = datasets_table(folder).splitlines()[2:]
    return {line.split()[0]: [cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines}


def test_every_dataset_has_a_row(tmp_path):
    rows = rows_of(tmp_path)
    assert list(rows) == list(abouts())
    assert rows["isic2016"] == ["isic2016", "segmentation", "CC0-1.0", "train 900, test 379", "yes", "no"]
    assert rows["cod10k"][3:] == ["train 3,040, test 2,026 (not confirmed)", "no", "no"]
    assert rows["folder"][3:] == ["-", "-", "-"]
    assert rows["procedural/medical"][3:] == ["-", "-", "yes"]


def test_what_is_here_is_seen(tmp_path):
    (tmp_path / "busi" / "Dataset_BUSI_with_GT").mkdir(parents=True)
    (tmp_path / "isic2016").mkdir()
    (tmp_path / "isic2016" / "fetched.json").write_text('{"archives": {}}')
    rows = rows_of(tmp_path)
    assert (rows["busi"][-1], rows["isic2016"][-1]) == ("yes", "no")
