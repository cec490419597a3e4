"""A process that sets properties of itself and writes their values on request.

Other numbers are from ``linux/prctl.h`` and ``asm-generic/mman-common.h``.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

DIRECTORY = Path(sys.argv[1])
NUMBERS: dict[str, int] = json.loads(sys.argv[2])
"""Of system calls."""
out = (DIRECTORY / "out").open("r+")
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
SIZE = 1 << 20
ADVICE = {"dontfork": 10, "dontdump": 16, "wipeonfork": 18, "mergeable": 12, "random": 1}


def _prctl(*words: int) -> int:
    return int(libc.prctl(*map(ctypes.c_ulong, (*words, 0, 0, 0, 0)[:5])))


def _read_int(option: int) -> int:
    value = ctypes.c_int(-1)
    libc.prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value


def _memory(advice: int = 0) -> int:
    at = int(libc.mmap(None, ctypes.c_size_t(SIZE), 3, 0x22, -1, ctypes.c_long(0)))
    ctypes.memset(at, 1, SIZE)
    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(SIZE), advice)
    return at


def _flags() -> dict[str, list[str]]:
    result, name = {}, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            start, end = (int(word, 16) for word in words[0].split("-"))
            name = next((name for name, at in areas.items() if start <= at < end), None)
        elif words[0] == "VmFlags:" and name:
            result[name] = words[1:]
    return result


def _status(*names: str) -> list[str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line for line in lines if line.split(":")[0] in names]


def _landlock() -> int:
    handled = struct.pack("Q", 2)  # writing to files
    ruleset = libc.syscall(NUMBERS["landlock_create_ruleset"], handled, len(handled), 0)
    if ruleset < 0:
        return -1
    try:
        return int(libc.syscall(NUMBERS["landlock_restrict_self"], ruleset, 0))
    finally:
        os.close(ruleset)  # CRIU cannot dump it


def _may_write() -> bool:
    try:
        (DIRECTORY / "denied").open("a").close()
    except PermissionError:
        return False
    return True


def look() -> dict[str, Any]:
    """The value of each property, read in the process."""
    mode = ctypes.c_int(-1)
    libc.syscall(NUMBERS["get_mempolicy"], ctypes.byref(mode), None, 0, None, 0)
    flags = _flags()
    umask = os.umask(0)
    os.umask(umask)
    return {
        "affinity": sorted(os.sched_getaffinity(0)),
        "capabilities": _status("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
        "child_subreaper": _read_int(37),
        "coredump_filter": Path("/proc/self/coredump_filter").read_text(),
        "dumpable": _prctl(3),
        "io_priority": libc.syscall(NUMBERS["ioprio_get"], 1, 0),
        "keys": libc.syscall(NUMBERS["request_key"], b"user", b"pycriu-native", None, 0) > 0,
        "landlock": _may_write(),
        "madvise": {name: flags[name] for name in ADVICE},
        "mce_kill": _prctl(34),
        "mdwe": _prctl(66),
        "mempolicy": mode.value,
        "merge_memory": _prctl(68),
        "mlock": _status("VmLck"),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "no_new_privs": _prctl(39),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
        "pdeathsig": _read_int(2),
        "personality": Path("/proc/self/personality").read_text(),
        "scheduler": os.sched_getscheduler(0),
        "sealed": "sl" in flags.get("sealed", ()),
        "securebits": _prctl(27),
        "thp_disable": _prctl(42),
        "timer_slack": _prctl(30),
        "umask": umask,
        "not_set": not_set,
    }


areas = {name: _memory(number) for name, number in ADVICE.items()}
areas["sealed"] = _memory()
libc.mlock(ctypes.c_void_p(_memory()), ctypes.c_size_t(SIZE))
Path("/proc/self/coredump_filter").write_text("0x7")
Path("/proc/self/oom_score_adj").write_text("300")
os.setpriority(os.PRIO_PROCESS, 0, 5)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.umask(0o027)
processors = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(processors)})
libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
tried = {
    "child_subreaper": _prctl(36, 1),
    "io_priority": libc.syscall(NUMBERS["ioprio_set"], 1, 0, 2 << 13 | 6),
    "keys": libc.syscall(NUMBERS["add_key"], b"user", b"pycriu-native", b"v", 1, -2),
    "mce_kill": _prctl(33, 1, 1),
    "mempolicy": libc.syscall(NUMBERS["set_mempolicy"], 3, struct.pack("Q", 1), 64),
    "merge_memory": _prctl(67, 1),
    "no_new_privs": _prctl(38, 1),
    "pdeathsig": _prctl(1, 17),  # SIGCHLD, which does nothing
    "sealed": libc.syscall(
        NUMBERS["mseal"], ctypes.c_void_p(areas["sealed"]), ctypes.c_size_t(SIZE), 0
    ),
    "securebits": _prctl(28, 1 << 2 | 1 << 6),
    "thp_disable": _prctl(41, 1),
    "timer_slack": _prctl(29, 123456),
    "mdwe": _prctl(65, 1),
    "landlock": _landlock(),
}
not_set = [name for name, status in tried.items() if status < 0]
if len(processors) == 1:
    not_set.append("affinity")

count = 0
while True:
    while not (DIRECTORY / f"ask{count}").exists():
        time.sleep(0.01)
    print(json.dumps(look()), file=out, flush=True)
    count += 1
