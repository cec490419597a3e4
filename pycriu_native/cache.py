"""CRIU's feature cache: whether each call has to find out anew what the kernel can do.

CRIU probes the kernel as it starts to work, which takes it some twenty milliseconds, and keeps
what it found in ``/run/criu.kdat``, but only on a tmpfs, which does not outlive the kernel it
speaks of. Facts: CRIU's ``criu/kerndat.c`` (4.2) and what 4.2.1 does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import StrEnum

from ._dataclass import dataclass

__all__ = ["CacheState", "FeatureCache", "feature_cache"]

RUN = "/run"
NAME = "criu.kdat"
MAGIC = 0x57023458
"""How the file begins."""

STILL_WRITING = 5.0
"""Seconds after which a temporary file is nobody's any more: it is written in one go."""


class CacheState(StrEnum):
    """What becomes of the cache."""

    KEPT = "kept"
    """It is there, and a ``criu`` of the build that wrote it reads it."""
    ABSENT = "absent"
    """It can be kept: the next call writes it."""
    IMPOSSIBLE = "impossible"
    """It cannot be kept: no tmpfs, or not to be written. Each call probes."""
    BLOCKED = "blocked"
    """A temporary file that a ``criu`` has left behind keeps all others from writing it."""
    STALE = "stale"
    """It is older than the running kernel, and may say what is not true."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureCache:
    """CRIU's feature cache, as a worker of ours would find it."""

    path: str
    """The file."""
    state: CacheState
    reason: str
    """Why, in plain words."""
    cure: str | None = None
    """What helps; None where nothing needs to."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f"; {self.cure}" if self.cure else "")


def feature_cache() -> FeatureCache:
    """Whether CRIU keeps its feature cache, looked at now, from this mount namespace.

    For a ``criu`` that runs as root; one that is asked with ``unprivileged`` looks in its own
    ``XDG_RUNTIME_DIR``, which a worker of ours has only by ``Worker(env=...)``. A cache that
    another build of ``criu`` has written is replaced by each of the two in turn: only the log
    tells (``Stale ... file``). Raises nothing.
    """
    path = os.path.join(RUN, NAME)

    def found(state: CacheState, reason: str, cure: str | None = None) -> FeatureCache:
        return FeatureCache(path=path, state=state, reason=reason, cure=cure)

    kind = _filesystem(RUN)
    if kind != "tmpfs":
        return found(
            CacheState.IMPOSSIBLE,
            f"{RUN} is {'no directory' if kind is None else 'on ' + kind}, and CRIU keeps the "
            "cache on a tmpfs only: each call probes the kernel, some 20 ms",
            f"mount a tmpfs on {RUN} before the first call (a container: --tmpfs {RUN})",
        )
    try:
        made = os.stat(path)
        with open(path, "rb") as file:
            magic = int.from_bytes(file.read(4), "little")
    except FileNotFoundError:
        return _without_file(found)
    except OSError as error:
        return found(CacheState.IMPOSSIBLE, error.strerror or "it cannot be read", "run as root")
    if magic != MAGIC:
        return found(CacheState.STALE, "this is no cache of CRIU's", f"remove {path}")
    if made.st_mtime < _started():
        return found(CacheState.STALE, "it is older than the running kernel", f"remove {path}")
    return found(CacheState.KEPT, "it is kept")


def _without_file(found: Callable[..., FeatureCache]) -> FeatureCache:
    temporary = os.path.join(RUN, NAME + ".tmp")
    try:
        age = time.time() - os.stat(temporary).st_mtime
    except OSError:
        age = 0.0
    if age > STILL_WRITING:
        return found(
            CacheState.BLOCKED,
            f"a criu that ended early has left {temporary}, and no other writes over it: each "
            "call probes the kernel, some 20 ms",
            f"remove {temporary}",
        )
    if not os.access(RUN, os.W_OK):
        return found(
            CacheState.IMPOSSIBLE, f"{RUN} is not to be written", "run as root, or remount it"
        )
    return found(CacheState.ABSENT, "the next call writes it")


def _filesystem(directory: str) -> str | None:
    """The kind of file system that a directory is on; None where there is none."""
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo") as file:
            for line in file:
                if line.split(None, 1)[0] == mount:
                    return line.partition(" - ")[2].split()[0]
    except (OSError, StopIteration):
        pass
    finally:
        os.close(fd)
    return "an unknown file system"


def _started() -> float:
    """When this kernel was started, in seconds since 1970."""
    try:
        with open("/proc/stat") as file:
            return next(float(line.split()[1]) for line in file if line.startswith("btime "))
    except (OSError, StopIteration):
        return 0.0
