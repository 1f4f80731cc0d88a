import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile

import pytest
from fileserver import fail, send, serving

from redfree.data import about as registry
from redfree.data.about import About
from redfree.data.fetch import fetch_dataset, instructions, is_here
from redfree.download import Patience
from redfree.errors import UserError
from redfree.published import MismatchError

QUICK = Patience(timeout=10, attempts=2, backoff=0)
CHILD = """
import sys
from pathlib import Path
from redfree.data import about
from redfree.data.fetch import fetch_dataset
entry = about.About.model_validate_json(sys.argv[1])
about.abouts = lambda: {"tiny": entry}
fetch_dataset("tiny", Path(sys.argv[2]))
"""


def zip_bytes(files):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return buffer.getvalue()


IMAGES, MASKS = zip_bytes({"images/a.jpg": b"image" * 5000}), zip_bytes({"masks/a.png": b"mask"})
FILES = {"images/a.jpg": b"image" * 5000, "masks/a.png": b"mask"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.answers = [send(IMAGES), send(MASKS), fail(404)]
        yield server


@pytest.fixture(autouse=True)
def enter(monkeypatch, server):
    """Makes "tiny", of two archives with an MD5 and with no hash, the one dataset but for the given changes."""

    def enter(**changes):
        base = server.url.rsplit("/", 1)[0]
        md5 = hashlib.md5(IMAGES).hexdigest()
        facts = {
            "name": "tiny",
            "title": "Tiny",
            "task": "segmentation",
            "page": "https://example.org/tiny",
            "licence": "CC0-1.0",
            "terms": "no restriction",
            "citation": "A. Author: Tiny. Venue 2020",
            "encoding": "0 and 255",
            "tree": "images/a.jpg\nmasks/a.png\n",
            "layouts": ["owner"],
            "splits": {"all": 1},
            "confirmed": True,
            "archives": [
                {"url": f"{base}/images.zip", "filename": "images.zip", "md5": md5, "source": "this test"},
                {"url": f"{base}/masks.zip", "filename": "masks.zip", "source": "this test"},
            ],
        }
        entry = About(**{**facts, **changes})
        monkeypatch.setattr(registry, "abouts", lambda: {"tiny": entry})
        return entry

    enter()
    return enter


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def contents(folder):
    paths = [path for path in (folder / "tiny").glob("*/*") if path.is_file()]
    return {str(path.relative_to(folder / "tiny")): path.read_bytes() for path in paths}


def require_fetched(folder):
    assert fetch_dataset("tiny", folder, QUICK) == folder / "tiny"
    assert contents(folder) == FILES


def message_of(folder, kind=UserError):
    with pytest.raises(kind) as caught:
        fetch_dataset("tiny", folder, QUICK)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFetched:
    def test_archives_come_once_and_stay(self, server, folder, enter):
        assert not is_here(enter(), folder)
        require_fetched(folder)
        assert is_here(enter(), folder)
        assert (folder / "tiny" / "images.zip").read_bytes() == IMAGES
        server.answers = [fail(500)]
        require_fetched(folder)
        assert len(server.asked) == 2

    def test_the_second_call_reads_no_archive(self, folder):
        require_fetched(folder)
        for name in ("images.zip", "masks.zip"):
            (folder / "tiny" / name).unlink()
        require_fetched(folder)
        assert not (folder / "tiny" / "images.zip").exists()
        assert not (folder / "tiny" / "masks.zip").exists()

    def test_the_marker_names_archives_by_their_hash(self, folder):
        require_fetched(folder)
        marker = json.loads((folder / "tiny" / "fetched.json").read_text())["archives"]
        assert marker == {
            "images.zip": {"sha256": hashlib.sha256(IMAGES).hexdigest(), "members": ["images"]},
            "masks.zip": {"sha256": hashlib.sha256(MASKS).hexdigest(), "members": ["masks"]},
        }

    def test_what_was_removed_is_unpacked_again(self, server, folder, enter):
        require_fetched(folder)
        (folder / "tiny" / "masks" / "a.png").unlink()
        (folder / "tiny" / "masks").rmdir()
        assert not is_here(enter(), folder)
        require_fetched(folder)
        assert len(server.asked) == 2

    def test_an_archive_put_there_by_hand_is_verified_and_unpacked(self, server, folder, enter):
        (folder / "tiny").mkdir(parents=True)
        (folder / "tiny" / "images.zip").write_bytes(IMAGES)
        assert not is_here(enter(), folder)
        server.answers = [send(MASKS)]
        require_fetched(folder)
        assert len(server.asked) == 1
        (folder / "tiny" / "fetched.json").unlink()
        (folder / "tiny" / "images.zip").write_bytes(MASKS)
        assert "images.zip: MD5 is" in message_of(folder, MismatchError)

    def test_an_archive_without_a_published_hash_is_locked(self, server, folder):
        require_fetched(folder)
        root = folder / "tiny"
        assert sorted(path.name for path in root.glob("*.sha256.json")) == ["masks.zip.sha256.json"]
        for name in ("masks.zip", "fetched.json"):
            (root / name).unlink()
        server.answers = [send(IMAGES)]
        assert "(locked on " in message_of(folder, MismatchError)

    def test_processes_fetch_once(self, server, folder, enter):
        arguments = [sys.executable, "-c", CHILD, enter().model_dump_json(), folder]
        children = [subprocess.Popen(arguments) for _ in range(2)]
        assert [child.wait() for child in children] == [0, 0]
        assert len(server.asked) == 2
        assert contents(folder) == FILES

    def test_a_name_that_is_unknown(self, folder):
        with pytest.raises(UserError, match="unknown dataset 'tinny'; did you mean 'tiny'"):
            fetch_dataset("tinny", folder)


class TestStopped:
    def test_it_goes_on_with_the_archive_that_is_missing(self, server, folder, enter):
        server.answers = [send(IMAGES), fail(404)]
        assert f"put the file at {folder / 'tiny' / 'masks.zip'} by hand" in message_of(folder)
        assert not is_here(enter(), folder)
        server.answers = [send(MASKS)]
        require_fetched(folder)
        assert len(server.asked) == 3

    def test_a_published_md5_lets_a_part_go_on_without_a_tag(self, server, folder):
        (folder / "tiny").mkdir(parents=True)
        (folder / "tiny" / "images.zip.part").write_bytes(IMAGES[:1000])
        require_fetched(folder)
        assert [headers.get("Range") for headers in server.asked] == ["bytes=1000-", None]

    def test_a_killed_process_goes_on(self, server, folder, enter):
        server.answers = [send(IMAGES), send(MASKS, upto=50, stall=True), send(MASKS)]
        child = subprocess.Popen([sys.executable, "-c", CHILD, enter().model_dump_json(), folder])
        assert server.halted.wait(30)
        child.kill()
        child.wait()
        assert not is_here(enter(), folder)
        require_fetched(folder)

    def test_a_killed_process_leaves_no_half_of_an_archive(self, folder, enter, server):
        code = f"import os\nfrom redfree.data import archives\narchives.track = lambda *_: os._exit(9)\n{CHILD}"
        child = subprocess.run([sys.executable, "-c", code, enter().model_dump_json(), folder], check=False)
        assert child.returncode == 9
        assert contents(folder) == {}
        server.answers = [send(MASKS)]
        require_fetched(folder)

    def test_who_waits_fetches_nothing(self, server, folder, monkeypatch):
        monkeypatch.setattr(sys, "stderr", told := io.StringIO())
        server.answers = [send(IMAGES, upto=50, stall=True), send(IMAGES), send(MASKS), fail(404)]
        threads = [threading.Thread(target=fetch_dataset, args=("tiny", folder, QUICK)) for _ in range(2)]
        threads[0].start()
        assert server.halted.wait(5)
        threads[1].start()
        while not told.getvalue().endswith("\n"):
            assert threads[1].is_alive()
        server.over.set()
        for thread in threads:
            thread.join()
        assert told.getvalue() == f"waiting for another process that fetches {folder / 'tiny' / 'fetched.json'}\n"
        assert len(server.asked) == 3
        assert contents(folder) == FILES

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"archives": {"images.zip": {}}}'])
    def test_a_broken_marker_is_named(self, folder, text):
        (folder / "tiny").mkdir(parents=True)
        (folder / "tiny" / "fetched.json").write_text(text)
        assert message_of(folder).startswith(f"{folder / 'tiny' / 'fetched.json'}: not a marker of redfree (")

    def test_an_evil_archive_leaves_nothing(self, server, folder, enter):
        body = zip_bytes({"../evil": b"evil"})
        enter(archives=[{"url": server.url, "filename": "tiny.pth.zip", "source": "this test"}])
        server.answers = [send(body)]
        assert "member '../evil' leads out of the folder" in message_of(folder)
        assert not (folder / "evil").exists()


class TestByHand:
    def test_the_way_is_told_until_it_is_there(self, server, folder, enter):
        about = enter(archives=[], licence="none stated", terms="ask the owner")
        assert fetch_dataset("tiny", folder) == instructions(about, folder)
        assert not folder.exists()
        assert instructions(about, folder).splitlines() == [
            "tiny: no open download; get it from its owner",
            "page:    https://example.org/tiny",
            "licence: none stated",
            "terms:   ask the owner",
            f"unpack it into {folder / 'tiny'}, so that it holds:",
            "  images/a.jpg",
            "  masks/a.png",
        ]
        (folder / "tiny" / "images").mkdir(parents=True)
        assert fetch_dataset("tiny", folder) == folder / "tiny"
        assert server.asked == []

    def test_hidden_files_are_no_dataset(self, folder, enter):
        (folder / "tiny").mkdir(parents=True)
        (folder / "tiny" / ".DS_Store").touch()
        assert not is_here(enter(archives=[]), folder)

    def test_what_is_the_users_own_has_no_place(self, folder, enter):
        about = enter(archives=[], place="path", page=None)
        told = "tiny: nothing to fetch, pass the path of your own:\n  images/a.jpg\n  masks/a.png"
        assert fetch_dataset("tiny", folder) == told
        assert not is_here(about, folder)

    def test_what_a_package_has_is_here(self, folder, enter):
        about = enter(archives=[], place="package", tree="")
        assert fetch_dataset("tiny", folder) == "tiny: nothing to fetch (no restriction)"
        assert is_here(about, folder)
