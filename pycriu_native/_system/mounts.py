"""Mounts and unmounts, and resolves a path below another root."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence

from .._native.ffi import checked, ffi, native

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000

MOST_LINKS = 40
"""The number of symbolic links that the kernel follows in one path."""


def inside(base: str, path: str) -> str:
    """A path resolved with ``base`` as the root directory.

    Symbolic links do not lead out of it; components that do not exist are kept.
    """
    todo = path.split("/")[::-1]
    result, links = "", 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            result = os.path.dirname(result)
            continue
        try:
            target = os.readlink(f"{base}{result}/{part}")
        except OSError:
            result += "/" + part
            continue
        links += 1
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            result = ""
        todo += target.split("/")[::-1]
    return result or "/"


@contextlib.contextmanager
def mount_point(directory: str) -> Iterator[str]:
    """A temporary bind mount of a directory, whose parent mount is not covered by others."""
    with _mounted(directory, MS_BIND | MS_REC) as place:
        _mount(None, place, MS_PRIVATE | MS_REC)
        yield place


@contextlib.contextmanager
def overlay_of(lower: Sequence[str]) -> Iterator[str]:
    """A temporary read-only overlay mount of directories, the uppermost first."""
    if len(lower) == 1:  # the kernel refuses an overlay of one directory
        yield lower[0]
        return
    data = "lowerdir=" + ":".join(lower)
    with _mounted("overlay", MS_RDONLY, kind="overlay", data=data) as place:
        yield place


@contextlib.contextmanager
def _mounted(source: str, flags: int, **more: str) -> Iterator[str]:
    """A mount at a temporary directory."""
    place = tempfile.mkdtemp(prefix="pycriu-native-root-")
    try:
        _mount(source, place, flags, **more)
        try:
            yield place
        finally:
            detach(place)
    finally:
        os.rmdir(place)


def make_private() -> None:
    """In a new mount namespace: stop its mounts from propagating to others. ``OSError``."""
    _mount(None, "/", MS_PRIVATE | MS_REC)


def mount_proc() -> None:
    """Mount the procfs of the caller's pid namespace over /proc. ``OSError``."""
    _mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, kind="proc")


def mount_devpts() -> None:
    """Mount a new devpts, whose terminals belong to the caller's user and group. ``OSError``.

    Without it, terminals in a new user namespace belong to users that are not mapped.
    """
    _mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, kind="devpts", data="ptmxmode=0666")
    _mount("/dev/pts/ptmx", "/dev/ptmx", MS_BIND)


def detach(place: str) -> None:
    """Unmount a mount point, even if it is in use (MNT_DETACH). ``OSError``."""
    checked(native.pn_unmount(os.fsencode(place)), f"umount of {place}")


def _mount(
    source: str | None, place: str, flags: int, *, kind: str | None = None, data: str | None = None
) -> None:
    first, second, third, fourth = (
        ffi.NULL if each is None else ffi.new("char[]", os.fsencode(each))
        for each in (source, place, kind, data)
    )
    checked(native.pn_mount(first, second, third, flags, fourth), f"mount of {source or place}")
