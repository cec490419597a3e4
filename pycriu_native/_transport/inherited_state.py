"""The state that a ``criu`` process inherits from the process that starts it.

A worker that was started ahead is equivalent to a new one only while this state is unchanged: CRIU
runs in the namespaces, root directory and cgroup, and with the rights and limits, that its process
inherited, and reads its configuration files at its start. Most of this state belongs to a thread,
so it is read on the thread that makes the call.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping

from .._native.ffi import ffi, memory, native
from .._support.light_typing import Any
from .spawn import configuration_paths

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")

WHOLE_FILES = ("../../coredump_filter", "attr/current", "attr/exec", "cgroup", "oom_score_adj")
"""Files of /proc/PID/task/TID that are compared as a whole."""

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
    b"Cpus_allowed:",
    b"Mems_allowed:",
)
"""Lines of /proc/PID/status: rights, file mode mask, filters of system calls, processors."""

STAT_FIELDS = (3, 4, 15, 16, 37, 38)
"""Fields of /proc/PID/stat behind the name: session, terminal, priority, nice, real-time priority
and policy. (Field 3 of proc_pid_stat(5) is the first one behind the name, 0 here.)"""

INITIAL_SIZE, MAX_SIZE = 2**13, 2**20
"""Sizes in bytes of the buffer for all these files; a process in very many groups needs more."""


@functools.lru_cache(16)
def _parts(*configuration: str) -> tuple[Any, list[Any]]:
    """An array of ``struct pn_part``, and the texts that it points to, which are kept."""
    fields = "".join("x" if n in STAT_FIELDS else "-" for n in range(max(STAT_FIELDS) + 1))
    parts = [
        *((native.PN_PART_LINK, f"ns/{name}", b"", False) for name in NAMESPACES),
        *((native.PN_PART_DIRECTORY, path, b"", True) for path in ("/", ".")),
        (native.PN_PART_FIELDS, "stat", fields.encode(), True),
        (native.PN_PART_LINES, "status", b"\0".join(STATUS_LINES) + b"\0", True),
        *((native.PN_PART_CONTENT, name, b"", False) for name in WHOLE_FILES),
        (native.PN_PART_THREAD, "", b"", True),
        *((native.PN_PART_FILE, path, b"", False) for path in configuration),
    ]
    array, held = ffi.new("struct pn_part[]", len(parts)), list[Any]()
    for part, (kind, path, line_filter, required) in zip(array, parts, strict=True):
        texts = [ffi.new("char[]", text) for text in (os.fsencode(path), line_filter)]
        part.kind, part.required = kind, required
        part.path, part.filter = texts
        held += texts
    return array, held


def inherited_state(env: Mapping[str, str]) -> bytes | None:
    """The state that a worker with this environment would inherit from this thread, as bytes to
    compare.

    None if it cannot be read from /proc: then no worker that was started ahead can be used.
    """
    parts, _ = _parts(*configuration_paths(env))
    size = INITIAL_SIZE
    while size <= MAX_SIZE:
        buffer = memory("char[]", size)
        length = native.pn_read_inherited_state(parts, len(parts), buffer, size)
        if length >= 0:
            return bytes(ffi.buffer(buffer, length))
        if length != -errno.ENOBUFS:
            return None
        size *= 2
    return None
