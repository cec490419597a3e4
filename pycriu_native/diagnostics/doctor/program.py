"""Checks CRIU, libcriu and the kernel: existence, function, compatibility."""

from __future__ import annotations

import os
import re

from ..._calls import requirements
from ..._calls.verbs import check
from ..._native.ffi import LIBCRIU_VERSION
from ..._system.process_snapshot import in_first
from ..._transport.base import Via
from ..._transport.feature_cache import CacheState, feature_cache
from ..._transport.program import COMPANION, companion, locate
from ..._transport.worker import worker_of
from ...errors import CriuError, PermissionDeniedError
from ...findings import Finding, Severity
from ...options.criu_opts import CriuOpts
from ...results import Version
from ..config_effects import configuration_files
from .features import lacking_rights
from .subject import Findings, Subject

NEEDED = (((6, 16), Version(major=4, minor=2)), ((6, 13), Version(major=4, minor=1)))
"""Releases of the kernel, and the CRIU that each needs: sockets since 6.16, the vdso since 6.13."""
INSTALL = "pip install 'pycriu-native[criu]', apt-get install criu, or pycriu-native install-criu"


def look(via: Via) -> Findings:
    yield Subject("libcriu", "criu", "libcriu").good(LIBCRIU_VERSION)
    try:
        result = requirements.ask_version(via)
    except CriuError as error:
        yield Subject("criu", "criu", "CRIU").stops(
            error.cause or str(error),
            costs="nothing works",
            cure=error.cure or ("" if isinstance(error, PermissionDeniedError) else INSTALL),
        )
        yield _cache()
        return
    yield Subject("criu", "criu", "CRIU").good(
        f"{result}{f' ({result.git})' if result.git else ''}, {via.name()}{_source(via)}"
    )
    yield from libraries(via)
    yield _fits_library(result)
    yield _fits_kernel(result)
    yield from _fits_processor(result)
    yield _check(via)
    yield _cache()
    yield from _configuration(via)


def _source(via: Via) -> str:
    """The source of a worker's program path, as a suffix of the path."""
    worker = worker_of(via)
    return f" ({locate(worker.program)[1]})" if worker else ""


def libraries(via: Via) -> Findings:
    """The libraries in the program of pycriu-native-criu. Those of others are the system's."""
    worker, package = worker_of(via), companion()
    if worker is None or package is None or locate(worker.program)[0] != package.program():
        return
    yield Subject("libraries", "criu", "libraries of CRIU").good(
        ", ".join(f"{name} {release}" for name, release in package.libraries().items())
        + f": security updates of these come with {COMPANION}"
    )


def _fits_library(criu: Version) -> Finding:
    library = Version.parse(LIBCRIU_VERSION)
    about = Subject("fit-library", "criu", "libcriu and CRIU")
    if (library.major, library.minor) == (criu.major, criu.minor):
        return about.good("of one release")
    younger = "libcriu" if library > criu else "CRIU"
    return about.note(
        f"libcriu {library}, CRIU {criu}",
        costs=f"options that only {younger} supports are refused",
        cure="install both from one release",
    )


def kernel() -> tuple[int, int]:
    """The release of the kernel."""
    numbers = re.findall(r"\d+", os.uname().release)
    return int(numbers[0]), int(numbers[1])


def _fits_kernel(criu: Version) -> Finding:
    release = os.uname().release
    about = Subject("fit-kernel", "criu", "CRIU and the kernel")
    for since, needed in NEEDED:
        if kernel() >= since and criu < needed:
            return about.warning(
                f"CRIU {criu}, Linux {release}",
                costs=f"Linux {since[0]}.{since[1]} and later needs CRIU {needed}: internet "
                "sockets cannot be dumped",
                cure=f"install CRIU {needed} or later (pycriu-native install-criu)",
            )
    return about.good(f"Linux {release}; {_kernels(criu)}")


def _kernels(criu: Version) -> str:
    """The kernels on which this release is known to work."""
    for since, needed in reversed(NEEDED):
        if criu < needed:
            return f"CRIU {criu} works on kernels before {since[0]}.{since[1]}"
    return f"no kernel is known that CRIU {criu} is too old for"


def _fits_processor(criu: Version) -> Findings:
    if message := requirements.pointer_authentication(criu):
        yield Subject("fit-processor", "criu", "CRIU and the processor").stops(
            message,
            costs="dumps work, but no restore does",
            cure="install CRIU 4.2 or later (pycriu-native install-criu)",
        )


_UNDECISIVE = {
    "ns_last_pid sysctl is inaccessible": (
        "nothing on Linux 5.5 and later, but sysctls of namespaces are not restored",
        "mount -o remount,rw /proc/sys",
    ),
    "Can't turn TCP repair mode": (
        "TCP connections cannot be dumped or restored",
        "run in the network namespace of a user who has CAP_NET_ADMIN in it (unshare --net)",
    ),
}
"""Failures of CRIU's check despite which calls work, with effect and cure. The check ends at the
first one, and calls do not need all features that it tests (``criu/cr-check.c``, category 1)."""


def _check(via: Via) -> Finding:
    """CRIU's check, or its unprivileged one if that is better for a caller without rights."""
    result = checked(via, unprivileged=False)
    if result.severity in (Severity.STOPS, Severity.WARNING) and worker_of(via) is not None:
        limited = checked(via, unprivileged=True)
        better = limited.severity is not Severity.STOPS and result.severity is Severity.STOPS
        if (better and lacking_rights()) or not in_first("user"):
            return limited
    return result


def checked(via: Via, *, unprivileged: bool) -> Finding:
    options = ("unprivileged",) if unprivileged else ()
    about = Subject("check", "criu", "CRIU's own check", options)
    try:
        result = check(CriuOpts(unprivileged=True) if unprivileged else None, via=via)
    except CriuError as error:
        cause = error.cause or str(error)
        for pattern, (costs, cure) in _UNDECISIVE.items():
            if any(pattern in line for line in error.lines):
                message = f"with unprivileged=True: {cause}" if unprivileged else cause
                return about.warning(message, costs=costs, cure=cure)
        return about.stops(
            cause,
            costs="CRIU cannot work on this kernel, or not with these rights",
            cure=error.cure or "see the output of criu check -v4",
        )
    if unprivileged:
        return about.warning(
            "passes with unprivileged=True only",
            costs="calls without it fail, and less can be saved",
            cure="run as root, or set unprivileged=True",
        )
    return about.note("; ".join(result.warnings)) if result.warnings else about.good("passed")


def _cache() -> Finding:
    cache = feature_cache()
    severities = {CacheState.KEPT: Severity.GOOD, CacheState.STALE: Severity.WARNING}
    return Subject("cache", "criu", "cache of the kernel's features").finding(
        severities.get(cache.state, Severity.NOTE),
        f"{cache.path}: {cache.reason}",
        costs=cache.costs,
        cure=cache.cure or "",
    )


def _configuration(via: Via) -> Findings:
    about = Subject("configuration", "criu", "configuration files")
    result = [file for file in configuration_files(CriuOpts(), via) if file.settings]
    if not result:
        seen = worker_of(via) is not None
        severity = Severity.GOOD if seen else Severity.NOTE
        value = "none" if seen else "unknown: those of another process"
        yield about.finding(severity, value)
    for file in result:
        yield about.warning(
            f"{file.path} ({file.why}) sets "
            + "; ".join(str(setting) for setting in file.settings),
            costs="calls use its settings besides their own options",
            cure=f"check whether that is intended; else remove {file.path}",
        )
