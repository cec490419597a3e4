"""The lease of a job: at most one of the hosts that share a storage holds it at a time.

Each holder has a token, the number after that of the previous holder. ``leases/TOKEN.json`` is
created exclusively, so that one process gets the token. ``TOKEN.beat`` changes with each renewal. A
lease has expired if it has not changed for its length, measured by the clock of the reader; clocks
of hosts are not compared. A holder that cannot renew its lease ends its job before that
(``lease_holder.py``).

``TOKEN.begun`` lists the valid commits of earlier tokens. It is written after the token was
created, and never changed, so a later commit of a former holder is invalid. A holder commits a
checkpoint, then checks for a higher token, and only then removes an older checkpoint. Therefore the
list of the next holder contains the commit, or the older checkpoint still exists.

If the file system has no exclusive creation, the content of the file after a pause decides between
two processes; then only time limits prevent two holders (``Lease.exclusive``).

Listings can be outdated (caches of mounted directories, some object stores). Tokens are consecutive
and ``TOKEN.json`` is never removed, so the next token is found by name. ``TOKEN.beat`` contains the
name of the newest commit.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._support.json_values import json_object
from .._support.unpatched import Lock
from ..errors import CriuError, ImagesError
from .storage import Storage, UnreadableError

FORMAT = 1


class LeaseLost(CriuError):
    """Another holder has taken over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Last:
    """The newest lease of a storage."""

    token: int = 0
    """0: there is none."""
    about: dict[str, Any] | None = None
    """``TOKEN.json``; None if it is not complete."""
    beat: bytes | None = None
    end: dict[str, Any] | None = None
    """``TOKEN.end``, with which it was released."""


def now() -> float:
    """Seconds since boot, including time in suspension."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def last_lease(storage: Storage) -> Last:
    """The newest lease. ``ImagesError`` for an unknown format."""
    token = _newest(storage)
    if not token:
        return Last()
    about = _read(storage, token, "json")
    if about is not None and about.get("format") != FORMAT:
        raise ImagesError(f"{storage.url} has a job of format {about.get('format')!r}")
    return Last(
        token=token,
        about=about,
        beat=storage.read(_name(token, "beat")),
        end=_read(storage, token, "end"),
    )


def valid_commits(storage: Storage) -> list[str]:
    """The names of the valid commits, in their order.

    Raises ``UnreadableError`` if there are commits, but none of their leases.
    """
    names = storage.names("commits")
    for token in range(_newest(storage), 0, -1):
        begun = _read(storage, token, "begun")
        if begun is not None:
            earlier, beat = begun.get("commits"), _read(storage, token, "beat") or {}
            if not isinstance(earlier, list):
                raise UnreadableError(f"{storage.url} has a lease whose commits are {earlier!r}")
            last = beat.get("commit")
            if not isinstance(last, str | None):
                raise UnreadableError(f"{storage.url} has a lease whose commit is {last!r}")
            valid = {name for name in names if name in earlier or token_of(name) == token}
            return sorted(valid | ({last} if last else set()))
    if names:
        raise UnreadableError(
            f"{storage.url} has checkpoints, but none of their leases, which were removed there; "
            "name another storage to start from the beginning"
        )
    return []


def token_of(commit: str) -> int:
    """The token under which a commit was made."""
    return int(commit.partition("-")[0])


@dataclass(eq=False)
class Lease:
    """A lease that this process holds."""

    storage: Storage
    token: int
    content: bytes
    until: float
    """Time (``now()``) by which the job must have ended if the lease is not renewed."""
    exclusive: bool
    """Whether the storage has exclusive creation of files."""

    def __post_init__(self) -> None:
        self._beat = 0
        self._beat_lock = Lock()
        self._commit: str | None = None

    def begin(self) -> None:
        """Write the list of valid commits, and clear earlier leases; then the job may start."""
        commits = valid_commits(self.storage)
        self.check()
        body = json.dumps({"commits": commits}).encode()
        self.storage.write(_name(self.token, "begun"), body)
        for name in self.storage.names("leases"):
            token, _, part = name.partition(".")
            if int(token) < self.token and part != "json":
                self.storage.remove(f"leases/{name}")

    def renew(self, seconds: float) -> None:
        """Renew the lease for ``seconds`` from now. Raises ``LeaseLost``, and any ``Exception``."""
        began = now()
        self._write_beat()
        self.check()
        self.until = began + seconds

    def committed(self, name: str) -> None:
        """Name the newest commit. Raises as ``renew``."""
        self._commit = name
        self._write_beat()
        self.check()

    def _write_beat(self) -> None:
        with self._beat_lock:
            self._beat += 1
            body = {"beat": self._beat, "commit": self._commit}
            self.storage.write(_name(self.token, "beat"), json.dumps(body).encode())

    def check(self) -> None:
        """Raise ``LeaseLost`` if there is a newer lease."""
        newest = _newest(self.storage)
        lost = newest != self.token
        if not lost and not self.exclusive:
            lost = self.storage.read(_name(self.token, "json")) != self.content
        if lost:
            raise LeaseLost(f"the lease {self.token} of {self.storage.url} was lost to {newest}")

    def give_back(self, **how: Any) -> None:
        """Release it for the next holder; ``how`` is the end of the job."""
        self.storage.write(_name(self.token, "end"), json.dumps(how).encode())


def acquire(
    storage: Storage,
    length: float,
    about: dict[str, Any],
    wait: Callable[[float], object],
    *,
    held: float,
    check: Callable[[Last], object] = lambda last: None,
) -> Lease | None:
    """Acquire the lease after the previous one has ended. None if another holder has it.

    ``about["holder"]`` is equal for runs that cannot exist at the same time: a previous lease of
    the same holder has ended. ``wait`` waits some seconds, and may raise. The holder must renew the
    lease within ``held`` seconds. ``check`` is called with the previous lease, and may raise.
    """
    last = last_lease(storage)
    check(last)
    storage.make("leases", "checkpoints", "commits")
    if not _is_free(last, about["holder"]):
        # The last reading begins after that time: this host can be suspended after an earlier one,
        # while the holder renews the lease.
        moment = now()
        until = moment + length
        while moment < until:
            wait(min(1.0, length / 10))
            moment = now()
            if last_lease(storage) != last:
                return None
    token = last.token + 1
    began = now()
    name = _name(token, "json")
    body = {**about, "format": FORMAT, "token": token, "id": uuid.uuid4().hex}
    content = json.dumps(body).encode()
    if not storage.create(name, content):
        return None
    # If a second creation succeeds, the file system has no exclusive creation.
    again = json.dumps({**body, "again": True}).encode()
    exclusive = not storage.create(name, again)
    if not exclusive:
        content = again
        wait(length / 4)
        began = now()
    if storage.read(name) != content or _newest(storage) != token:
        return None
    return Lease(storage, token, content, began + held, exclusive=exclusive)


def holder_of(lock: int, boot: str) -> str:
    """The holder's name, from the boot id and the lock file, which one run at a time can lock."""
    seen = os.fstat(lock)
    return f"{boot}:{seen.st_dev}:{seen.st_ino}"


def _is_free(last: Last, holder: str) -> bool:
    if not last.token or last.end is not None:
        return True
    return last.about is not None and last.about.get("holder") == holder


def _newest(storage: Storage) -> int:
    """The highest token, also if it is not listed yet."""
    result = max((int(name.partition(".")[0]) for name in storage.names("leases")), default=0)
    while storage.read(_name(result + 1, "json")) is not None:
        result += 1
    return result


def _name(token: int, part: str) -> str:
    return f"leases/{token:08}.{part}"


def _read(storage: Storage, token: int, part: str) -> dict[str, Any] | None:
    """A part of a lease; None if it does not exist or is incomplete."""
    return json_object(storage.read(_name(token, part)) or b"")
