"""CRIU's feature cache: whether each call has to probe the kernel's features again.

CRIU probes the kernel at the start of its work, which takes some twenty milliseconds, and stores
the result in ``/run/criu.kdat``, but only on a tmpfs, which does not outlive the running kernel. It
reads that file through a link too. The workers of a pool share a cache in memory instead
(``native/feature_cache.c``). Facts: CRIU's ``criu/kerndat.c`` (4.2) and what 4.2.1 does.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from enum import StrEnum

from .._support.frozen_dataclass import dataclass
from .._support.unpatched import close
from .._system.host import boot_time
from .._system.huge_pages import sizes
from .._system.mountinfo import filesystem_of
from ..errors import CriuError, PermissionDeniedError, ProgramError
from .spawn import FIXED_ENVIRONMENT
from .worker import Worker

RUN = "/run"
NAME = "criu.kdat"
SHARED_MEMORY = "/dev/shm"
"""A tmpfs in nearly every system and container, even if ``/run`` is not one."""

PROBE = """
mount -n -t tmpfs none /run || exit
"$0" check >&2
cat /run/criu.kdat
"""
"""Runs CRIU's probe in a separate mount namespace, and prints the cache."""

COSTS = "each call probes the kernel, some 20 ms"
"""The effect of a state in which CRIU does not store the cache."""

UNTIL_PROBED = 60.0
"""Timeout of the probe in seconds."""

MAGIC = 0x57023458
"""The first four bytes of a cache."""

STILL_WRITING = 5.0
"""Seconds after which a temporary file is stale: it is written in one write()."""


class CacheState(StrEnum):
    """State of the cache."""

    KEPT = "kept"
    """It exists; a ``criu`` of the build that wrote it reads it."""
    ABSENT = "absent"
    """It does not exist; the next call writes it."""
    IMPOSSIBLE = "impossible"
    """It cannot be written: no tmpfs, or no permission. Each call probes the kernel."""
    BLOCKED = "blocked"
    """A temporary file left by a ``criu`` prevents all others from writing the cache."""
    STALE = "stale"
    """It is older than the running kernel and may be wrong, or is no cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureCache:
    """The state of CRIU's feature cache for a worker of this process."""

    path: str
    state: CacheState
    reason: str
    """The reason of the state, as text."""
    costs: str = ""
    """The effect on calls; empty if there is none."""
    cure: str | None = None
    """What to do; None if there is no need."""

    def __str__(self) -> str:
        costs = f": {self.costs}" if self.costs else ""
        return f"{self.path}: {self.reason}{costs}" + (f"; {self.cure}" if self.cure else "")


def feature_cache() -> FeatureCache:
    """Whether CRIU stores its feature cache, checked at the call in this mount namespace.

    For a ``criu`` that runs as root; one with ``unprivileged`` uses its ``XDG_RUNTIME_DIR``, which
    a worker has only through ``Worker(env=...)``. Two builds of ``criu`` replace each other's
    cache; only the log shows that (``Stale ... file``). Raises nothing.
    """
    path = os.path.join(RUN, NAME)

    def result(
        state: CacheState, reason: str, cure: str | None = None, costs: str = ""
    ) -> FeatureCache:
        return FeatureCache(path=path, state=state, reason=reason, costs=costs, cure=cure)

    try:
        made = os.stat(path)
        with open(path, "rb") as file:
            magic = int.from_bytes(file.read(4), "little")
    except FileNotFoundError:
        kind = filesystem_of(RUN)
        if kind == "tmpfs":
            return _without_file(result)
        return result(
            CacheState.IMPOSSIBLE,
            f"{RUN} is {'no directory' if kind is None else 'on ' + kind}, and CRIU keeps the "
            "cache on a tmpfs only",
            f"keep_feature_cache(), or mount a tmpfs on {RUN} before the first call (a container: "
            f"--tmpfs {RUN})",
            COSTS,
        )
    except OSError as error:
        why = error.strerror or "it cannot be read"
        return result(CacheState.IMPOSSIBLE, why, "run as root", COSTS)
    if magic != MAGIC:
        costs = "the next call removes it and probes the kernel again"
        return result(CacheState.STALE, "this is no cache of CRIU's", f"remove {path}", costs)
    if made.st_mtime < boot_time():
        why = "it is older than the running kernel"
        costs = "CRIU fails in various ways if that has changed"
        return result(CacheState.STALE, why, f"remove {path}", costs)
    where = os.path.realpath(path)
    return result(CacheState.KEPT, "it is kept" + (f", in {where}" if where != path else ""))


def keep_feature_cache(*, via: Worker | None = None) -> FeatureCache:
    """Store the cache for CRIU even if ``/run`` is not a tmpfs: calls then take some 20 ms less.

    The ``criu`` of ``via`` (default: ``Worker()``) probes the kernel once, in a separate mount
    namespace whose ``/run`` is a tmpfs. Its cache is copied to ``/dev/shm/criu.kdat``, for root
    only, and ``/run/criu.kdat`` becomes a link to it. Both are removed when the system or container
    ends; a second build of ``criu`` removes the link, as it would the file. Nothing is done if CRIU
    can store the cache itself. Returns the result of :func:`feature_cache` afterwards.

    Raises ``PermissionDeniedError`` for other users than root, ``ProgramError`` if CRIU or the
    namespace cannot be started, ``CriuError`` if ``/dev/shm`` is not a tmpfs or has another user's
    file of that name, and ``ProgramNotFoundError``. Needs CRIU 3.17, and ``unshare`` and ``mount``
    of util-linux.
    """
    before = feature_cache()
    if before.state is not CacheState.IMPOSSIBLE or filesystem_of(RUN) in (None, "tmpfs"):
        return before
    if os.geteuid() != 0:
        raise PermissionDeniedError("CRIU's feature cache in /run is root's: run as root")
    kind = filesystem_of(SHARED_MEMORY)
    if kind != "tmpfs":
        raise CriuError(f"{SHARED_MEMORY} is {kind or 'not there'}, and the cache needs a tmpfs")
    made = os.path.join(SHARED_MEMORY, NAME)
    try:
        _put(made, _probed((via or Worker()).name()))
        # A criu that finds no cache would try to write one, fail, and remove the link; but not
        # while this file shows that another criu is writing the cache.
        with contextlib.suppress(FileExistsError):
            close(os.open(before.path + ".tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with _beside(before.path) as new:
            os.symlink(made, new)
            os.rename(new, before.path)
    except OSError as error:
        if isinstance(error, CriuError):
            raise
        raise CriuError(f"cannot write the feature cache to {made}: {error.strerror}") from None
    return feature_cache()


HUGE_PAGES = tuple(1 << bits for bits in (14, 16, 19, 20, 21, 23, 24, 25, 28, 29, 30, 31, 34))
"""Sizes of huge pages of all architectures, in the order in which CRIU stores their devices."""


def knows_huge_pages(size: int) -> bool:
    """Whether the cache has the device of the huge pages of a size in bytes.

    CRIU stores eight bytes for each size, the number -1 for one that the kernel does not support,
    and 0 if the device is not known. Their position in the file depends on the release.
    """
    import re  # slow to import

    try:
        with open(os.path.join(RUN, NAME), "rb") as file:
            content = file.read()
    except OSError:
        return False
    here = sizes()
    devices = b"".join(b"(.{8})" if each in here else b"\xff{8}" for each in HUGE_PAGES)
    match = re.search(devices, content, re.DOTALL)
    supported = [each for each in HUGE_PAGES if each in here]
    return match is not None and any(match[supported.index(size) + 1])


def _probed(program: str) -> bytes:
    """The cache that a ``criu`` writes for this kernel."""
    import subprocess  # needed here only

    try:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", PROBE, program],
            env=FIXED_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=UNTIL_PROBED,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramError(f"{program} could not be started in a namespace: {error}") from None
    if int.from_bytes(done.stdout[:4], "little") != MAGIC:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = next((each for each in lines if "Error" in each), (lines or ["no message"])[-1])
        raise ProgramError(f"{program} wrote no feature cache in a separate namespace: {why}")
    return done.stdout


def _put(path: str, data: bytes) -> None:
    with _beside(path) as new:
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(data)
        os.rename(new, path)


@contextlib.contextmanager
def _beside(path: str) -> Iterator[str]:
    """A temporary name in the directory of a file; a file that remains under it is removed."""
    new = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        yield new
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)


def _without_file(result: Callable[..., FeatureCache]) -> FeatureCache:
    temporary = os.path.join(RUN, NAME + ".tmp")
    try:
        age = time.time() - os.stat(temporary).st_mtime
    except OSError:
        age = 0.0
    if age > STILL_WRITING:
        return result(
            CacheState.BLOCKED,
            f"a criu that ended early has left {temporary}, and no other one overwrites it",
            f"remove {temporary}",
            COSTS,
        )
    if not os.access(RUN, os.W_OK):
        why = f"{RUN} is not writable"
        return result(CacheState.IMPOSSIBLE, why, "run as root, or remount it", COSTS)
    return result(CacheState.ABSENT, "the next call writes it")
