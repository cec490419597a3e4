"""Checks capabilities, security modules and system call filters.

They are those of the caller, which a worker inherits. Sources for the use of each capability:
CRIU's man page, ``criu/cr-service.c`` and the kernel's checks.
"""

from __future__ import annotations

import os

from ..._system.capabilities import CAPABILITIES as NAMES
from ..._system.capabilities import capability_name
from ..._system.host import read
from ..._system.process import status_of
from ...findings import Finding, Severity
from .subject import Findings, Subject

ONLY = "a restore works with unprivileged=True only"
CAPABILITIES = {
    "CAP_SYS_ADMIN": "namespaces, mounts and seccomp filters cannot be dumped or restored",
    "CAP_CHECKPOINT_RESTORE": "without CAP_SYS_ADMIN, nothing works",
    "CAP_SYS_PTRACE": "only processes of the same user, without further capabilities, can be "
    "dumped",
    "CAP_NET_ADMIN": f"TCP connections and network namespaces cannot be saved; {ONLY}",
    "CAP_SYS_RESOURCE": "processes of other users cannot be dumped; lazy_pages needs "
    "fs.pipe-max-size",
    "CAP_SYS_TIME": f"the clocks of processes cannot be restored: {ONLY}",
    "CAP_DAC_OVERRIDE": "files of other users cannot be opened again",
    "CAP_DAC_READ_SEARCH": "files that are watched (inotify) are not found",
    "CAP_SETUID": "processes of other users cannot be restored",
    "CAP_SETGID": "processes of other groups cannot be restored",
    "CAP_SETPCAP": "the capabilities of processes cannot be restored",
    "CAP_CHOWN": "owners of files in containers cannot be restored",
    "CAP_FOWNER": "modes of files in containers cannot be restored",
    "CAP_KILL": "processes of other users cannot be ended after a dump",
    "CAP_MKNOD": "devices in containers cannot be restored",
    "CAP_NET_RAW": "raw and packet sockets cannot be restored",
    "CAP_NET_BIND_SERVICE": "sockets on ports below 1024 cannot be restored",
    "CAP_SYS_CHROOT": f"roots of processes cannot be restored: {ONLY}",
    "CAP_SYS_NICE": "priorities and schedulers cannot be restored",
    "CAP_IPC_LOCK": "locked memory cannot be restored",
    "CAP_IPC_OWNER": "System V objects of other users cannot be saved",
    "CAP_AUDIT_CONTROL": "login uids cannot be restored",
}
"""What does not work without each."""
EITHER = ("CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE")
GIVE = "run in a container that is given it (docker run --cap-add={short})"
NAMESPACE = (
    "run as root; or start the program and this library in one user namespace, and set "
    "unprivileged=True: unshare --user --map-root-user --pid --fork --mount-proc; "
    "pycriu-native run makes one itself"
)
"""What a user without rights can do. A namespace of the user's own has all capabilities."""


def look() -> Findings:
    status = status_of(os.getpid())
    held = int(status.get("CapEff", "0"), 16)
    has = {capability_name(bit) for bit in range(len(NAMES)) if held >> bit & 1}
    for name, costs in CAPABILITIES.items():
        yield _capability(name, costs, has)
    yield _user()
    yield _modules()
    yield from _selinux()
    yield from _apparmor()
    yield from _yama(has)
    yield from _lockdown()
    yield _seccomp(status)


def _capability(name: str, costs: str, has: set[str]) -> Finding:
    about = Subject(f"capability:{name}", "rights", name)
    if name in has:
        return about.good("held")
    neither = not has & set(EITHER)
    if name == "CAP_CHECKPOINT_RESTORE" and "CAP_SYS_ADMIN" in has:
        return about.note("lacking, and CAP_SYS_ADMIN held instead")
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
    return about.finding(severity, "lacking", costs=costs, cure=cure)


def _user() -> Finding:
    about = Subject("user", "rights", "user")
    if os.geteuid() == 0:
        return about.good("root")
    return about.warning(
        f"uid {os.geteuid()}",
        costs="CRIU refuses to run unless unprivileged is set, and can save less then",
        cure=NAMESPACE,
    )


def _modules() -> Finding:
    result = read("/sys/kernel/security/lsm").strip()
    return Subject("security-modules", "rights", "security modules").note(
        result or "unknown (/sys/kernel/security is not mounted)"
    )


def _selinux() -> Findings:
    enforcing = read("/sys/fs/selinux/enforce").strip()
    if not enforcing:
        return
    about = Subject("selinux", "rights", "SELinux")
    label = read("/proc/self/attr/current").rstrip("\0\n")
    if enforcing == "0":
        yield about.good(f"permissive, {label}")
    else:
        yield about.finding(
            Severity.WARNING if "unconfined" not in label else Severity.NOTE,
            f"enforcing, {label}",
            costs="the policy may forbid what CRIU does; the audit log shows it (AVC)",
            cure="run from an unconfined domain; for containers, give lsm_profile on restore",
        )


def _apparmor() -> Findings:
    if read("/sys/module/apparmor/parameters/enabled").strip() != "Y":
        return
    profile = read("/proc/self/attr/apparmor/current").strip() or read(
        "/proc/self/attr/current"
    ).rstrip("\0\n")
    about = Subject("apparmor", "rights", "AppArmor")
    if profile in ("", "unconfined"):
        yield about.good("unconfined")
    else:
        yield about.warning(
            f"confined by the profile {profile}",
            costs="the profile may forbid ptrace, mounts and opening of files",
            cure="run unconfined (docker run --security-opt apparmor=unconfined)",
        )


def _yama(has: set[str]) -> Findings:
    scope = read("/proc/sys/kernel/yama/ptrace_scope").strip()
    if not scope:
        return
    about = Subject("yama", "rights", "Yama (kernel.yama.ptrace_scope)")
    if scope == "3":
        yield about.stops(
            scope,
            costs="no process can be stopped, not even by root",
            cure="it cannot be lowered while the system runs: remove the setting and restart",
        )
    elif scope != "0" and "CAP_SYS_PTRACE" not in has:
        yield about.warning(
            scope,
            costs="without CAP_SYS_PTRACE, only one's own children can be dumped",
            cure="sysctl -w kernel.yama.ptrace_scope=0",
        )
    else:
        yield about.good(scope)


def _lockdown() -> Findings:
    result = read("/sys/kernel/security/lockdown").strip()
    if not result:
        return
    level = result.partition("[")[2].partition("]")[0]
    about = Subject("lockdown", "rights", "lockdown of the kernel")
    if level == "confidentiality":
        yield about.warning(
            level,
            costs="the kernel may refuse features that CRIU needs",
            cure="start the kernel with lockdown=integrity, or none",
        )
    else:
        yield about.good(level)


def _seccomp(status: dict[str, str]) -> Finding:
    about = Subject("seccomp", "rights", "system call filter of the caller (seccomp)")
    if status.get("Seccomp", "0") == "0":
        return about.good("none")
    everywhere = status_of(1).get("Seccomp", "0") != "0"
    return about.finding(
        Severity.STOPS if everywhere else Severity.WARNING,
        f"mode {status['Seccomp']}, {status.get('Seccomp_filters', '?')} filters",
        costs="processes under a seccomp filter cannot be dumped"
        + (", and here all are" if everywhere else "")
        + "; restored processes inherit it",
        cure="run without it (docker run --security-opt seccomp=unconfined), with CAP_SYS_ADMIN",
    )
