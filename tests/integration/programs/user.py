"""Runs a script as another user, with at most one capability.

``python user.py UID CAPABILITY SCRIPT ARGUMENTS`` becomes that user with one capability (its
number; -1: none), for itself and its children, and then calls the function ``main`` of SCRIPT,
a Python file. All imports come before: the interpreter may be in a directory that only root reads.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Any

PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 4, 8, 47, 2
VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def _call(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def become(uid: int, capability: int) -> None:
    """Drop every other user, group and capability, in every set."""
    os.setgroups([])
    _call(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    bits = 1 << capability if capability >= 0 else 0
    low, high = bits & 0xFFFFFFFF, bits >> 32
    sets = struct.pack("6I", low, low, low, high, high, high)
    _call(libc.capset(struct.pack("Ii", VERSION_3, 0), sets))
    if capability >= 0:
        _call(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))
    _call(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # so that /proc/self belongs to this user


if __name__ == "__main__":
    import pycriu_native

    pycriu_native.preload()
    script: dict[str, Any] = {"__name__": "script"}
    with open(sys.argv[3]) as source:
        exec(compile(source.read(), sys.argv[3], "exec"), script)
    become(int(sys.argv[1]), int(sys.argv[2]))
    script["main"](*sys.argv[4:])
