import hashlib
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import requests
from fileserver import BODY, fail, reply, send, serving

from redfree import download as module
from redfree.download import Patience
from redfree.errors import UserError
from redfree.models import checkpoints as registry
from redfree.models.checkpoints import Checkpoint
from redfree.models.fetch import fetch
from redfree.published import MismatchError

HALF = len(BODY) // 2
SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(timeout=10, attempts=3, backoff=0)
SHORT = Patience(timeout=0.3, attempts=3, backoff=0)
CHILD = """
import sys
from pathlib import Path
from redfree.models import checkpoints
from redfree.models.fetch import fetch
entry = checkpoints.Checkpoint.model_validate_json(sys.argv[1])
checkpoints.checkpoints = lambda: {"tiny": entry}
print(fetch("tiny", Path(sys.argv[2])))
"""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def enter(monkeypatch, server):
    """Makes "tiny" the one entry of the registry, with the facts of `BODY` but for the given ones."""

    def enter(**changes):
        facts = {"name": "tiny", "family": "sam", "url": server.url, "filename": "tiny.pth", "bytes": len(BODY)}
        facts |= {"sha256": SHA256, "licence": "MIT", "source": "this test"}
        entry = Checkpoint(**{**facts, **changes})
        monkeypatch.setattr(registry, "checkpoints", lambda: {"tiny": entry})
        return entry

    enter()
    return enter


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def leave_part(folder, part, tag):
    folder.mkdir()
    (folder / "tiny.pth.part").write_bytes(part)
    if tag:
        (folder / "tiny.pth.part.etag").write_text(tag)


def ranges_of(server):
    return [headers.get("Range") for headers in server.asked]


def message_of(folder, patience=QUICK, kind=UserError):
    with pytest.raises(kind) as caught:
        fetch("tiny", folder, patience)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def require_fetched(folder):
    assert fetch("tiny", folder, QUICK).read_bytes() == BODY
    assert left(folder) == ["tiny.pth"]


class TestWhole:
    def test_a_file_comes_once_and_is_silent(self, server, folder, capfd):
        require_fetched(folder)
        require_fetched(folder)
        assert ranges_of(server) == [None]
        assert server.asked[0]["Accept-Encoding"] == "identity"
        assert capfd.readouterr() == ("", "")

    def test_a_terminal_sees_a_bar(self, folder, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "120")
        require_fetched(folder)
        out, err = capsys.readouterr()
        assert (out, "524.3/524.3 kB" in err) == ("", True)

    def test_redirects_are_followed_to_an_end(self, server, folder):
        moved = partial(reply, status=302, headers={"Location": "/elsewhere", "Content-Length": 0})
        server.answers = [moved]
        assert f"put the file at {folder / 'tiny.pth'} by hand" in message_of(folder)
        server.answers = [moved, send()]
        require_fetched(folder)

    def test_no_redirect_leaves_https(self):
        response = requests.Response()
        response.status_code, response.url = 302, "https://example.org/a"
        response.headers["location"] = "//example.com"
        assert module._Session().get_redirect_target(response) == "//example.com"
        response.headers["location"] = "HTTP://example.org/a"
        with pytest.raises(requests.RequestException, match="from https to HTTP://"):
            module._Session().get_redirect_target(response)

    @pytest.mark.parametrize("body", [BODY[:-1], BODY[::-1]])
    def test_a_file_put_there_by_hand_is_verified(self, server, folder, body):
        folder.mkdir()
        (folder / "tiny.pth").write_bytes(body)
        assert message_of(folder).startswith(f"{folder / 'tiny.pth'}: ")
        assert "remove the file" in message_of(folder)
        assert left(folder) == ["tiny.pth"]
        (folder / "tiny.pth").write_bytes(BODY)
        require_fetched(folder)
        assert server.asked == []

    def test_what_comes_without_a_published_hash_is_locked(self, server, folder, enter):
        enter(bytes=None, sha256=None)
        path = fetch("tiny", folder, QUICK)
        lock = json.loads((folder / "tiny.pth.sha256.json").read_text())
        assert lock["sha256"] == SHA256
        path.unlink()
        server.answers = [send(BODY[::-1])]
        message = message_of(folder, kind=MismatchError)
        assert message.startswith(server.url)
        assert f"expected {SHA256} (locked on {lock['date']}" in message
        assert left(folder) == ["tiny.pth.sha256.json"]

    def test_processes_download_once(self, server, folder, enter):
        arguments = [sys.executable, "-c", CHILD, enter().model_dump_json(), folder]
        server.answers = [send()]
        children = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [child.communicate()[0] for child in children] == [f"{folder / 'tiny.pth'}\n"] * 2
        assert len(server.asked) == 1
        assert left(folder) == ["tiny.pth"]

    def test_who_waits_is_told_so_and_downloads_nothing(self, server, folder, monkeypatch):
        monkeypatch.setattr(sys, "stderr", told := io.StringIO())
        server.answers = [send(upto=HALF, stall=True)]
        first = threading.Thread(target=fetch, args=("tiny", folder, Patience(timeout=5, backoff=0)))
        second = threading.Thread(target=fetch, args=("tiny", folder, QUICK))
        first.start()
        assert server.halted.wait(5)
        second.start()
        while not told.getvalue().endswith("\n"):
            assert second.is_alive()
        server.answers = [send()]
        server.over.set()
        first.join()
        second.join()
        assert told.getvalue() == f"waiting for another process that fetches {folder / 'tiny.pth'}\n"
        assert ranges_of(server) == [None, f"bytes={HALF}-"]


class TestBrokenOff:
    @pytest.mark.parametrize(("stall", "reason"), [(False, "the connection closed early"), (True, "nothing came for")])
    def test_giving_up_keeps_what_came(self, server, folder, stall, reason):
        server.answers = [send(upto=HALF, stall=stall)]
        message = message_of(folder, SHORT)
        assert message.startswith(f"{server.url}: {reason}")
        assert f"3 times in a row; run the command again to go on from byte {HALF}" in message
        assert left(folder) == ["tiny.pth.part", "tiny.pth.part.etag"]
        server.answers = [send()]
        require_fetched(folder)
        assert ranges_of(server) == [None] + [f"bytes={HALF}-"] * 3
        assert server.asked[-1]["If-Range"] == '"v1"'

    def test_no_answer_is_tried_again(self, server, folder):
        server.answers = [lambda h: None, lambda h: h.server.over.wait(0.6), send()]
        assert fetch("tiny", folder, SHORT).read_bytes() == BODY
        assert len(server.asked) == 3

    def test_a_killed_process_goes_on(self, server, folder, enter):
        server.answers = [send(upto=HALF, stall=True), send()]
        child = subprocess.Popen([sys.executable, "-c", CHILD, enter().model_dump_json(), folder])
        assert server.halted.wait(30)
        part = folder / "tiny.pth.part"
        while not (part.exists() and part.stat().st_size == HALF):
            assert child.poll() is None
        child.kill()
        child.wait()
        require_fetched(folder)
        assert ranges_of(server) == [None, f"bytes={HALF}-"]


FROM_HALF, FROM_END = f"bytes={HALF}-", f"bytes={len(BODY)}-"
UNKNOWN = {"bytes": None, "sha256": None}
# What is left of an earlier try and its tag; facts of the entry; answers; ranges asked for.
PARTS = {
    "a hash stands in for a tag": (BODY[:HALF], None, {}, [send()], [FROM_HALF]),
    "neither tag nor hash": (BODY[:HALF], None, UNKNOWN, [send()], [None]),
    "changed": (bytes(HALF), '"v0"', {}, [send()], [FROM_HALF]),
    "changed, no hash": (bytes(HALF), '"v0"', UNKNOWN, [send()], [FROM_HALF]),
    "changed, If-Range ignored": (bytes(HALF), '"v0"', UNKNOWN, [send(heeds=False), send()], [FROM_HALF, None]),
    "no ranges": (BODY[:HALF], '"v1"', {}, [send(ranges=False)], [FROM_HALF]),
    "range from 0": (BODY[:HALF], '"v1"', {}, [send(**{"Content-Range": "bytes 0-9/10"}), send()], [FROM_HALF, None]),
    "range not said": (BODY[:HALF], '"v1"', {}, [send(**{"Content-Range": None}), send()], [FROM_HALF, None]),
    "whole": (BODY, '"v1"', {}, [send()], []),
    "whole, size unknown": (BODY, '"v1"', UNKNOWN, [send()], [FROM_END]),
    "too long": (BODY + b"more", '"v1"', {}, [send()], [None]),
    "too long, size unknown": (BODY + b"more", '"v1"', UNKNOWN, [send()], [f"bytes={len(BODY) + 4}-", None]),
    "cut": (b"", None, UNKNOWN, [send(upto=HALF), send()], [None, FROM_HALF]),
    "stalled": (b"", None, UNKNOWN, [send(upto=HALF, stall=True), send()], [None, FROM_HALF]),
    "cut, no length": (b"", None, {}, [send(upto=HALF, **{"Content-Length": None}), send()], [None, FROM_HALF]),
    "weak tag": (b"", None, UNKNOWN, [send(upto=HALF, tag='W/"v1"'), send(tag='W/"v1"')], [None, None]),
}


@pytest.mark.parametrize("case", PARTS)
def test_what_was_left_is_used_only_where_it_belongs(server, folder, enter, case):
    part, tag, facts, answers, ranges = PARTS[case]
    enter(**facts)
    leave_part(folder, part, tag)
    server.answers = list(answers)
    assert fetch("tiny", folder, SHORT if case == "stalled" else QUICK).read_bytes() == BODY
    assert ranges_of(server) == ranges
    asked = server.asked[0].get("If-Range") if server.asked else None
    assert asked == (tag if ranges and ranges[0] else None)
    assert {"tiny.pth"} == set(left(folder)) - {"tiny.pth.sha256.json"}


PAGE = "{url}: sent a web page, not the file; "
NO_SIZE = "{url}: sends no size, or an empty file; put the file at {target} by hand"
# The answer; facts of the entry; the beginning of the message.
REFUSED = {
    "page by its type": (send(b"<p>consent</p>", kind="text/html; charset=utf-8"), {}, PAGE),
    "page by its beginning": (send(b"\xef\xbb\xbf\n <!DOCTYPE html>"), {}, PAGE),
    "page of unknown type": (send(b"<HTML lang=en>", kind=None), {}, PAGE),
    "page in place of a file of unknown size": (send(b"<html>"), UNKNOWN, PAGE),
    "encoded": (send(**{"Content-Encoding": "br"}), {}, "{url}: sent with content encoding br; "),
    "short": (send(BODY[:-1]), {}, "{url}: offers 524287 bytes, but tiny has 524288; put the file at {target} by hand"),
    "long": (send(BODY + b"more"), {}, "{url}: offers 524292 bytes, but tiny has 524288; "),
    "no size": (send(**{"Content-Length": None}), UNKNOWN, NO_SIZE),
    "empty": (send(b""), UNKNOWN, NO_SIZE),
    "404": (fail(404), {}, "{url}: HTTP 404 Not Found; download it elsewhere and put the file at {target} by hand"),
    "403": (fail(403), {}, "{url}: HTTP 403 Forbidden; "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_file_is_refused_at_once(server, folder, enter, case):
    answer, facts, message = REFUSED[case]
    enter(**facts)
    leave_part(folder, BODY[:HALF], '"v0"')
    server.answers = [answer]
    assert message_of(folder).startswith(message.format(url=server.url, target=folder / "tiny.pth"))
    assert len(server.asked) == 1
    assert (folder / "tiny.pth.part").read_bytes() == BODY[:HALF]


class TestRefused:
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (send(BODY[::-1]), f"{hashlib.sha256(BODY[::-1]).hexdigest()}, expected {SHA256} (published)"),
            (send(BODY + b"more", **{"Content-Length": None}), f"{len(BODY) + 4} bytes, but tiny has {len(BODY)}"),
        ],
    )
    def test_what_proves_wrong_is_removed(self, server, folder, answer, reason):
        server.answers = [answer]
        message = message_of(folder, kind=MismatchError)
        assert message.startswith(server.url)
        assert message.endswith(f"{reason}; it was removed: run the command again to start afresh")
        assert left(folder) == []

    def test_a_server_error_is_tried_again(self, server, folder, monkeypatch):
        waits = []
        monkeypatch.setattr(module.time, "sleep", waits.append)
        server.answers = [fail(500)]
        message = message_of(folder, Patience(attempts=4, backoff=0.5))
        assert message.startswith(f"{server.url}: HTTP 500 Internal Server Error, 4 times in a row; run the command")
        assert waits == [0.5, 1, 2]
        server.answers = [fail(500), fail(503), send()]
        require_fetched(folder)

    def test_offline_is_one_line_at_once(self, folder, enter):
        url = enter(url="http://127.0.0.1:1/tiny.pth").url
        message = message_of(folder, Patience(backoff=60))
        assert message.startswith(f"{url}: cannot be reached ([Errno ")
        assert message.endswith(f"run the command again, or put the file at {folder / 'tiny.pth'} by hand")

    def test_a_network_that_goes_away_may_come_back(self, server, folder, monkeypatch):
        tries = []

        def lose(*arguments, **keywords):
            tries.append(arguments)
            if len(tries) == 2:
                raise socket.gaierror(-2, "Name or service not known")
            return resolve(*arguments, **keywords)

        resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lose)
        server.answers = [send(upto=HALF), send()]
        require_fetched(folder)
        assert len(tries) == 3

    def test_a_full_disk_is_seen_before(self, folder, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=HALF - 1))
        assert message_of(folder).startswith(f"{folder}: {HALF - 1} bytes free, tiny needs {len(BODY)}; ")
        assert left(folder) == []
        (folder / "tiny.pth.part").write_bytes(BODY[:HALF])
        assert f"tiny needs {HALF}; " in message_of(folder)

    def test_a_disk_that_fills_up_is_one_line(self, folder, monkeypatch):
        folder.mkdir()
        (folder / "tiny.pth.part").symlink_to("/dev/full")
        monkeypatch.setattr(module._Download, "_begin", lambda *_: None)
        message = message_of(folder)
        assert message == f"{folder / 'tiny.pth.part'}: No space left on device; free space or choose another folder"

    def test_a_gated_file_is_not_asked_for(self, server, folder, enter):
        page = "https://example.org/consent"
        enter(url=None, page=page, gated=True, licence="Own License", sha256=None, sha256_prefix=SHA256[:8])
        message = message_of(folder)
        assert all(part in message for part in ("tiny", "Own License", page, "--checkpoint PATH"))
        assert not folder.exists()
        folder.mkdir()
        (folder / "tiny.pth").write_bytes(BODY)
        assert fetch("tiny", folder) == folder / "tiny.pth"
        assert server.asked == []
