import errno
import hashlib
import os

import pytest

from redfree.errors import unknown
from redfree.files import replace_atomically, sha256_of, write_text


def test_a_finished_block_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "old")
    write_text(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file_and_no_litter(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with replace_atomically(path) as file:
            file.write(b"half of the new")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_whole_until_the_block_ends(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replace_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_sha256_of(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unknown_names_the_nearest_or_all():
    known = ["hill_climb", "random", "greedy"]
    assert str(unknown("method", "gredy", known)) == "unknown method 'gredy'; did you mean 'greedy'?"
    assert str(unknown("method", "xyz", known)) == "unknown method 'xyz'; known: greedy, hill_climb, random"


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")

    def fill_the_disk():
        with replace_atomically(path) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        fill_the_disk()
    assert caught.value.filename == str(path)
    assert [(kept.name, kept.read_text()) for kept in tmp_path.iterdir()] == [("record.json", "old")]


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replace_atomically(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")
