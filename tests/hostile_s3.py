"""A proxy of an S3 server that injects the faults which clients have to expect."""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from .s3_server import s3_server

FAULTS = ("cut", "unanswered", "refused")
"""Only half of a request is read; its response is lost; the request is refused."""
LATE = 5.0
"""Seconds for which an outdated listing is returned."""


class Faults:
    """The faults of requests: random ones at a rate, or a fault of each request."""

    def __init__(self, seed: int, rate: float) -> None:
        self._dice = random.Random(seed)
        self._rate = rate
        self._lock = threading.Lock()
        self._listings: dict[str, tuple[float, int, list[tuple[str, str]], bytes]] = {}
        self.away = False
        """Whether each request fails."""
        self.counts: dict[str, int] = {}

    def next(self) -> str | None:
        """The fault of the next request, or None."""
        with self._lock:
            fault = self._dice.choice(FAULTS)
            if not self.away and self._dice.random() >= self._rate:
                return None
            self.counts[fault] = self.counts.get(fault, 0) + 1
            return "refused" if self.away else fault

    def listing(
        self, path: str, now: tuple[int, list[tuple[str, str]], bytes]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """A response to a request for a listing, which can be an earlier one."""
        with self._lock:
            made, *before = self._listings.get(path, (0.0, *now))
            if time.monotonic() - made < LATE:
                self.counts["late"] = self.counts.get("late", 0) + 1
                return before  # type: ignore[return-value]
            self._listings[path] = (time.monotonic(), *now)
            return now


def _handler(faults: Faults, address: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            fault = faults.next()
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length // 2 if fault == "cut" else length)
            if fault == "cut":
                self.close_connection = True
                return
            if fault == "refused":
                self.answer(503, [("Content-Type", "application/xml")], b"<Error/>")
                return
            answer = self.response(body)
            if fault == "unanswered":
                self.close_connection = True
                return
            if self.command == "GET" and "list-type=" in self.path:
                answer = faults.listing(self.path, answer)
            self.answer(*answer)

        def response(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            there = http.client.HTTPConnection(address, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name != "Expect"}
                there.request(self.command, self.path, body, headers)
                got = there.getresponse()
                return got.status, got.getheaders(), got.read()
            finally:
                there.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            hop = ("connection", "transfer-encoding", "content-length")
            kept = {name.lower(): value for name, value in headers}
            for name, value in kept.items():
                if name not in hop:
                    self.send_header(name, value)
            length = kept.get("content-length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore errors of connections, which the faults cause."""


@contextmanager
def hostile_s3(seed: int, rate: float) -> Iterator[tuple[str, Faults]]:
    """The URL of a bucket, and its faults; ``rate`` is the share of requests with a fault."""
    with s3_server() as url:
        address = urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
        faults = Faults(seed, rate)
        with _Server(("127.0.0.1", 0), _handler(faults, address)) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                with pytest.MonkeyPatch.context() as patched:
                    patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
                    yield url, faults
            finally:
                server.shutdown()
                thread.join()
