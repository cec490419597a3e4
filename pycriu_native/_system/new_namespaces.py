"""Enter new namespaces, and end with the parent. For single-threaded processes of our own."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """unshare(2); ``OSError``."""
    _check(_libc.unshare(flags), "unshare")


def map_to_root(uid: int, gid: int) -> None:
    """In a new user namespace: be its root. ``uid`` and ``gid`` are those outside of it."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount_proc() -> None:
    """In a new mount namespace: no mount reaches another namespace; /proc is of this pid namespace.

    ``OSError``.
    """
    none = ctypes.c_char_p(None)
    private = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _check(_libc.mount(none, b"/", none, private, none), "mount of / as private")
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _check(_libc.mount(b"proc", b"/proc", b"proc", flags, none), "mount of /proc")


def end_with_parent() -> None:
    """Be killed when the thread ends that has started this process."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        if code == errno.EPERM:
            what = f"{what} is not permitted here"
        raise OSError(code, f"{what}: {os.strerror(code)}")
