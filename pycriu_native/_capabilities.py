"""Capabilities: their names, and which of them the calling process has (``linux/capability.h``)."""

from __future__ import annotations

import os

from ._tree import status_of

CAP_SYS_RESOURCE, CAP_SYS_TIME = 24, 25
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


def has_capability(number: int) -> bool:
    """Whether the calling process has this capability in its effective set."""
    return bool(int(status_of(os.getpid()).get("CapEff", "0"), 16) >> number & 1)


def permitted() -> list[str]:
    """The names of the capabilities that the calling process is permitted, as images have them."""
    held = int(status_of(os.getpid()).get("CapPrm", "0"), 16)
    return [f"cap_{name}" for bit, name in enumerate(CAPABILITIES) if held >> bit & 1]


def not_permitted(wanted: int) -> list[str]:
    """The names of the capabilities of a set that the calling process is not permitted."""
    lacking = wanted & ~int(status_of(os.getpid()).get("CapPrm", "0"), 16)
    return [f"CAP_{name.upper()}" for bit, name in enumerate(CAPABILITIES) if lacking >> bit & 1]
