"""What both sides of a migration have: the mode, the options that they set, the result."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ..errors import PeerLostError, Problem
from ..options.criu_opts import CriuOpts
from ..results import DumpStatistics, RestoreStatistics, Version
from .endpoint import TLS_FIELDS

MARGIN = 2.0
"""Seconds that the destination gets to end its copy once it has noticed that the source is lost."""

LONGEST_SILENCE = 3600.0
"""Seconds of ``peer_timeout`` that are accepted, from a peer too: a frozen process may wait for
them."""

SET_BY_US = (
    "parent_image",
    "pre_dump",
    "track_mem",
    "lazy_pages",
    "page_server",
    "leave_running",
    "leave_stopped",
    "images_dir",
    "stream",
    "exec_cmd",
)
"""Options that a migration sets itself, or that make no sense in one."""


class MigrationMode(StrEnum):
    """When the memory goes: before, while or after the process changes hosts."""

    STOP_AND_COPY = "stop-and-copy"
    """Freeze, send everything, run there. Simple; stands still for as long as it all takes."""
    PRE_COPY = "pre-copy"
    """Send the memory in rounds while the process runs, then freeze and send what has changed
    last. Needs soft-dirty tracking at the source."""
    POST_COPY = "post-copy"
    """Freeze, send all but the memory, run there; pages follow when they are touched, and in the
    background. Stands still for the shortest time; the destination needs userfaultfd."""
    PRE_COPY_THEN_POST_COPY = "pre-copy-then-post-copy"
    """Rounds first, then post-copy of what they have left. Needs both."""

    @property
    def rounds(self) -> bool:
        """Whether memory goes in rounds first."""
        return self in (MigrationMode.PRE_COPY, MigrationMode.PRE_COPY_THEN_POST_COPY)

    @property
    def lazy(self) -> bool:
        """Whether memory follows after the switch-over."""
        return self in (MigrationMode.POST_COPY, MigrationMode.PRE_COPY_THEN_POST_COPY)


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationResult:
    """A migration that is complete, as the side that returns it knows it."""

    pid: int
    """The root process at the destination, by its number there."""
    mode: MigrationMode
    images: str
    """The images directory; empty where it was a temporary one, which is gone."""
    image_bytes: int
    """Bytes of images that went over, of all rounds."""
    page_bytes: int
    """Bytes of the page connection: pages that followed after the switch-over, with headers."""
    downtime: float
    """Seconds from CRIU's first move against the process (before it freezes it) until the
    destination's word that it runs there had come back: by the source's clock."""
    duration: float
    """Seconds of the whole call, waiting for the other side included."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, in order."""
    dump: DumpStatistics | None = None
    """CRIU's own numbers of the final dump; None at the destination."""
    restore: RestoreStatistics | None = None
    """CRIU's own numbers of the restore; None where the report did not come."""

    @property
    def bytes(self) -> int:
        """All bytes of the process that went over."""
        return self.image_bytes + self.page_bytes


class Phases:
    """A clock that says how long each phase took."""

    def __init__(self) -> None:
        self.name = ""
        self.seconds: dict[str, float] = {}
        self.began = self._since = time.monotonic()

    def enter(self, name: str) -> None:
        """The phase is over, and another one begins."""
        now = time.monotonic()
        if self.name:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self._since
        self._since = now
        self.name = name

    def finish(self) -> None:
        """The last phase is over."""
        self.enter("done")

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began


class Workspace:
    """The directory that images go to: the caller's, or a temporary one."""

    def __init__(self, opts: CriuOpts) -> None:
        self.temporary = opts.images_directory is None
        if self.temporary:
            self.path = tempfile.mkdtemp(prefix="pycriu-native-migration-")
        else:
            assert isinstance(opts.images_directory, str)
            self.path = os.path.abspath(opts.images_directory)
            self._made = not os.path.lexists(self.path)
            if self._made:
                os.mkdir(self.path, 0o700)

    @property
    def kept_path(self) -> str:
        """The path as a result names it: empty for a temporary directory."""
        return "" if self.temporary else self.path

    def remove(self) -> None:
        """Leave nothing behind."""
        if self.temporary or self._made:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for name in os.listdir(self.path):
            shutil.rmtree(os.path.join(self.path, name), ignore_errors=True)


def problems_with(opts: CriuOpts) -> Iterator[Problem]:
    """What a migration cannot be given, on either side."""
    for name in SET_BY_US:
        if getattr(opts, name) is not None:
            yield Problem(name, getattr(opts, name), "is not accepted: a migration sees to it")
    directory = opts.images_directory
    if directory is not None:
        if not isinstance(directory, str):
            yield Problem(
                "images_directory", directory, "a path is accepted: directories are made in it"
            )
        elif os.path.lexists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
            yield Problem(
                "images_directory", directory, "an empty directory or a new one is accepted"
            )


def seconds(told: Mapping[str, object], name: str, most: float = LONGEST_SILENCE) -> float:
    """A time that the peer told; ``PeerLostError`` for what is none, or none to wait for."""
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise PeerLostError(f"the peer sent {name}={str(value)[:80]!r}")
    return float(value)


def has_wide_counts(version: Version) -> bool:
    """Whether page counts on CRIU's page connection have 64 bits (since 4.2), not 32."""
    return version >= Version(major=4, minor=2)


def for_criu(opts: CriuOpts, **changes: Any) -> CriuOpts:
    """The caller's options as CRIU gets them: the certificates are for our own connection."""
    return replace(opts, **{**dict.fromkeys(TLS_FIELDS), **changes})
