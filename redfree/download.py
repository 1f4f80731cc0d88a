"""Downloading: goes on where it was stopped, and keeps nothing that is not the published file."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import MaxRetryError, ReadTimeoutError

from redfree.errors import UserError
from redfree.published import MismatchError, PublishedFile, verify_file

_CHUNK_BYTES = 1 << 16
_PAGE_BEGINNINGS = (b"<!doctype", b"<html")
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How long a download waits and how often it tries.

    Attributes:
        timeout: seconds without an answer or a byte, above 0, after which a connection is given up.
        attempts: tries, from 1; each goes on where the one before stopped.
        backoff: seconds before the second try, from 0; doubled before each further one.
    """

    timeout: float = 30.0
    attempts: int = 5
    backoff: float = 1.0


PATIENCE = Patience()


def download(file: PublishedFile, url: str, target: Path, patience: Patience = PATIENCE) -> str:
    """Downloads a file, unless it is already there, and checks its size and hash.

    What came before an interruption is kept as `<target>.part`, and a later call asks only for the rest. Processes
    that download to the same target wait for the one that does. A file put there by hand will do.

    Args:
        file: what is published of it.
        url: where it is, http or https.
        target: where it goes; its folder is made if it is missing.
        patience: timeout and number of tries.

    Returns:
        The SHA-256 of the file, 64 hex digits, computed in this call.

    Raises:
        MismatchError: the file that is there, or that came, has another size or hash than published or locked.
        UserError: the server cannot be reached, refuses, breaks off every time or sends something else; or there is
            too little space.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target):
            if not target.exists():
                with _Session() as session:
                    return _Download(session, file, url, target, patience).run()
    return verify_file(target, file)


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keeps other processes that fetch the same target waiting, and tells them so on standard error."""
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.stderr.write(f"waiting for another process that fetches {target}\n")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _BrokenOffError(Exception):
    """What a further try may mend."""

    def __init__(self, reason: str, *, offline: bool = False) -> None:
        super().__init__(reason)
        self.offline = offline


class _Session(requests.Session):
    """A session that no redirect leads from https to http."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target and urlsplit(target).scheme == "http" and urlsplit(resp.url).scheme == "https":
            raise requests.exceptions.InvalidURL(f"redirected from https to {target}, which is refused")
        return target


class _Download:
    """One file on its way, and what of it has come: `.part`, with the tag of the version that it is a part of."""

    def __init__(
        self, session: requests.Session, file: PublishedFile, url: str, target: Path, patience: Patience
    ) -> None:
        self._session, self._file, self._url = session, file, url
        self._target, self._patience = target, patience
        self._part = target.with_name(f"{target.name}.part")
        self._tag = target.with_name(f"{target.name}.part.etag")

    def run(self) -> str:
        for attempt in count(1):
            try:
                self._receive()
                break
            except _BrokenOffError as error:
                # Without a network at the start nothing is gained by waiting; after that it may come back.
                if attempt >= self._patience.attempts or (attempt == 1 and error.offline):
                    raise UserError(self._given_up(str(error), attempt)) from None
            time.sleep(self._patience.backoff * 2 ** (attempt - 1))
        return self._keep()

    def _given_up(self, reason: str, attempts: int) -> str:
        tries = f", {attempts} times in a row" if attempts > 1 else ""
        rest = f" to go on from byte {start}" if (start := self._resumable()) else ""
        return f"{self._url}: {reason}{tries}; run the command again{rest}, or {self._by_hand()}"

    def _by_hand(self) -> str:
        return f"put the file at {self._target} by hand"

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _kept_tag(self) -> str | None:
        return self._tag.read_text("utf-8") if self._tag.exists() else None

    def _receive(self) -> None:
        start = self._resumable()
        if start == self._file.bytes:
            return  # stopped between the last byte and the check
        response, start = self._open(start)
        with response:
            if response.status_code == 416:
                return
            chunks = self._chunks(response)
            self._require_file(response, first := next(chunks, b""))
            total = self._total(response)
            self._require_space(total - start)
            if not start:
                self._begin(response.headers.get("ETag"))
            self._save(chain([first], chunks), start, total)
        if self._size() < total:
            raise _BrokenOffError("the connection closed early")

    def _resumable(self) -> int:
        size, whole = self._size(), self._file.bytes
        # Parts of two versions would be one file: only the tag or a published hash can tell.
        trusted = self._kept_tag() is not None or self._file.hashed
        return size if trusted and (whole is None or size <= whole) else 0

    def _open(self, start: int) -> tuple[requests.Response, int]:
        """The response, and the byte of the file that its body begins with; of status 416, all bytes are there."""
        response = self._get(start)
        if (response.status_code == 206 and self._continues(response, start)) or (
            response.status_code == 416 and _content_range(response) == (None, start)
        ):
            return response, start
        if response.status_code in {206, 416}:
            response.close()
            response = self._get(0)
        if response.status_code != 200:
            response.close()
            self._refuse(response)
        return response, 0

    def _get(self, start: int) -> requests.Response:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if (tag := self._kept_tag()) is not None:
                headers["If-Range"] = tag
        try:
            return self._session.get(self._url, headers=headers, stream=True, timeout=self._patience.timeout)
        except requests.ReadTimeout:
            raise _BrokenOffError(f"no answer for {self._patience.timeout:g} s") from None
        except requests.ConnectionError as error:
            raise _connection_error(error) from None
        except requests.RequestException as error:
            raise UserError(f"{self._url}: {error}; {self._by_hand()}") from None

    def _continues(self, response: requests.Response, start: int) -> bool:
        kept, sent = self._kept_tag(), response.headers.get("ETag")
        return _content_range(response)[0] == start and (kept is None or sent in {None, kept})

    def _refuse(self, response: requests.Response) -> NoReturn:
        reason = f"HTTP {response.status_code} {response.reason}"
        if response.status_code in _RETRIED:
            raise _BrokenOffError(reason)
        raise UserError(f"{self._url}: {reason}; download it elsewhere and {self._by_hand()}")

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_content(_CHUNK_BYTES)
        except requests.RequestException as error:
            stalled = bool(error.args) and isinstance(error.args[0], ReadTimeoutError)
            reason = f"nothing came for {self._patience.timeout:g} s" if stalled else "the connection closed early"
            raise _BrokenOffError(reason) from None

    def _require_file(self, response: requests.Response, beginning: bytes) -> None:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" or beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_BEGINNINGS):
            raise UserError(f"{self._url}: sent a web page, not the file; open it in a browser, and {self._by_hand()}")
        # An encoded body has other bytes than the file, and its ranges are not the file's.
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise UserError(f"{self._url}: sent with content encoding {encoding}; {self._by_hand()}")

    def _total(self, response: requests.Response) -> int:
        """Bytes of the whole file."""
        offered, published = _offered(response), self._file.bytes
        if None not in {offered, published} and offered != published:
            name = self._file.name
            raise UserError(f"{self._url}: offers {offered} bytes, but {name} has {published}; {self._by_hand()}")
        if not (total := published or offered):
            # Without a size a cut would pass for the end, and be locked where no hash is published.
            raise UserError(f"{self._url}: sends no size, or an empty file; {self._by_hand()}")
        return total

    def _require_space(self, needed: int) -> None:
        folder = self._target.parent
        if (free := shutil.disk_usage(folder).free) < needed:
            name = self._file.name
            raise UserError(f"{folder}: {free} bytes free, {name} needs {needed}; free space or choose another folder")

    def _save(self, chunks: Iterator[bytes], start: int, total: int) -> None:
        try:
            with _progress(self._file.name, start, total) as advance, self._part.open("ab") as file:
                for chunk in chunks:
                    file.write(chunk)
                    advance(len(chunk))
        except OSError as error:  # a quota does not show in the free space
            raise UserError(f"{self._part}: {error.strerror}; free space or choose another folder") from None

    def _begin(self, tag: str | None) -> None:
        self._discard()
        # A weak tag promises the same meaning, not the same bytes.
        if tag is not None and not tag.startswith("W/"):
            self._tag.write_text(tag, "utf-8")

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)

    def _keep(self) -> str:
        mend = "it was removed: run the command again to start afresh"
        try:
            found = verify_file(self._part, self._file, self._target.parent, mend)
        except MismatchError as error:
            self._discard()
            raise MismatchError(f"{self._url}: {error}") from None
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._part, self._target)
        self._tag.unlink(missing_ok=True)
        return found


def _connection_error(error: requests.ConnectionError) -> _BrokenOffError:
    cause = error.args[0] if error.args else error
    if not isinstance(cause, MaxRetryError):
        return _BrokenOffError("the connection closed early")
    # The text before the last colon repeats host and port, which the URL names.
    reason = str(cause.reason).rpartition(": ")[2]
    return _BrokenOffError(f"cannot be reached ({reason})", offline=True)


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and size of the whole file, each null where the server does not say."""
    header = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", header.strip())
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _offered(response: requests.Response) -> int | None:
    """Bytes of the whole file by the response; null where it does not say."""
    if response.status_code == 206:
        return _content_range(response)[1]
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


@contextmanager
def _progress(description: str, done: int, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes with rate and time left on standard error, silent where that is no terminal."""
    size, rate, left = DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), size, rate, left)
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, completed=done, total=total)
        yield lambda received: progress.update(task, advance=received)
