import io
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redfree.data import archives as module
from redfree.data.archives import extract
from redfree.errors import UserError

FILES = {"Set/images/a (1).jpg": b"image" * 1000, "Set/masks/a (1).png": b"mask", "readme.txt": b"text"}
KINDS = ("set.zip", "set.tar", "set.tar.gz", "set.tgz")
# Ends as a killed process does, after it has moved one of two members, or in the middle of unpacking.
CHILD = """
import os, sys
from pathlib import Path
from redfree.data import archives
def move(source, target, replace=os.replace):
    replace(source, target)
    os._exit(9)
def stop(items, *_):
    yield next(iter(items))
    os._exit(9)
if sys.argv[3] == "moving":
    archives.os.replace = move
else:
    archives.track = stop
archives.extract(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return path


def tarred(path, files):
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, body in files.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


def packed(path, files=FILES):
    return (zipped if path.suffix == ".zip" else tarred)(path, files)


def odd(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def message_of(archive, folder):
    with pytest.raises(UserError) as caught:
        extract(archive, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "root"


class TestWhole:
    @pytest.mark.parametrize("name", KINDS)
    def test_everything_comes_and_nothing_else_stays(self, tmp_path, folder, name, capfd):
        assert extract(packed(tmp_path / name), folder) == ("Set", "readme.txt")
        assert contents(folder) == FILES
        assert sorted(path.name for path in folder.iterdir()) == ["Set", "readme.txt"]
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("name", KINDS)
    def test_a_second_call_changes_nothing(self, tmp_path, folder, name):
        archive = packed(tmp_path / name)
        assert extract(archive, folder) == extract(archive, folder)
        assert contents(folder) == FILES

    def test_archives_add_to_one_folder(self, tmp_path, folder):
        extract(zipped(tmp_path / "a.zip", {"Set/a": b"1"}), folder)
        extract(zipped(tmp_path / "b.zip", {"Set/b": b"2"}), folder)
        assert contents(folder) == {"Set/a": b"1", "Set/b": b"2"}

    def test_another_file_in_the_place_is_kept_and_named(self, tmp_path, folder):
        (folder / "Set" / "masks").mkdir(parents=True)
        mine = folder / "Set" / "masks" / "a (1).png"
        mine.write_bytes(b"mine")
        message = message_of(archive := packed(tmp_path / "set.zip"), folder)
        assert message == f"{mine}: is there already and is not the one of {archive}; move it away"
        assert mine.read_bytes() == b"mine"

    def test_a_terminal_sees_a_bar(self, tmp_path, folder, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        extract(packed(tmp_path / "set.zip"), folder)
        assert "unpack set.zip" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["unpacking", "moving"])
@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_what_a_killed_process_leaves_is_hidden_or_whole_and_is_finished(tmp_path, folder, name, when):
    archive = packed(tmp_path / name)
    killed = subprocess.run([sys.executable, "-c", CHILD, archive, folder, when], check=False)
    assert killed.returncode == 9
    seen = {name for name in contents(folder) if not name.startswith(".")}
    assert seen == ({name for name in FILES if name.startswith("Set/")} if when == "moving" else set())
    assert any(path.name.startswith(".") for path in folder.iterdir())
    extract(archive, folder)
    assert contents(folder) == FILES


OUTSIDE = ("../evil", "Set/../../evil", "/tmp/evil", "\\evil", "..\\evil", "C:\\evil", "C:evil", "//host/share/evil")


class TestEvil:
    @pytest.mark.parametrize("member", OUTSIDE)
    @pytest.mark.parametrize("name", KINDS[:3])
    def test_no_member_leaves_the_folder(self, tmp_path, folder, name, member):
        message = message_of(packed(tmp_path / name, {**FILES, member: b"evil"}), folder)
        assert f"set.{name.partition('.')[2]}: member {member!r} leads out of the folder; " in message
        assert list(folder.iterdir()) == []
        assert not list(tmp_path.rglob("evil"))

    @pytest.mark.parametrize(
        "info",
        [
            odd("Set/link", tarfile.SYMTYPE, "/etc/passwd"),
            odd("Set/link", tarfile.SYMTYPE, "../../outside"),
            odd("Set/link", tarfile.SYMTYPE, "images"),
            odd("Set/link", tarfile.LNKTYPE, "/etc/passwd"),
            odd("Set/device", tarfile.CHRTYPE),
            odd("Set/device", tarfile.BLKTYPE),
            odd("Set/pipe", tarfile.FIFOTYPE),
        ],
        ids=lambda info: f"{info.name} {info.type.decode()} {info.linkname}",
    )
    def test_links_and_devices_of_a_tar(self, tmp_path, folder, info):
        message = message_of(tarred(tmp_path / "set.tar", {**FILES, info: b""}), folder)
        assert f"member {info.name!r} is a link or a device; " in message
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
    def test_links_and_devices_of_a_zip(self, tmp_path, folder, kind):
        info = zipfile.ZipInfo("Set/odd")
        info.external_attr = (kind | 0o777) << 16
        message = message_of(zipped(tmp_path / "set.zip", {"Set/a": b"1", info: b"/etc/passwd"}), folder)
        assert "member 'Set/odd' is a link or a device; " in message
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("name", KINDS[:3])
    def test_a_bomb_is_seen_before_it_goes_off(self, tmp_path, folder, name, monkeypatch):
        archive = packed(tmp_path / name, {"zeros": bytes(10**6), "more": bytes(10)})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6 + 9))
        message = message_of(archive, folder)
        assert message == f"{archive}: unpacks to 1000010 bytes, but {folder} has 1000009 free; free space there"
        assert list(folder.iterdir()) == []
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6 + 10))
        extract(archive, folder)

    def test_a_zip_that_understates_its_size_writes_no_more_than_it_says(self, tmp_path, folder):
        archive = zipped(tmp_path / "set.zip", {"zeros": bytes(10**6)})
        data = archive.read_bytes().replace((10**6).to_bytes(4, "little"), (10).to_bytes(4, "little"))
        archive.write_bytes(data)
        assert "cannot be unpacked (" in message_of(archive, folder)
        assert list(folder.iterdir()) == []


class TestBroken:
    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("keep", [0.3, 0.8])
    def test_a_cut_archive_leaves_nothing(self, tmp_path, folder, name, keep):
        files = {f"Set/{i}": bytes([i]) * 3000 for i in range(50)}
        data = packed(tmp_path / name, files).read_bytes()
        (tmp_path / name).write_bytes(data[: int(keep * len(data))])
        message = message_of(tmp_path / name, folder)
        assert message.startswith(f"{tmp_path / name}: cannot be unpacked (")
        assert message.endswith("); remove it and get it again")
        assert list(folder.iterdir()) == []

    @given(st.binary(max_size=2000), st.sampled_from(KINDS))
    def test_noise_is_refused_in_one_line(self, tmp_path_factory, noise, name):
        path = tmp_path_factory.mktemp("noise") / name
        path.write_bytes(noise)
        try:
            written = extract(path, path.parent / "root")
        except UserError as error:
            message = str(error)
        else:
            message = f"{path}: nothing, as in an empty tar" if written == () else ""
        assert message.startswith(f"{path}: ")
        assert "\n" not in message

    @given(st.sampled_from(KINDS), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4))
    def test_changed_bytes_never_write_elsewhere(self, tmp_path_factory, name, changes):
        place = tmp_path_factory.mktemp("changed")
        data = bytearray(packed(place / name).read_bytes())
        for position, value in changes:
            data[int(position * len(data))] = value
        (place / name).write_bytes(data)
        try:
            extract(place / name, place / "root")
        except (UserError, OSError):
            assert not any(path.name.startswith(".") for path in (place / "root").iterdir())
        assert {path.name for path in place.iterdir()} == {name, "root"}

    def test_a_damaged_member_is_found_by_its_checksum(self, tmp_path, folder):
        with zipfile.ZipFile(path := tmp_path / "set.zip", "w") as archive:
            archive.writestr("a", b"image" * 100)
        path.write_bytes(path.read_bytes().replace(b"imageimage", b"imagfimage", 1))
        assert "Bad CRC-32" in message_of(path, folder)

    def test_an_encrypted_zip(self, tmp_path, folder):
        path = zipped(tmp_path / "set.zip", {"a": b"1"})
        data = bytearray(path.read_bytes())
        data[6] |= 1  # flags of the local header and of the directory
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
        assert "is encrypted" in message_of(path, folder)

    def test_another_kind_of_archive(self, tmp_path, folder):
        path = tmp_path / "set.rar"
        assert message_of(path, folder).startswith(
            f"{path}: is none of .zip, .tar, .tar.gz, .tgz; unpack it by hand into"
        )
        assert not folder.exists()

    def test_a_full_disk_leaves_nothing_and_is_not_called_broken(self, tmp_path, folder, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device", "a")

        monkeypatch.setattr(module, "track", full)
        with pytest.raises(OSError, match="No space left"):
            extract(packed(tmp_path / "set.zip"), folder)
        assert list(folder.iterdir()) == []
