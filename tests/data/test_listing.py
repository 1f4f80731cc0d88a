from pathlib import Path

import pytest

from redfree.data.listing import by_stem, images_in, natural, visible_files, visible_folders
from redfree.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", ".DS_Store", "._a.png", "d.webp", "e.gif"):
        (tmp_path / name).write_bytes(b"")
    for name in ("z.jpg", "y", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_hidden_files_and_those_of_archives_are_left_out(folder):
    assert [path.name for path in visible_files(folder)] == ["a.png", "b.JPG", "c.txt", "d.webp", "e.gif"]
    assert [path.name for path in visible_folders(folder)] == ["y", "z.jpg"]


def test_images_are_known_by_their_extension(folder):
    assert [path.name for path in images_in(folder)] == ["a.png", "b.JPG", "d.webp"]


def test_natural_order():
    assert sorted(["x10", "10", "x9", "9", "x", "x9y1", "010"], key=natural) == [
        "9",
        "010",
        "10",
        "x",
        "x9",
        "x9y1",
        "x10",
    ]


def test_by_stem_is_in_natural_order():
    assert list(by_stem([Path("10.png"), Path("9.jpg")])) == ["9", "10"]


def test_a_stem_twice_is_refused():
    with pytest.raises(UserError, match=r"^in/a.png: a.jpg has the same name; rename or remove one of them$"):
        by_stem([Path("in/a.jpg"), Path("in/a.png")])
