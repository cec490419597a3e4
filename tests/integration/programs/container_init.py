"""Become the first process of a container; run in new namespaces by ``containers.py``.

``python container_init.py SPEC`` with SPEC as JSON: ``root`` is the container's root (a mount
point), ``mounts`` a list of [source, place, type, flags, data] in it, ``keep`` descriptors, and
``command`` what runs in the end. No other descriptor or mount of the outside remains.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys

MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
MNT_DETACH = 2

libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    encoded = [os.fsencode(a) if isinstance(a, str) else a for a in arguments]
    if getattr(libc, name)(*encoded):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")


def mount(source: str, place: str, kind: str | None, flags: int, data: str | None) -> None:
    """mount(2); a read-only bind needs two calls."""
    _call(
        "mount",
        source,
        place,
        kind,
        ctypes.c_ulong(flags & ~MS_RDONLY if flags & MS_BIND else flags),
        data,
    )
    if flags & MS_BIND and flags & MS_RDONLY:
        _call("mount", source, place, None, ctypes.c_ulong(flags | MS_REMOUNT), None)


def main() -> None:
    """Mount, enter, close, run."""
    spec = json.loads(sys.argv[1])
    root = spec["root"]
    os.setsid()  # a session with its leader outside cannot be dumped
    for source, place, kind, flags, data in spec["mounts"]:
        mount(source, root + place, kind, flags, data)
    os.chdir(root)
    _call("pivot_root", ".", ".")  # the old root is now under the new one
    _call("umount2", ".", MNT_DETACH)
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    errors = os.open("/box/stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for fd, place in ((null, 0), (null, 1), (errors, 2)):
        os.dup2(fd, place)
    bounds = [2, *sorted(spec["keep"]), 64]
    for low, high in itertools.pairwise(bounds):
        os.closerange(low + 1, high)
    os.execv(spec["command"][0], spec["command"])


if __name__ == "__main__":
    main()
