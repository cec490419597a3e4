"""The system around CRIU: tools, network locks, cgroups, limits, containers."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from functools import partial

from ..._system.host import read
from ..._system.mountinfo import mounts_of
from ..._system.process import status_of
from ..._system.process_snapshot import link
from ..._transport.base import Via
from ..._transport.helper_programs import FAMILIES, HelperPrograms, cure
from ...findings import Finding, Severity
from .namespaces import in_first

LAZY_PIPE = 4194304
"""Bytes of a pipe that lazy_pages needs."""
SYS_ADMIN, RESOURCE, CHECKPOINT_RESTORE = 21, 24, 40


def look(via: Via, *, unprivileged: bool = False) -> Iterator[Finding]:
    """Findings on the system; ``unprivileged``: what CRIU's option of this name needs."""
    programs = HelperPrograms(via)
    yield from _network_tools(programs)
    yield from _tools(programs)
    yield _cgroups()
    yield _pipe_size()
    yield _last_pid()
    yield from _limits()
    yield _map_files(unprivileged)
    yield _io_uring()
    yield _proc()
    yield _container(unprivileged)


def _network_tools(programs: HelperPrograms) -> Iterator[Finding]:
    finding = partial(Finding, id="iptables", group="network", subject="iptables")
    lacking = programs.missing(*FAMILIES) + programs.missing_for_namespace_lock()
    if lacking:
        yield finding(
            severity=Severity.WARNING,
            message=f"{' and '.join(lacking)} not found in {programs.path}",
            costs='tcp_established and containers need network_lock="nftables"',
            cure=cure(lacking),
        )
    else:
        yield finding(severity=Severity.GOOD, message="found")


def _tools(programs: HelperPrograms) -> Iterator[Finding]:
    expected = {
        "tar": "contents of tmpfs in containers cannot be saved",
        "gzip": "contents of tmpfs in containers cannot be saved",
        programs.ip: "containers with a network namespace of their own cannot be saved or restored",
        "sh": "networks cannot be locked with iptables",
    }
    for tool, costs in expected.items():
        finding = partial(Finding, id=f"tool:{tool}", group="system", subject=f"the program {tool}")
        if lacking := programs.missing(tool):
            yield finding(
                severity=Severity.WARNING,
                message=f"not found in {programs.path}",
                costs=costs,
                cure=cure(lacking),
            )
        else:
            yield finding(severity=Severity.GOOD, message="there")


def _cgroups() -> Finding:
    mounts = list(mounts_of("self"))
    old = [mount.place for mount in mounts if mount.kind == "cgroup"]
    new = [mount.place for mount in mounts if mount.kind == "cgroup2"]
    form = "hybrid (1 and 2)" if old and new else "version 2" if new else "version 1"
    finding = partial(Finding, id="cgroups", group="system", subject="cgroups")
    if not old and not new:
        return finding(
            severity=Severity.WARNING,
            message="not mounted",
            costs='cgroups are not restored; use manage_cgroups_mode="ignore"',
            cure="mount -t cgroup2 none /sys/fs/cgroup",
        )
    shut = [place for place in (*old, *new) if _is_read_only(place)]
    if shut and os.geteuid():
        return finding(severity=Severity.NOTE, message=f"{form}, not writable for this user")
    if shut:
        return finding(
            severity=Severity.WARNING,
            message=f"{form}, read-only: {', '.join(shut)}",
            costs="cgroups cannot be made on restore, nor freeze_cgroup be used",
            cure="; ".join(f"mount -o remount,bind,rw {place}" for place in shut),
        )
    return finding(severity=Severity.GOOD, message=f"{form}, writable")


def _is_read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY) or not os.access(path, os.W_OK)
    except OSError:
        return True


def _pipe_size() -> Finding:
    finding = partial(Finding, id="pipe-max-size", group="system", subject="fs.pipe-max-size")
    size = int(read("/proc/sys/fs/pipe-max-size") or 0)
    held = int(status_of(os.getpid()).get("CapEff", "0"), 16) >> RESOURCE & 1
    if size >= LAZY_PIPE or held:
        return finding(severity=Severity.GOOD, message=f"{size} bytes")
    return finding(
        severity=Severity.WARNING,
        message=f"{size} bytes",
        costs="without CAP_SYS_RESOURCE, lazy_pages fails with large processes",
        cure=f"sysctl -w fs.pipe-max-size={LAZY_PIPE}",
    )


def _last_pid() -> Finding:
    path = "/proc/sys/kernel/ns_last_pid"
    finding = partial(Finding, id="ns-last-pid", group="system", subject="kernel.ns_last_pid")
    if not os.path.exists(path):
        return finding(
            severity=Severity.WARNING,
            message="not there",
            costs="pids cannot be chosen on kernels before 5.5",
            cure="a kernel with CONFIG_CHECKPOINT_RESTORE",
        )
    if _is_read_only(path):
        return finding(
            severity=Severity.WARNING,
            message="read-only",
            costs="pids cannot be chosen on kernels before 5.5, nor sysctls be restored",
            cure="mount -o remount,rw /proc/sys",
        )
    return finding(severity=Severity.GOOD, message="writable")


def _limits() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(read("/proc/sys/fs/nr_open") or 0)
    held = int(status_of(os.getpid()).get("CapEff", "0"), 16) >> RESOURCE & 1
    finding = partial(Finding, id="open-files", group="system", subject="limit of open files")
    if hard == resource.RLIM_INFINITY or hard >= most or held:
        yield finding(severity=Severity.GOOD, message=str(hard))
    else:
        yield finding(
            severity=Severity.NOTE,
            message=str(hard),
            costs="CRIU cannot raise it for itself; a process with more open files may fail",
            cure=f"ulimit -Hn {most} before, as root with CAP_SYS_RESOURCE",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    value = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    costs = "" if soft else "a crash of CRIU leaves no core file"
    yield Finding(
        id="core",
        group="system",
        subject="limit of core files",
        severity=Severity.NOTE,
        message=value,
        costs=costs,
        cure="" if soft else "ulimit -c unlimited",
    )


def _map_files(unprivileged: bool) -> Finding:
    """Mapped files, which CRIU opens through /proc."""
    finding = partial(Finding, id="map-files", group="system", subject="/proc/PID/map_files")
    try:
        first = sorted(os.listdir("/proc/self/map_files"))[0]
        os.stat(f"/proc/self/map_files/{first}")
    except (OSError, IndexError) as error:
        held = int(status_of(os.getpid()).get("CapEff", "0"), 16)
        if not held >> SYS_ADMIN & 1 and not held >> CHECKPOINT_RESTORE & 1:
            message = "not known without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE"
            return finding(severity=Severity.NOTE, message=message)
        return finding(
            severity=Severity.WARNING if unprivileged else Severity.STOPS,
            message=f"cannot be read ({error})",
            costs="processes that map shared memory without a name, or deleted files, cannot be "
            "dumped"
            if unprivileged
            else "no process can be dumped",
            cure="CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and a /proc that is not masked",
        )
    return finding(severity=Severity.GOOD, message="can be read")


def _io_uring() -> Finding:
    finding = partial(Finding, id="io-uring", group="system", subject="io_uring")
    setting = read("/proc/sys/kernel/io_uring_disabled").strip()
    if setting == "2":
        return finding(severity=Severity.GOOD, message="forbidden to all")
    return finding(
        severity=Severity.NOTE,
        message="allowed" if setting in ("", "0") else "allowed to some",
        costs="processes that use it cannot be dumped; preflight finds them",
        cure="sysctl -w kernel.io_uring_disabled=2 (for new programs)",
    )


def _proc() -> Finding:
    finding = partial(Finding, id="proc", group="system", subject="/proc")
    if link("/proc/self") == str(os.getpid()):
        return finding(severity=Severity.GOOD, message="of the caller's pid namespace")
    return finding(
        severity=Severity.STOPS,
        message="of another pid namespace than the caller's",
        costs="its pids are those of other processes: nothing works",
        cure="mount -t proc proc /proc",
    )


def _container(unprivileged: bool) -> Finding:
    """Whether the caller is in a container, by the marks of the usual ones."""
    signs = [
        name
        for name, path in {"Docker": "/.dockerenv", "Podman": "/run/.containerenv"}.items()
        if os.path.exists(path)
    ]
    named = dict(
        item.partition("=")[::2] for item in read("/proc/1/environ").split("\0") if "=" in item
    ).get("container", "")
    own = [kind for kind in ("pid", "user") if not in_first(kind)]
    finding = partial(Finding, id="container", group="system", subject="container")
    if not signs and not named and not own:
        return finding(severity=Severity.GOOD, message="none: on the host")
    value = ", ".join(
        [*signs, *([named] if named else []), *(f"a {kind} namespace of its own" for kind in own)]
    )
    costs = "only processes in it can be dumped"
    if "user" in own:
        return finding(
            severity=Severity.WARNING,
            message=f"in a container ({value})",
            costs=f"{costs}, and the rights of the host are lacking",
            cure="set unprivileged=True; or run CRIU on the host"
            if unprivileged
            else "run CRIU on the host",
        )
    return finding(severity=Severity.NOTE, message=f"in a container ({value})", costs=costs)
