"""The system around CRIU: tools, network locks, cgroups, limits, containers."""

from __future__ import annotations

import os
import resource

from ..._system.capabilities import CAP_SYS_ADMIN, CAP_SYS_RESOURCE, has_capability
from ..._system.host import read
from ..._system.mountinfo import mounts_of
from ..._system.process_identity import foreign_proc, has_proc
from ..._system.process_snapshot import in_first
from ..._transport.base import Via
from ..._transport.helper_programs import FAMILIES, HelperPrograms, cure
from ...findings import Finding, Severity
from .subject import Findings, Subject

CAP_CHECKPOINT_RESTORE = 40
LAZY_PIPE = 4194304
"""Bytes of a pipe that lazy_pages needs."""


def look(via: Via, *, unprivileged: bool = False) -> Findings:
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
    yield proc()
    yield _container(unprivileged)


def _network_tools(programs: HelperPrograms) -> Findings:
    about = Subject("iptables", "network", "iptables")
    lacking = programs.missing(*FAMILIES) + programs.missing_for_namespace_lock()
    if lacking:
        yield about.warning(
            f"{' and '.join(lacking)} not found in {programs.path}",
            costs='tcp_established and containers need network_lock="nftables"',
            cure=cure(lacking),
        )
    else:
        yield about.good("found")


def _tools(programs: HelperPrograms) -> Findings:
    expected = {
        "tar": "contents of tmpfs in containers cannot be saved",
        "gzip": "contents of tmpfs in containers cannot be saved",
        programs.ip: "containers with a network namespace of their own cannot be saved or restored",
        "sh": "networks cannot be locked with iptables",
    }
    for tool, costs in expected.items():
        about = Subject(f"tool:{tool}", "system", f"the program {tool}")
        if lacking := programs.missing(tool):
            yield about.warning(f"not found in {programs.path}", costs=costs, cure=cure(lacking))
        else:
            yield about.good("there")


def _cgroups() -> Finding:
    mounts = list(mounts_of("self"))
    old = [mount.place for mount in mounts if mount.kind == "cgroup"]
    new = [mount.place for mount in mounts if mount.kind == "cgroup2"]
    form = "hybrid (1 and 2)" if old and new else "version 2" if new else "version 1"
    about = Subject("cgroups", "system", "cgroups")
    if not old and not new:
        return about.warning(
            "not mounted",
            costs='cgroups are not restored; use manage_cgroups_mode="ignore"',
            cure="mount -t cgroup2 none /sys/fs/cgroup",
        )
    shut = [place for place in (*old, *new) if _is_read_only(place)]
    if shut and os.geteuid():
        return about.note(f"{form}, not writable for this user")
    if shut:
        return about.warning(
            f"{form}, read-only: {', '.join(shut)}",
            costs="cgroups cannot be made on restore, nor freeze_cgroup be used",
            cure="; ".join(f"mount -o remount,bind,rw {place}" for place in shut),
        )
    return about.good(f"{form}, writable")


def _is_read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY) or not os.access(path, os.W_OK)
    except OSError:
        return True


def _pipe_size() -> Finding:
    about = Subject("pipe-max-size", "system", "fs.pipe-max-size")
    size = int(read("/proc/sys/fs/pipe-max-size") or 0)
    if size >= LAZY_PIPE or has_capability(CAP_SYS_RESOURCE):
        return about.good(f"{size} bytes")
    return about.warning(
        f"{size} bytes",
        costs="without CAP_SYS_RESOURCE, lazy_pages fails with large processes",
        cure=f"sysctl -w fs.pipe-max-size={LAZY_PIPE}",
    )


def _last_pid() -> Finding:
    path = "/proc/sys/kernel/ns_last_pid"
    about = Subject("ns-last-pid", "system", "kernel.ns_last_pid")
    if not os.path.exists(path):
        return about.warning(
            "not there",
            costs="pids cannot be chosen on kernels before 5.5",
            cure="a kernel with CONFIG_CHECKPOINT_RESTORE",
        )
    if _is_read_only(path):
        return about.warning(
            "read-only",
            costs="pids cannot be chosen on kernels before 5.5, nor sysctls be restored",
            cure="mount -o remount,rw /proc/sys",
        )
    return about.good("writable")


def _limits() -> Findings:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(read("/proc/sys/fs/nr_open") or 0)
    about = Subject("open-files", "system", "limit of open files")
    if hard == resource.RLIM_INFINITY or hard >= most or has_capability(CAP_SYS_RESOURCE):
        yield about.good(str(hard))
    else:
        yield about.note(
            str(hard),
            costs="CRIU cannot raise it for itself; a process with more open files may fail",
            cure=f"ulimit -Hn {most} before, as root with CAP_SYS_RESOURCE",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    value = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    costs = "" if soft else "a crash of CRIU leaves no core file"
    yield Subject("core", "system", "limit of core files").note(
        value, costs=costs, cure="" if soft else "ulimit -c unlimited"
    )


def _map_files(unprivileged: bool) -> Finding:
    """Mapped files, which CRIU opens through /proc."""
    about = Subject("map-files", "system", "/proc/PID/map_files")
    try:
        first = sorted(os.listdir("/proc/self/map_files"))[0]
        os.stat(f"/proc/self/map_files/{first}")
    except (OSError, IndexError) as error:
        if not has_capability(CAP_SYS_ADMIN) and not has_capability(CAP_CHECKPOINT_RESTORE):
            return about.note("not known without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE")
        return about.finding(
            Severity.WARNING if unprivileged else Severity.STOPS,
            f"cannot be read ({error})",
            costs="processes that map shared memory without a name, or deleted files, cannot be "
            "dumped"
            if unprivileged
            else "no process can be dumped",
            cure="CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and a /proc that is not masked",
        )
    return about.good("can be read")


def _io_uring() -> Finding:
    about = Subject("io-uring", "system", "io_uring")
    setting = read("/proc/sys/kernel/io_uring_disabled").strip()
    if setting == "2":
        return about.good("forbidden to all")
    return about.note(
        "allowed" if setting in ("", "0") else "allowed to some",
        costs="processes that use it cannot be dumped; preflight finds them",
        cure="sysctl -w kernel.io_uring_disabled=2 (for new programs)",
    )


def proc() -> Finding:
    """The finding on /proc, which all others read."""
    about = Subject("proc", "system", "/proc")
    if foreign_proc() is None:
        return about.good("of the caller's pid namespace")
    if not has_proc():
        return about.stops(
            "is no proc file system",
            costs="no process can be seen: nothing works",
            cure="mount -t proc proc /proc",
        )
    return about.stops(
        "of another pid namespace than the caller's",
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
    about = Subject("container", "system", "container")
    if not signs and not named and not own:
        return about.good("none: on the host")
    value = ", ".join(
        [*signs, *([named] if named else []), *(f"a {kind} namespace of its own" for kind in own)]
    )
    costs = "only processes in it can be dumped"
    if "user" in own:
        return about.warning(
            f"in a container ({value})",
            costs=f"{costs}, and the rights of the host are lacking",
            cure="set unprivileged=True; or run CRIU on the host"
            if unprivileged
            else "run CRIU on the host",
        )
    return about.note(f"in a container ({value})", costs=costs)
