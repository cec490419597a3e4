"""Whether another user of this machine could change what a path leads to.

CRIU runs as root, or with a capability that is as good, and opens files by name in the images
directory, following links. So who can write a directory on the way there, or swap one, has a
say in what root writes and runs. A path is walked one component at a time, each opened in the
one before it without following links, and looked at by its descriptor: what is handed on is
what was looked at. Every component must belong to root or to the caller (also to the one who
became root by sudo), and be writable by nobody else. A sticky directory such as /tmp may be on
the way: there only the owner of an entry can swap it, and the entry must be ours. A symbolic link
on the way is as good as the directory that it lies in; one at the end is refused where an images
directory is asked for.

An access control list that lets others write shows in the group's bits, as its mask does.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from contextlib import suppress

from ._line import above_stdio

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
MOST_LINKS = 40
"""Symbolic links in one path; the kernel stops there too."""


class UntrustedError(PermissionError):
    """Who could change what a path leads to, in words (``strerror``)."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)


def check(path: str) -> None:
    """Raise ``UntrustedError`` if others could change the file or directory; links are followed.

    ``OSError`` where it cannot be opened; what is missing under trusted directories is as
    trusted as they are.
    """
    os.close(_walk(path, follow=True))


def check_descriptor(fd: int) -> None:
    """The same of an open directory: who opened it knows how it came there."""
    _look_at(os.fstat(fd), "it", False)


def open_directory(path: str, *, make: bool, trusting: bool) -> int:
    """Open a directory that only root and the caller can change, and no link; ``make`` a missing
    one, with mode 0700. ``trusting``: any that there is.

    Raises ``UntrustedError`` and ``OSError``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if trusting:
        if make and not os.path.lexists(path):
            os.mkdir(path, 0o700)
        return above_stdio(os.open(path, flags))
    found = _walk(path, follow=False, make=make)
    try:
        return above_stdio(os.open(".", flags, dir_fd=found))
    finally:
        os.close(found)


def _walk(path: str, *, follow: bool, make: bool = False) -> int:
    """A descriptor (O_PATH, above 2) of what the path leads to."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    opened: list[int] = []

    def entered(name: str, flags: int = STEP, at: int | None = None) -> int:
        fd = os.open(name, flags, dir_fd=at)
        opened.append(fd)
        return fd

    try:
        start, parts = _split(path)
        at, shown = entered(start), start
        _look_at(os.fstat(at), "the current directory" if start == "." else "/", bool(parts))
        links = 0
        while parts:
            name = parts.popleft()
            above, shown = shown, os.path.join(shown, name)
            if make and not parts:
                with suppress(FileExistsError):  # whoever made it: it is looked at like any other
                    os.mkdir(name, 0o700, dir_fd=at)
            below = entered(name, at=at)
            found = os.fstat(below)
            if not stat.S_ISLNK(found.st_mode):
                _look_at(found, shown, bool(parts))
                at = below
                continue
            if not parts and not follow:
                raise UntrustedError(f"{shown} is a symbolic link")
            _look_at_owner(found, shown)
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink("", dir_fd=below)
            if _is_magic(found, target):
                # It leads to an open file, whatever its text says.
                at = entered(name, STEP & ~os.O_NOFOLLOW, at)
                _look_at(os.fstat(at), shown, bool(parts))
                continue
            base, more = _split(target)
            parts.extendleft(reversed(more))
            if base == "/":
                at, above = entered(base), base
            shown = above
        return above_stdio(os.dup(at))
    finally:
        for fd in opened:
            os.close(fd)


def _split(path: str) -> tuple[str, deque[str]]:
    """Where a path starts, and its components."""
    parts = deque(part for part in path.split("/") if part not in ("", "."))
    return ("/" if path.startswith("/") else "."), parts


def _is_magic(link: os.stat_result, target: str) -> bool:
    """Whether a link is one of /proc that leads to an object of the kernel's."""
    in_proc = link.st_dev == os.stat("/proc").st_dev
    return in_proc and (target.startswith("/") or ":[" in target)


def _trusted() -> tuple[int, int]:
    """Root, and the caller; or, where it is root by sudo, the user who could do all that anyway."""
    own = os.geteuid()
    by = os.environ.get("SUDO_UID", "") if own == 0 else ""
    return 0, int(by) if by.isdecimal() else own


def _look_at_owner(found: os.stat_result, where: str) -> None:
    if found.st_uid not in _trusted():
        raise UntrustedError(f"{where} belongs to user {found.st_uid}")


def _look_at(found: os.stat_result, where: str, on_the_way: bool) -> None:
    """``on_the_way``: there is more of the path behind it."""
    _look_at_owner(found, where)
    mode = found.st_mode
    if mode & OTHERS_WRITE and not (on_the_way and mode & stat.S_ISVTX):
        who = "everybody" if mode & stat.S_IWOTH else f"group {found.st_gid}"
        raise UntrustedError(f"{where} can be written by {who} (mode {stat.S_IMODE(mode):04o})")
