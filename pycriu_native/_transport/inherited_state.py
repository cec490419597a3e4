"""What a ``criu`` takes over from the process that starts it, at the time that it starts it.

A worker that was started ahead is as good as a fresh one only while nothing of this has
changed: CRIU works in the namespaces, the root, the cgroup, with the rights and the limits that
its process was born with, and reads its configuration files as it starts. Linux keeps most of
this for each thread, so it is asked on the thread that makes the call.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping, Sequence

from .._native.ffi import ffi, memory, native
from .._support.light_typing import Any

NAMESPACES = (
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid_for_children",
    "time_for_children",
    "user",
    "uts",
)

WHOLE_FILES = (
    "attr/current",
    "attr/exec",
    "cgroup",
    "oom_score_adj",
)
"""Files of /proc that are compared as they are."""

STATUS_LINES = (
    b"Umask:",
    b"Uid:",
    b"Gid:",
    b"Groups:",
    b"CapInh:",
    b"CapPrm:",
    b"CapEff:",
    b"CapBnd:",
    b"CapAmb:",
    b"NoNewPrivs:",
    b"Seccomp:",
    b"Seccomp_filters:",
    b"THP_enabled:",
    b"Cpus_allowed:",
    b"Mems_allowed:",
)
"""Lines of /proc/PID/status: rights, file mode mask, filters of system calls, processors."""

STAT_FIELDS = (3, 4, 15, 16, 37, 38)
"""Fields of /proc/PID/stat behind the name: session, terminal, priority, nice, real-time priority
and policy. (Field 3 of proc_pid_stat(5) is the first one behind the name, 0 here.)"""

GLOBAL_CONFIGURATION = "/etc/criu/default.conf"

USUAL, LARGEST = 2**13, 2**20
"""Bytes of all these files together; a process in very many groups has more than usual."""


class _Parts:
    """The parts as C sees them, with the memory that they point to."""

    def __init__(self, configuration: Sequence[str]) -> None:
        self._held: list[Any] = []
        fields = "".join("x" if n in STAT_FIELDS else "-" for n in range(max(STAT_FIELDS) + 1))
        parts = [
            *((native.PN_PART_LINK, f"ns/{name}", b"", False) for name in NAMESPACES),
            *((native.PN_PART_PLACE, path, b"", True) for path in ("/", ".")),
            (native.PN_PART_FIELDS, "stat", fields.encode(), True),
            (native.PN_PART_LINES, "status", b"\0".join(STATUS_LINES) + b"\0", True),
            *((native.PN_PART_WHOLE, name, b"", False) for name in WHOLE_FILES),
            (native.PN_PART_STATE, "", b"", True),
            *((native.PN_PART_STAMP, path, b"", False) for path in configuration),
        ]
        self.count = len(parts)
        self.array = ffi.new("struct pn_part[]", self.count)
        for part, (kind, path, only, needed) in zip(self.array, parts, strict=True):
            part.kind, part.needed = kind, needed
            part.path, part.only = self._text(os.fsencode(path)), self._text(only)

    def _text(self, text: bytes) -> Any:
        self._held.append(ffi.new("char[]", text))
        return self._held[-1]


@functools.lru_cache(16)
def _parts(*configuration: str) -> _Parts:
    return _Parts(configuration)


def inherited_state(env: Mapping[str, str]) -> bytes | None:
    """What a worker with this environment would take over from this thread, to be compared.

    None where /proc cannot tell: then nothing is known to be the same.
    """
    parts = _parts(*_configuration(env))
    size = USUAL
    while size <= LARGEST:
        buffer = memory("char[]", size)
        length = native.pn_read_state(parts.array, parts.count, buffer, size)
        if length >= 0:
            return bytes(ffi.buffer(buffer, length))
        if length != -errno.ENOBUFS:
            return None
        size *= 2
    return None


def _configuration(env: Mapping[str, str]) -> list[str]:
    """The files that CRIU reads as it starts (``criu/config.c``)."""
    home = env.get("HOME", "/")
    named = env.get("CRIU_CONFIG_FILE")
    return [
        GLOBAL_CONFIGURATION,
        os.path.join(home, ".criu/default.conf"),
        *([] if named is None else [named]),
    ]
