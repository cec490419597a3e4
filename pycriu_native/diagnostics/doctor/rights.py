"""Checks capabilities, security modules and system call filters.

They are those of the caller, which a worker inherits. Sources for the use of each capability:
CRIU's man page, ``criu/cr-service.c`` and the kernel's checks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from ..._system.host import read
from ..._system.process import status_of
from ...findings import Finding, Severity

ONLY = "a restore works with unprivileged=True only"
CAPABILITIES = {
    "CAP_SYS_ADMIN": (21, "namespaces, mounts and seccomp filters cannot be dumped or restored"),
    "CAP_CHECKPOINT_RESTORE": (40, "without CAP_SYS_ADMIN, nothing works"),
    "CAP_SYS_PTRACE": (
        19,
        "only processes of the same user, without further capabilities, can be dumped",
    ),
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
"""Bit number, and what does not work without it."""
EITHER = ("CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE")
GIVE = "run in a container that is given it (docker run --cap-add={short})"
NAMESPACE = (
    "run as root; or start the program and this library in one user namespace, and set "
    "unprivileged=True: unshare --user --map-root-user --pid --fork --mount-proc; "
    "pycriu-native run makes one itself"
)
"""What a user without rights can do. A namespace of the user's own has all capabilities."""


def look() -> Iterator[Finding]:
    """Findings on capabilities, security modules and seccomp."""
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


def _capability(name: str, costs: str, has: set[str]) -> Finding:
    finding = partial(Finding, id=f"capability:{name}", group="rights", subject=name)
    if name in has:
        return finding(severity=Severity.GOOD, message="held")
    neither = not has & set(EITHER)
    if name == "CAP_CHECKPOINT_RESTORE" and "CAP_SYS_ADMIN" in has:
        return finding(severity=Severity.NOTE, message="lacking, and CAP_SYS_ADMIN held instead")
    if name == EITHER[0] and neither:
        severity = Severity.STOPS
        costs = f"without it or {EITHER[1]}, CRIU refuses to run; {costs}"
    elif neither:
        severity = Severity.NOTE  # of effect once CRIU runs
    else:
        severity = Severity.WARNING
    cure = GIVE.format(short=name.removeprefix("CAP_"))
    if os.geteuid() != 0:
        cure = NAMESPACE if name == EITHER[0] else f"{cure}, or as root"
    return finding(severity=severity, message="lacking", costs=costs, cure=cure)


def _user() -> Finding:
    finding = partial(Finding, id="user", group="rights", subject="user")
    if os.geteuid() == 0:
        return finding(severity=Severity.GOOD, message="root")
    return finding(
        severity=Severity.WARNING,
        message=f"uid {os.geteuid()}",
        costs="CRIU refuses to run unless unprivileged is set, and can save less then",
        cure=NAMESPACE,
    )


def _modules() -> Finding:
    result = read("/sys/kernel/security/lsm").strip()
    value = result or "unknown (/sys/kernel/security is not mounted)"
    finding = partial(Finding, id="security-modules", group="rights", subject="security modules")
    return finding(severity=Severity.NOTE, message=value)


def _selinux() -> Iterator[Finding]:
    enforcing = read("/sys/fs/selinux/enforce").strip()
    if not enforcing:
        return
    finding = partial(Finding, id="selinux", group="rights", subject="SELinux")
    label = read("/proc/self/attr/current").rstrip("\0\n")
    if enforcing == "0":
        yield finding(severity=Severity.GOOD, message=f"permissive, {label}")
    else:
        yield finding(
            severity=Severity.WARNING if "unconfined" not in label else Severity.NOTE,
            message=f"enforcing, {label}",
            costs="the policy may forbid what CRIU does; the audit log shows it (AVC)",
            cure="run from an unconfined domain; for containers, give lsm_profile on restore",
        )


def _apparmor() -> Iterator[Finding]:
    if read("/sys/module/apparmor/parameters/enabled").strip() != "Y":
        return
    profile = read("/proc/self/attr/apparmor/current").strip() or read(
        "/proc/self/attr/current"
    ).rstrip("\0\n")
    finding = partial(Finding, id="apparmor", group="rights", subject="AppArmor")
    if profile in ("", "unconfined"):
        yield finding(severity=Severity.GOOD, message="unconfined")
    else:
        yield finding(
            severity=Severity.WARNING,
            message=f"confined by the profile {profile}",
            costs="the profile may forbid ptrace, mounts and opening of files",
            cure="run unconfined (docker run --security-opt apparmor=unconfined)",
        )


def _yama(has: set[str]) -> Iterator[Finding]:
    scope = read("/proc/sys/kernel/yama/ptrace_scope").strip()
    if not scope:
        return
    finding = partial(Finding, id="yama", group="rights", subject="Yama (kernel.yama.ptrace_scope)")
    if scope == "3":
        yield finding(
            severity=Severity.STOPS,
            message=scope,
            costs="no process can be stopped, not even by root",
            cure="it cannot be lowered while the system runs: remove the setting and restart",
        )
    elif scope != "0" and "CAP_SYS_PTRACE" not in has:
        yield finding(
            severity=Severity.WARNING,
            message=scope,
            costs="without CAP_SYS_PTRACE, only one's own children can be dumped",
            cure="sysctl -w kernel.yama.ptrace_scope=0",
        )
    else:
        yield finding(severity=Severity.GOOD, message=scope)


def _lockdown() -> Iterator[Finding]:
    result = read("/sys/kernel/security/lockdown").strip()
    if not result:
        return
    level = result.partition("[")[2].partition("]")[0]
    finding = partial(Finding, id="lockdown", group="rights", subject="lockdown of the kernel")
    if level == "confidentiality":
        yield finding(
            severity=Severity.WARNING,
            message=level,
            costs="the kernel may refuse features that CRIU needs",
            cure="start the kernel with lockdown=integrity, or none",
        )
    else:
        yield finding(severity=Severity.GOOD, message=level)


def _seccomp(status: dict[str, str]) -> Finding:
    finding = partial(
        Finding, id="seccomp", group="rights", subject="system call filter of the caller (seccomp)"
    )
    if status.get("Seccomp", "0") == "0":
        return finding(severity=Severity.GOOD, message="none")
    everywhere = status_of(1).get("Seccomp", "0") != "0"
    return finding(
        severity=Severity.STOPS if everywhere else Severity.WARNING,
        message=f"mode {status['Seccomp']}, {status.get('Seccomp_filters', '?')} filters",
        costs="processes under a seccomp filter cannot be dumped"
        + (", and here all are" if everywhere else "")
        + "; restored processes inherit it",
        cure="run without it (docker run --security-opt seccomp=unconfined), with CAP_SYS_ADMIN",
    )
