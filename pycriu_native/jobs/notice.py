"""Notices of a coming interruption, from a command or a URL that is polled.

Exit status 0 of the command, or HTTP status 200, is a notice, except with these texts:
``FALSE`` (Google's ``instance/preempted``), or a JSON object without ``Events`` (Azure's scheduled
events). A JSON object with a ``time`` or ``NotBefore`` (Amazon's ``spot/instance-action``) has
the time of the interruption.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

from .._support.unpatched import Event, Thread

EVERY = 5.0
"""Seconds between two attempts."""
PATIENCE = 4.0
"""Timeout of an attempt, in seconds."""
NONE = ("false", "none", "null", "no")
"""Texts that do not announce an interruption."""


class NoticeWatch:
    """A thread that polls for a notice, and then writes one byte to a descriptor."""

    def __init__(self, source: str | None, woken: int) -> None:
        self._source = source
        self._woken = woken
        self._over = Event()
        self._thread: Any = None
        self.text = ""
        self.until: float | None = None
        self.vague = True
        """Whether there is a notice without a time."""

    @property
    def left(self) -> float | None:
        """Remaining seconds; None without a notice."""
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def __enter__(self) -> NoticeWatch:
        if self._source is not None:
            self._thread = Thread(target=self._watch, name="notice", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self._source is not None
        while not self._over.is_set():
            text = attempt(self._source)
            if text is not None:
                left = seconds_left(text)
                self.vague = left is None
                self.text = " ".join(text.split())[:200]
                self.until = time.monotonic() + (float("inf") if left is None else left)
                with contextlib.suppress(OSError):
                    os.write(self._woken, b"\0")
                return
            self._over.wait(EVERY)


def attempt(source: str) -> str | None:
    """The text of a notice; None if there is none, or the attempt fails."""
    is_url = source.startswith(("http://", "https://"))
    text = _fetched(source) if is_url else _printed(source)
    if text is None or text.strip().lower() in NONE:
        return None
    with contextlib.suppress(ValueError):
        body = json.loads(text)
        if isinstance(body, dict) and body.get("Events") == []:
            return None
    return text


def _fetched(url: str) -> str | None:
    headers = {"Metadata": "true", "Metadata-Flavor": "Google"}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return (
                bytes(answer.read(65536)).decode(errors="replace") if answer.status == 200 else None
            )
    except (OSError, ValueError):
        return None


def _printed(command: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def seconds_left(text: str) -> float | None:
    """The seconds until the interruption; None if the text has no time."""
    try:
        body: Any = json.loads(text)
    except ValueError:
        return None
    if isinstance(body, dict) and body.get("Events"):
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
