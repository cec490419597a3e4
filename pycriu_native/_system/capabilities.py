"""Names of capabilities, and those of the calling process (``linux/capability.h``)."""

from __future__ import annotations

import os

from .._support.kernel_text import read_lines
from .process import status_of

CAP_SETPCAP, CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 8, 21, 24
_CAP_NET_ADMIN = 12
NEEDED_BY_RESTORE = {_CAP_NET_ADMIN: "net-buffers", 18: "chroot", 25: "timens-offset"}
"""CAP_NET_ADMIN, CAP_SYS_CHROOT and CAP_SYS_TIME, and the id of CRIU's failure without each in
``known_failures.json``. Neither a dump nor a restore with ``unprivileged`` needs them."""
# fmt: off
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid",
    "setuid", "setpcap", "linux_immutable", "net_bind_service", "net_broadcast",
    "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio",
    "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write",
    "audit_control", "setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm",
    "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)
# fmt: on
_ALL_USERS = ["0", "0", str(2**32 - 1)]
"""The line of ``uid_map`` in the first user namespace (user_namespaces(7))."""

ALL = (1 << len(CAPABILITIES)) - 1
"""The mask of all capabilities of Linux 5.9 and later."""


def capability_name(number: int) -> str:
    """Its name in capabilities(7), such as ``CAP_SYS_ADMIN``."""
    return f"CAP_{CAPABILITIES[number].upper()}"


def has_capability(number: int) -> bool:
    """Whether the calling process has this capability in its effective set."""
    return bool(int(status_of(os.getpid()).get("CapEff", "0"), 16) >> number & 1)


def maps_all_users() -> bool:
    """Whether the user namespace of the calling process maps all users, as the first one does."""
    try:
        return [line.split() for line in read_lines("/proc/self/uid_map")] == [_ALL_USERS]
    except OSError:
        return True  # a kernel without user namespaces


def is_root_of_host() -> bool:
    """Whether the calling process is root, and in no user namespace that maps other users to it."""
    return not os.geteuid() and maps_all_users()


def permitted() -> list[str]:
    """The permitted capabilities of the calling process, named as in images."""
    held = int(status_of(os.getpid()).get("CapPrm", "0"), 16)
    return [f"cap_{name}" for bit, name in enumerate(CAPABILITIES) if held >> bit & 1]


def lacking_for_restore() -> list[tuple[str, str]]:
    """Name and failure of each capability of ``NEEDED_BY_RESTORE`` that the caller lacks.

    That of a user namespace does not suffice for SO_SNDBUFFORCE and SO_RCVBUFFORCE (socket(7)).
    """
    return [
        (capability_name(bit), failure)
        for bit, failure in NEEDED_BY_RESTORE.items()
        if not has_capability(bit) or (bit == _CAP_NET_ADMIN and not maps_all_users())
    ]


def not_permitted(capabilities: int) -> list[str]:
    """The names in a set of capabilities that the calling process is not permitted."""
    lacking = capabilities & ~int(status_of(os.getpid()).get("CapPrm", "0"), 16)
    return [capability_name(bit) for bit in range(len(CAPABILITIES)) if lacking >> bit & 1]
