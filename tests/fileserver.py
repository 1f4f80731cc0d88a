"""A file server on this machine that answers by script, for tests of downloads."""

import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = bytes(range(256)) * 2048


class Server(ThreadingHTTPServer):
    """Answers by script: one answer a request, the last of them from then on; keeps what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.halted, self.over = [send()], [], threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/tiny.pth"

    def handle_error(self, request, client_address):
        pass  # clients that are gone belong to these tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        answers = self.server.answers
        self.server.asked.append(self.headers)
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        self.close_connection = True

    def log_message(self, *arguments):
        pass


def reply(handler, status, headers, body=b""):
    handler.send_response(status)
    for name, value in headers.items():
        if value is not None:
            handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)


def send(body=BODY, *, upto=None, stall=False, tag='"v1"', ranges=True, heeds=True, kind="image/x", **headers):
    """Sends a file as object stores do, up to a byte of it; then closes or stalls. `heeds`: If-Range."""

    def answer(handler):
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        wanted = ranges and asked is not None and (condition in (None, tag) or not heeds)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted and start >= len(body):
            return reply(handler, 416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": 0})
        range_of = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if wanted else {}
        facts = {"Content-Length": len(body) - start, "Content-Type": kind, "ETag": tag, **range_of, **headers}
        reply(handler, 206 if wanted else 200, facts, body[start:upto])
        if stall:
            handler.server.halted.set()
            handler.server.over.wait(5)

    return answer


def fail(status):
    return partial(reply, status=status, headers={"Content-Length": 0})


@contextmanager
def serving():
    """A server that runs; callers see to it that no proxy stands before 127.0.0.1."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()
