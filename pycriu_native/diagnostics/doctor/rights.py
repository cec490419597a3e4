"""Rights: capabilities one by one, security modules, filters of system calls.

They are those of the caller, which a worker of our own gets as well. What CRIU needs each
capability for: its man page, ``criu/cr-service.c`` and the kernel's checks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..._system.process import status_of
from ..._system.process_snapshot import read
from .values import DoctorFinding, DoctorSeverity

ONLY = "a restore works with unprivileged=True only"
CAPABILITIES = {
    "CAP_SYS_ADMIN": (21, "namespaces, mounts and seccomp filters cannot be dumped or restored"),
    "CAP_CHECKPOINT_RESTORE": (40, "without CAP_SYS_ADMIN, nothing works"),
    "CAP_SYS_PTRACE": (19, "no process can be stopped, nor CRIU be handed a directory"),
    "CAP_NET_ADMIN": (12, f"TCP connections and network namespaces cannot be saved; {ONLY}"),
    "CAP_SYS_RESOURCE": (
        24,
        "processes of other users cannot be dumped; lazy_pages needs fs.pipe-max-size",
    ),
    "CAP_SYS_TIME": (25, f"the clocks of processes cannot be restored: {ONLY}"),
    "CAP_DAC_OVERRIDE": (1, "files of other users cannot be opened again"),
    "CAP_DAC_READ_SEARCH": (2, "files that are watched (inotify) are not found"),
    "CAP_SETUID": (7, "processes of other users cannot be restored"),
    "CAP_SETGID": (6, "processes of other groups cannot be restored"),
    "CAP_SETPCAP": (8, "the capabilities of processes cannot be restored"),
    "CAP_CHOWN": (0, "owners of files in containers cannot be restored"),
    "CAP_FOWNER": (3, "modes of files in containers cannot be restored"),
    "CAP_KILL": (5, "processes of other users cannot be ended after a dump"),
    "CAP_MKNOD": (27, "devices in containers cannot be restored"),
    "CAP_NET_RAW": (13, "raw and packet sockets cannot be restored"),
    "CAP_NET_BIND_SERVICE": (10, "sockets on ports below 1024 cannot be restored"),
    "CAP_SYS_CHROOT": (18, f"roots of processes cannot be restored: {ONLY}"),
    "CAP_SYS_NICE": (23, "priorities and schedulers cannot be restored"),
    "CAP_IPC_LOCK": (14, "locked memory cannot be restored"),
    "CAP_IPC_OWNER": (15, "System V objects of other users cannot be saved"),
    "CAP_AUDIT_CONTROL": (30, "login uids cannot be restored"),
}
"""Bit, and what does not work without it."""
EITHER = ("CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE")
GIVE = "run as root, or in a container that is given it (docker run --cap-add={short})"


def look() -> Iterator[DoctorFinding]:
    """All of it."""
    status = status_of(os.getpid())
    held = int(status.get("CapEff", "0"), 16)
    has = {name for name, (bit, _) in CAPABILITIES.items() if held >> bit & 1}
    for name, (_, costs) in CAPABILITIES.items():
        yield _capability(name, costs, has)
    yield _user()
    yield _modules()
    yield from _selinux()
    yield from _apparmor()
    yield from _yama(has)
    yield from _lockdown()
    yield _seccomp(status)


def _capability(name: str, costs: str, has: set[str]) -> DoctorFinding:
    about = {"id": f"capability:{name}", "group": "rights", "title": name}
    if name in has:
        return DoctorFinding(**about, health=DoctorSeverity.GOOD, value="held")
    either = name in EITHER and not has & set(EITHER)
    health = DoctorSeverity.BAD if either or name == "CAP_SYS_PTRACE" else DoctorSeverity.WARNING
    if name == "CAP_CHECKPOINT_RESTORE" and "CAP_SYS_ADMIN" in has:
        return DoctorFinding(
            **about, health=DoctorSeverity.INFO, value="lacking, and CAP_SYS_ADMIN held instead"
        )
    cure = GIVE.format(short=name.removeprefix("CAP_"))
    return DoctorFinding(**about, health=health, value="lacking", costs=costs, cure=cure)


def _user() -> DoctorFinding:
    about = {"id": "user", "group": "rights", "title": "user"}
    if os.geteuid() == 0:
        return DoctorFinding(**about, health=DoctorSeverity.GOOD, value="root")
    return DoctorFinding(
        **about,
        health=DoctorSeverity.WARNING,
        value=f"uid {os.geteuid()}",
        costs="CRIU refuses to run unless unprivileged is set, and can save less then",
        cure="run as root, or set unprivileged=True with CAP_CHECKPOINT_RESTORE",
    )


def _modules() -> DoctorFinding:
    result = read("/sys/kernel/security/lsm").strip()
    value = result or "none that can be seen (/sys/kernel/security is not mounted)"
    about = {"id": "security-modules", "group": "rights", "title": "security modules"}
    return DoctorFinding(**about, health=DoctorSeverity.INFO, value=value)


def _selinux() -> Iterator[DoctorFinding]:
    enforcing = read("/sys/fs/selinux/enforce").strip()
    if not enforcing:
        return
    about = {"id": "selinux", "group": "rights", "title": "SELinux"}
    label = read("/proc/self/attr/current").rstrip("\0\n")
    if enforcing == "0":
        yield DoctorFinding(**about, health=DoctorSeverity.GOOD, value=f"permissive, {label}")
    else:
        yield DoctorFinding(
            **about,
            health=DoctorSeverity.WARNING if "unconfined" not in label else DoctorSeverity.INFO,
            value=f"enforcing, {label}",
            costs="the policy may forbid what CRIU does; the log of the audit says so (AVC)",
            cure="run from an unconfined domain; for containers, give lsm_profile on restore",
        )


def _apparmor() -> Iterator[DoctorFinding]:
    if read("/sys/module/apparmor/parameters/enabled").strip() != "Y":
        return
    profile = read("/proc/self/attr/apparmor/current").strip() or read(
        "/proc/self/attr/current"
    ).rstrip("\0\n")
    about = {"id": "apparmor", "group": "rights", "title": "AppArmor"}
    if profile in ("", "unconfined"):
        yield DoctorFinding(**about, health=DoctorSeverity.GOOD, value="we are unconfined")
    else:
        yield DoctorFinding(
            **about,
            health=DoctorSeverity.WARNING,
            value=f"we are under the profile {profile}",
            costs="the profile may forbid ptrace, mounts and opening of files",
            cure="run unconfined (docker run --security-opt apparmor=unconfined)",
        )


def _yama(has: set[str]) -> Iterator[DoctorFinding]:
    scope = read("/proc/sys/kernel/yama/ptrace_scope").strip()
    if not scope:
        return
    about = {"id": "yama", "group": "rights", "title": "Yama (kernel.yama.ptrace_scope)"}
    if scope == "3":
        yield DoctorFinding(
            **about,
            health=DoctorSeverity.BAD,
            value=scope,
            costs="nobody may stop a process, root included",
            cure="it cannot be lowered while the system runs: remove the setting and restart",
        )
    elif scope != "0" and "CAP_SYS_PTRACE" not in has:
        yield DoctorFinding(
            **about,
            health=DoctorSeverity.WARNING,
            value=scope,
            costs="without CAP_SYS_PTRACE, only one's own children can be dumped",
            cure="sysctl -w kernel.yama.ptrace_scope=0",
        )
    else:
        yield DoctorFinding(**about, health=DoctorSeverity.GOOD, value=scope)


def _lockdown() -> Iterator[DoctorFinding]:
    result = read("/sys/kernel/security/lockdown").strip()
    if not result:
        return
    level = result.partition("[")[2].partition("]")[0]
    about = {"id": "lockdown", "group": "rights", "title": "lockdown of the kernel"}
    if level == "confidentiality":
        yield DoctorFinding(
            **about,
            health=DoctorSeverity.WARNING,
            value=level,
            costs="features of the kernel that CRIU asks for may be refused",
            cure="start the kernel with lockdown=integrity, or none",
        )
    else:
        yield DoctorFinding(**about, health=DoctorSeverity.GOOD, value=level)


def _seccomp(status: dict[str, str]) -> DoctorFinding:
    about = {"id": "seccomp", "group": "rights", "title": "filter of our system calls (seccomp)"}
    if status.get("Seccomp", "0") == "0":
        return DoctorFinding(**about, health=DoctorSeverity.GOOD, value="none")
    return DoctorFinding(
        **about,
        health=DoctorSeverity.WARNING,
        value=f"mode {status['Seccomp']}, {status.get('Seccomp_filters', '?')} filters",
        costs="CRIU is under it as well; what it forbids fails, and restored processes inherit it",
        cure="run without it (docker run --security-opt seccomp=unconfined)",
    )
