"""The mode, the options and the result of a migration, for both sides."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..errors import PeerLostError, Problem, images_error
from ..options.criu_opts import CriuOpts
from ..results import Version
from .endpoint import TLS_FIELDS

MARGIN = 2.0
"""Seconds that the destination needs to end its copy after it has detected a lost source."""

LONGEST_PEER_TIMEOUT = 3600.0
"""Largest ``peer_timeout`` in seconds, also of a peer: a process can be frozen for that long."""

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
"""Options that a migration sets itself, or that have no meaning in one."""


class Phases:
    """Durations of the phases."""

    def __init__(self) -> None:
        self.name = ""
        self.seconds: dict[str, float] = {}
        self._began = self._since = time.monotonic()

    def enter(self, name: str) -> None:
        """End the current phase, and begin another."""
        now = time.monotonic()
        if self.name:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self._since
        self._since = now
        self.name = name

    def finish(self) -> float:
        """End the last phase; returns the seconds since the beginning of the first."""
        self.enter("done")
        return self._since - self._began


class Workspace:
    """The directory for images: the caller's, or a temporary one."""

    def __init__(self, opts: CriuOpts) -> None:
        self.temporary = opts.images_directory is None
        if self.temporary:
            self.path = tempfile.mkdtemp(prefix="pycriu-native-migration-")
        else:
            assert isinstance(opts.images_directory, str)
            self.path = os.path.abspath(opts.images_directory)
            self._made = not os.path.lexists(self.path)
            try:
                if self._made:
                    os.mkdir(self.path, 0o700)
            except OSError as error:
                raise images_error(f"{self.path} cannot be made", error) from None

    @property
    def kept_path(self) -> str:
        """The path as a result names it: empty for a temporary directory."""
        return "" if self.temporary else self.path

    def remove_temporary(self) -> None:
        if self.temporary:
            self.remove()

    def remove(self) -> None:
        """Remove everything that the migration made."""
        if self.temporary or self._made:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for name in os.listdir(self.path):
            shutil.rmtree(os.path.join(self.path, name), ignore_errors=True)


def problems_with(opts: CriuOpts) -> Iterator[Problem]:
    """Problems of the options of either side."""
    for name in SET_BY_US:
        if getattr(opts, name) is not None:
            yield Problem(name, getattr(opts, name), "is not accepted: a migration sets it")
    directory = opts.images_directory
    if directory is not None:
        if not isinstance(directory, str):
            rule = "a path is accepted: directories are created in it"
            yield Problem("images_directory", directory, rule)
        elif os.path.lexists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
            rule = "an empty directory or a new one is accepted"
            yield Problem("images_directory", directory, rule)
        elif not os.path.isdir(os.path.dirname(os.path.abspath(directory))):
            yield Problem("images_directory", directory, "its parent directory does not exist")


def seconds(message: Mapping[str, object], name: str, most: float = LONGEST_PEER_TIMEOUT) -> float:
    """Seconds in a message of the peer; ``PeerLostError`` if it is not a number in range."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise PeerLostError(f"the peer sent {name}={str(value)[:80]!r}")
    return float(value)


def has_wide_counts(version: Version) -> bool:
    """Whether page counts on CRIU's page connection have 64 bits (since 4.2), not 32."""
    return version >= Version(major=4, minor=2)


def for_criu(opts: CriuOpts, **changes: Any) -> CriuOpts:
    """The caller's options for CRIU: the certificates are for the control connection only."""
    return replace(opts, **{**dict.fromkeys(TLS_FIELDS), **changes})
