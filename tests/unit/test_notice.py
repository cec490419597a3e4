"""Notices of a coming interruption: which text is one, the time that it leaves, and failures."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pycriu_native import OptionError
from pycriu_native.jobs.notice import (
    NoticeError,
    NoticeSource,
    NoticeWatch,
    check_source,
    seconds_left,
)


def _text(seconds: float, key: str) -> str:
    when = datetime.fromtimestamp(time.time() + seconds, UTC)
    if key == "time":
        return json.dumps({"action": "terminate", "time": when.isoformat()})
    return json.dumps({"Events": [{"NotBefore": format_datetime(when, usegmt=True)}]})


@pytest.mark.parametrize("key", ["time", "NotBefore"])
def test_the_time_of_a_notice(key: str) -> None:
    """A notice with a past time has none: the clock of this host is an hour ahead, for example."""
    left = seconds_left(_text(3000, key))
    assert left is not None
    assert 2000 < left <= 3000
    assert seconds_left(_text(-3600, key)) is None


@pytest.mark.parametrize(
    "text",
    [
        *("TRUE", "soon", "[]", '{"time": 5}', '{"time": "soon"}'),
        *('{"Events": {"a": 1}}', '{"Events": [5]}', '{"Events": 5}', "[" * 10**5),
    ],
)
def test_notices_without_a_time(text: str) -> None:
    """A notice without a time is a notice too, also if its text has another form."""
    assert NoticeSource(f"echo '{text}'").attempt() is not None
    assert seconds_left(text) is None


@pytest.mark.parametrize("text", ["FALSE", "none", '{"DocumentIncarnation": 1, "Events": []}'])
def test_what_is_no_notice(text: str) -> None:
    """The responses of services without a notice, and another exit status, are no notice."""
    assert NoticeSource(f"echo '{text}'").attempt() is None
    assert NoticeSource(f"echo '{text}'; exit 1").attempt() is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nonexistent_command --now", "not found"),
        ("/etc/passwd", "ermission denied"),
        ("kill -9 $$", "ended by SIGKILL"),
        ("http://127.0.0.1:1/x", "refused"),
        ("http://127.0.0.1:99999/x", "99999"),
    ],
)
def test_attempts_that_fail(source: str, reason: str) -> None:
    """An attempt that cannot work raises, with the reason: there may be a notice."""
    with pytest.raises(NoticeError, match=reason):
        NoticeSource(source).attempt()


@pytest.mark.parametrize(
    "source", ["nonexistent_command", "nonexistent/x; true", "http:///x", "http://[::1/x", ""]
)
def test_sources_that_are_refused(source: str) -> None:
    """A command that does not exist, and a URL without a host, are refused."""
    with pytest.raises(OptionError, match="notice"):
        check_source(source)


@pytest.mark.parametrize(
    "source",
    [
        "test -e /x",
        "if true; then false; fi",
        "A=1 env",
        "/bin/sh -c x",
        "'sh' x",
        "$HOME/x",
        "! :",
    ],
)
def test_sources_that_are_accepted(source: str) -> None:
    """Programs, words of the shell, and what only the shell can expand, are accepted."""
    check_source(source)


class _Metadata(HTTPServer):
    """Amazon's instance metadata service that requires tokens (IMDSv2)."""

    notice: str | None = None
    token = "token-1"
    status = 0
    """Status of each response; 0: as the service responds."""


class _Handler(BaseHTTPRequestHandler):
    server: _Metadata

    def do_PUT(self) -> None:
        seconds = int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
        assert 1 <= seconds <= 21600
        self._respond(200 if self.path == "/latest/api/token" else 403, self.server.token)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != self.server.token:
            self._respond(401, "")
        elif self.server.notice is None:
            self._respond(404, "")
        else:
            self._respond(200, self.server.notice)

    def _respond(self, status: int, text: str) -> None:
        self.send_response(self.server.status or status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def _metadata() -> Iterator[tuple[_Metadata, str]]:
    with _Metadata(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_session_tokens() -> None:
    """A service that requires a token gets one, and a new one after the first has expired."""
    with _metadata() as (server, url):
        source = NoticeSource(f"{url}/latest/meta-data/spot/instance-action")
        assert source.attempt() is None
        server.notice = _text(100, "time")
        assert source.attempt() == server.notice
        server.token = "token-2"
        assert source.attempt() == server.notice
        server.status = 403
        with pytest.raises(NoticeError, match="HTTP status 403"):
            source.attempt()
        with pytest.raises(NoticeError, match="HTTP status 403"):
            NoticeSource(f"{url}/other").attempt()


def test_failures_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch wakes its reader when attempts begin to fail and cease to, not at each attempt."""
    monkeypatch.setattr("pycriu_native.jobs.notice.EVERY", 0.01)
    read, write = os.pipe()
    with _metadata() as (server, url):
        server.status = 500
        watch = NoticeWatch(f"{url}/latest/meta-data/spot/instance-action", write)
        with watch:
            assert os.read(read, 1) == b"\0"
            assert "500" in watch.failure
            server.status = 0
            assert os.read(read, 1) == b"\0"
            assert not watch.failure
            server.notice = "soon"
            assert os.read(read, 1) == b"\0"
        assert watch.left is not None
    os.close(read)
    os.close(write)


def test_a_failure_remains_until_the_next_attempt_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader does not take a running attempt for one that has not failed."""
    monkeypatch.setattr("pycriu_native.jobs.notice.EVERY", 0.01)
    first, second, go = (tmp_path / name for name in ("first", "second", "go"))
    command = (
        f"[ -e {first} ] || {{ touch {first}; exit 127; }}; touch {second}; "
        f"while [ ! -e {go} ]; do sleep 0.01; done; exit 1"
    )
    read, write = os.pipe()
    with NoticeWatch(command, write) as watch:
        assert os.read(read, 1) == b"\0"
        while not second.exists():
            time.sleep(0.01)
        assert "127" in watch.failure
        go.touch()
        assert os.read(read, 1) == b"\0"
        assert not watch.failure
    os.close(read)
    os.close(write)
