"""CRIU, libcriu and the kernel: whether they are there, work, and fit each other."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

from ..._calls import requirements
from ..._calls.verbs import check
from ..._native.ffi import LIBCRIU_VERSION
from ..._system.host import boot_time
from ..._system.mountinfo import filesystem_of
from ..._transport.base import Via
from ..._transport.worker import worker_of
from ...errors import CriuError
from ...options.criu_opts import CriuOpts
from ...results import Version
from ..config_effects import configuration_files
from .values import DoctorFinding, DoctorSeverity

CACHE = "/run/criu.kdat"
"""Where CRIU keeps what it has found out about the kernel (``criu/kerndat.c``)."""
CACHE_MAGIC = 0x57023458
TMPFS_OF = "/run"
NEEDED = (((6, 16), Version(major=4, minor=2)), ((6, 13), Version(major=4, minor=1)))
"""Releases of the kernel, and the CRIU that each needs: sockets since 6.16, the vdso since 6.13."""
INSTALL = "apt-get install criu, or tools/install-criu of a checkout"


def look(via: Via) -> Iterator[DoctorFinding]:
    """All of it."""
    yield _libcriu()
    asked = time.time()
    try:
        result = requirements.ask_version(via)
    except CriuError as error:
        yield DoctorFinding(
            id="criu",
            group="criu",
            title="CRIU",
            health=DoctorSeverity.BAD,
            value=error.cause or str(error),
            costs="nothing works",
            cure=error.cure or INSTALL,
        )
        yield _cache(asked, via)
        return
    yield DoctorFinding(
        id="criu",
        group="criu",
        title="CRIU",
        health=DoctorSeverity.GOOD,
        value=f"{result}{f' ({result.git})' if result.git else ''}, {via.name()}",
    )
    yield _fits_library(result)
    yield _fits_kernel(result)
    yield _check(via)
    yield _cache(asked, via)
    yield from _configuration(via)


def _libcriu() -> DoctorFinding:
    return DoctorFinding(
        id="libcriu",
        group="criu",
        title="libcriu",
        health=DoctorSeverity.GOOD,
        value=LIBCRIU_VERSION,
    )


def _fits_library(found: Version) -> DoctorFinding:
    library = Version.parse(LIBCRIU_VERSION)
    title = "libcriu and CRIU"
    if (library.major, library.minor) == (found.major, found.minor):
        return DoctorFinding(
            id="fit-library",
            group="criu",
            title=title,
            health=DoctorSeverity.GOOD,
            value="of one release",
        )
    younger = "libcriu" if library > found else "CRIU"
    return DoctorFinding(
        id="fit-library",
        group="criu",
        title=title,
        health=DoctorSeverity.INFO,
        value=f"libcriu {library}, CRIU {found}",
        costs=f"options that only {younger} knows are refused",
        cure="install both from one release",
    )


def _fits_kernel(found: Version) -> DoctorFinding:
    release = os.uname().release
    title = "CRIU and the kernel"
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    for since, needed in NEEDED:
        if numbers >= since and found < needed:
            return DoctorFinding(
                id="fit-kernel",
                group="criu",
                title=title,
                health=DoctorSeverity.WARNING,
                value=f"CRIU {found}, Linux {release}",
                costs=f"Linux {since[0]}.{since[1]} and later needs CRIU {needed}: internet "
                "sockets cannot be dumped",
                cure=f"install CRIU {needed} or later",
            )
    return DoctorFinding(
        id="fit-kernel",
        group="criu",
        title=title,
        health=DoctorSeverity.GOOD,
        value=f"Linux {release}",
    )


def _check(via: Via) -> DoctorFinding:
    title = "CRIU's own check"
    try:
        result = check(via=via)
    except CriuError as error:
        return DoctorFinding(
            id="check",
            group="criu",
            title=title,
            health=DoctorSeverity.BAD,
            value=error.cause or str(error),
            costs="CRIU cannot work on this kernel, or not with these rights",
            cure=error.cure or "see what it says, in a log: criu check -v4",
        )
    value = "; ".join(result.warnings) or "passed"
    health = DoctorSeverity.INFO if result.warnings else DoctorSeverity.GOOD
    return DoctorFinding(id="check", group="criu", title=title, health=health, value=value)


def _cache(asked: float, via: Via) -> DoctorFinding:
    """What CRIU has found out about the kernel, kept for the next call.

    CRIU takes it if it has the size and the two magic numbers of its own build, else removes and
    makes it anew; the second number is the time of the build. It does not look at the kernel: the
    file is to go with the system's reboot, so CRIU keeps it on a tmpfs only.
    """
    title = "cache of the kernel's features"

    def said(health: DoctorSeverity, value: str, costs: str = "", cure: str = "") -> DoctorFinding:
        return DoctorFinding(
            id="cache",
            group="criu",
            title=title,
            health=health,
            value=f"{CACHE} {value}",
            costs=costs,
            cure=cure,
        )

    try:
        result = os.stat(CACHE)
        with open(CACHE, "rb") as file:
            magic = struct.unpack("=I", file.read(4).ljust(4, b"\0"))[0]
    except FileNotFoundError:
        if filesystem_of(TMPFS_OF) == "tmpfs":
            return said(DoctorSeverity.INFO, "is absent", "the next call makes it")
        return said(
            DoctorSeverity.INFO,
            f"is absent: {TMPFS_OF} is no tmpfs, and CRIU keeps it nowhere else",
            "each call asks the kernel again, which takes about 20 ms",
            f"pycriu-native keep-cache, or mount -t tmpfs tmpfs {TMPFS_OF}, as most systems do "
            "when they start",
        )
    except OSError as error:
        return said(DoctorSeverity.INFO, f"cannot be read ({error.strerror})")
    if result.st_mtime < boot_time():
        return said(
            DoctorSeverity.WARNING,
            "is stale: it is older than this start of the system",
            "CRIU believes it, and fails in odd ways if the kernel has changed",
            f"rm {CACHE}",
        )
    if magic != CACHE_MAGIC:
        return said(
            DoctorSeverity.WARNING,
            "is no such cache",
            "CRIU removes it and asks the kernel again",
            f"rm {CACHE}",
        )
    if result.st_mtime >= asked - 1:
        return said(DoctorSeverity.GOOD, "is kept, and was made just now")
    return said(DoctorSeverity.GOOD, "is kept")


def _configuration(via: Via) -> Iterator[DoctorFinding]:
    """Files that change what every call does."""
    title = "configuration files"
    result = [file for file in configuration_files(CriuOpts(), via) if file.settings]
    if not result:
        seen = worker_of(via) is not None
        health = DoctorSeverity.GOOD if seen else DoctorSeverity.INFO
        value = "none" if seen else "those of another process are not seen"
        yield DoctorFinding(
            id="configuration", group="criu", title=title, health=health, value=value
        )
    for file in result:
        yield DoctorFinding(
            id="configuration",
            group="criu",
            title=title,
            health=DoctorSeverity.WARNING,
            value=f"{file.path} ({file.why}) sets "
            + "; ".join(str(setting) for setting in file.settings),
            costs="calls do what it says beside their own options",
            cure=f"look whether that is meant; else remove {file.path}",
        )
