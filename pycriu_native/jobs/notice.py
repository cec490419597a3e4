"""Notices of a coming interruption, from a command or a URL that is polled.

Exit status 0 of the command, or HTTP status 200, is a notice, except with these texts:
``FALSE`` (Google's ``instance/preempted``), or a JSON object without ``Events`` (Azure's scheduled
events). A JSON object with a ``time`` or ``NotBefore`` (Amazon's ``spot/instance-action``) has
the time of the interruption.

Another exit status of the command, or HTTP status 404, is no notice. An attempt fails if the
command cannot be run, is ended by a signal or takes too long, or if the URL cannot be reached or
has another HTTP status.

Amazon's instance metadata service responds with 401 to a request without a session token (IMDSv2).
A token is then requested by ``PUT /latest/api/token``, and sent with later requests.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Self
from urllib.parse import urlsplit

from .._support.closing import Closing
from .._support.json_values import json_object
from .._support.signal_names import signal_name
from .._support.unpatched import Event, Thread
from ..errors import OptionError, Problem

EVERY = 5.0
"""Seconds between two attempts."""
PATIENCE = 4.0
"""Timeout of an attempt, in seconds."""
NONE = ("false", "none", "null", "no")
"""Texts that do not announce an interruption."""

CANNOT_BE_RUN = (126, 127)
"""Exit statuses of a shell for a command that is not executable or not found (POSIX)."""

TOKEN_PATH = "/latest/api/token"
TOKEN = "X-aws-ec2-metadata-token"
TOKEN_SECONDS = "21600"
"""The lifetime of a session token of Amazon's metadata service; its maximum, six hours."""


class NoticeError(Exception):
    """An attempt has failed: it is not known whether there is a notice."""


def check_source(source: str) -> None:
    """Raise ``OptionError`` for a command that does not exist, or an incomplete URL.

    Only the first word of a command is checked, and only if it is not quoted or expanded.
    """
    if _is_url(source):
        try:
            rule = None if urlsplit(source).hostname else "this URL has no host"
        except ValueError as error:  # an unclosed bracket, for example
            rule = f"a URL is accepted: {error}"
    else:
        word = re.match(r"\s*([\w./+-]+)(?=[\s;|&]|$)", source)
        shell = ["sh", "-c", 'command -v -- "$1"', "sh", word[1] if word else "true"]
        known = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        rule = f"the command {word[1]!r} does not exist" if word and known.returncode else None
        if not source.strip():
            rule = "a command or a URL is accepted"
    if rule is not None:
        raise OptionError([Problem("notice", source, rule)], verb="run")


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


class NoticeWatch(Closing):
    """A thread that polls for a notice, and writes one byte to a descriptor if there is one.

    It also writes one if attempts begin or cease to fail.
    """

    def __init__(self, source: str | None, woken: int) -> None:
        self._source = None if source is None else NoticeSource(source)
        self._woken = woken
        self._over = Event()
        self.text = ""
        self.until: float | None = None
        self.failure = ""
        """Why the last attempt has failed; empty if it has not."""

    @property
    def left(self) -> float | None:
        """Remaining seconds; infinite for a notice without a time, None without a notice."""
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def __enter__(self) -> Self:
        if self._source is not None:
            Thread(target=self._watch, name="notice", daemon=True).start()
        return self

    def close(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self._source is not None
        while not self._over.is_set():
            text, failure = None, ""
            try:
                text = self._source.attempt()
            except NoticeError as error:
                failure = str(error)
            # Only now: during an attempt, the failure of the one before is known.
            before, self.failure = self.failure, failure
            if text is not None:
                left = seconds_left(text)
                self.text = " ".join(text.split())[:200]
                self.until = time.monotonic() + (float("inf") if left is None else left)
                self._wake()
                return
            if bool(failure) != bool(before):
                self._wake()
            self._over.wait(EVERY)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._woken, b"\0")


class NoticeSource:
    """A command or a URL that announces an interruption."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._token: str | None = None

    def attempt(self) -> str | None:
        """The text of a notice; None if there is none. Raises ``NoticeError``."""
        text = self._fetched() if _is_url(self._source) else self._printed()
        if text is None or text.strip().lower() in NONE:
            return None
        body = json_object(text)
        return None if body is not None and body.get("Events") == [] else text

    def _fetched(self) -> str | None:
        headers = {"Metadata": "true", "Metadata-Flavor": "Google"}
        if self._token is not None:
            headers[TOKEN] = self._token
        status, text = _response(self._source, headers)
        parts = urlsplit(self._source)
        if status == 401 and parts.path.startswith("/latest/"):
            url = f"{parts.scheme}://{parts.netloc}{TOKEN_PATH}"
            status, token = _response(url, {f"{TOKEN}-ttl-seconds": TOKEN_SECONDS}, "PUT")
            if status != 200:
                raise NoticeError(f"PUT {url}: HTTP status {status}")
            self._token = token.strip()
            status, text = _response(self._source, {**headers, TOKEN: self._token})
        if status not in (200, 404):
            raise NoticeError(f"{self._source}: HTTP status {status}")
        return text if status == 200 else None

    def _printed(self) -> str | None:
        try:
            done = subprocess.run(
                self._source,
                shell=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NoticeError(f"{self._source}: no result within {PATIENCE:g} s") from None
        except OSError as error:
            raise NoticeError(f"{self._source}: {error.strerror}") from None
        code = done.returncode
        if code in CANNOT_BE_RUN:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise NoticeError(f"{self._source}: {said or f'exit status {code}'}")
        if code < 0:
            raise NoticeError(f"{self._source}: ended by {signal_name(-code)}")
        return None if code else done.stdout.decode(errors="replace")


def _response(url: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
    """Status and text of a response. Raises ``NoticeError``."""
    try:
        request = urllib.request.Request(url, headers=dict(headers), method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, bytes(answer.read(65536)).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except (OSError, ValueError, HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise NoticeError(f"{url}: {getattr(why, 'strerror', None) or why}") from None


def seconds_left(text: str) -> float | None:
    """The seconds until the interruption; None if the text has no time."""
    body: Any = json_object(text)
    if body is not None and isinstance(body.get("Events"), list) and body["Events"]:
        body = body["Events"][0]
    if not isinstance(body, dict):
        return None
    when = body.get("time") or body.get("NotBefore")
    if not isinstance(when, str):
        return None
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        with contextlib.suppress(ValueError, TypeError):
            moment = read(when)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            left = moment.timestamp() - time.time()
            return left if left > 0 else None  # the clock of this host is wrong, or it is late
    return None
