"""Enters new namespaces, and ends with the parent. For single-threaded processes."""

from __future__ import annotations

import os

from .._native.ffi import checked, native
from . import mounts

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000

IN_CONTAINER = (
    "if this is a container, start it with --security-opt seccomp=unconfined and --security-opt "
    "unmask=ALL (docker: systempaths=unconfined)"
)
"""What a container needs for these namespaces. All of it: each lack hides the next one."""


def unshare(flags: int) -> None:
    """unshare(2). ``OSError``."""
    checked(native.pn_unshare(flags), "unshare")


def enter(*, new_user: bool) -> None:
    """Enter new mount and pid namespaces, in which the next child has pid 1. ``OSError``.

    ``new_user``: in a new user namespace, whose root is the caller's user.
    """
    uid, gid = os.geteuid(), os.getegid()
    if new_user:
        unshare(CLONE_NEWUSER)
        maps = {"setgroups": "deny", "uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    unshare(CLONE_NEWPID | CLONE_NEWNS)


def mount_proc() -> None:
    """In new pid and mount namespaces: mount /proc in these only. ``OSError``."""
    mounts.make_private()
    mounts.mount_proc()


def end_with_parent() -> None:
    """Receive SIGKILL when the thread that started this process ends. ``OSError``."""
    checked(native.pn_end_with_parent(), "prctl")
