"""Numbers of system calls without a function in Python and the C library."""

from __future__ import annotations

import os

_X86_64 = {
    "exit": 60, "add_key": 248, "request_key": 249, "get_mempolicy": 239, "set_mempolicy": 238,
    "ioprio_set": 251, "ioprio_get": 252, "perf_event_open": 298, "userfaultfd": 323,
    "keyctl": 250, "bpf": 321,
}  # fmt: skip
_GENERIC = {
    "exit": 93, "add_key": 217, "request_key": 218, "get_mempolicy": 236, "set_mempolicy": 237,
    "ioprio_set": 30, "ioprio_get": 31, "perf_event_open": 241, "userfaultfd": 282,
    "keyctl": 219, "bpf": 280,
}  # fmt: skip
_EVERYWHERE = {
    "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438, "landlock_create_ruleset": 444,
    "landlock_restrict_self": 446, "mseal": 462,
}  # fmt: skip

NUMBERS = _EVERYWHERE | (_X86_64 if os.uname().machine == "x86_64" else _GENERIC)
"""Of ``asm/unistd_64.h`` on x86-64, ``asm-generic/unistd.h`` on AArch64 and RISC-V."""
