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

The walk itself is ``native/trusted_path.c``.

An access control list that lets others write shows in the group's bits, as its mask does.
"""

from __future__ import annotations

import errno
import functools
import os
import stat

from .._native.ffi import ffi, native
from .._support.light_typing import Any
from .._system.descriptors import above_stdio


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


def is_plain(path: str) -> bool:
    """Whether a quick look is enough: nobody else could change it, and no link is on the way."""
    return bool(native.pn_trust_simple_path(_encoded(path), trusted_uid()))


def are_trusted(directories: tuple[str, ...], ending: str, paths: tuple[str, ...]) -> bool:
    """Whether :func:`check` would take all of them, and each file in the directories whose name
    ends so: in one go, for what each call looks at.
    """
    everything = _words(directories + paths)
    count = len(everything.words)
    return bool(
        native.pn_trust_all(
            everything.array, len(directories), count, ending.encode(), trusted_uid()
        )
    )


class _Words:
    """Paths as C sees them, with the memory that they point to."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.words = [ffi.new("char[]", _encoded(path)) for path in paths]
        self.array = ffi.new("char *[]", self.words)


_words = functools.lru_cache(16)(_Words)


def check_descriptor(fd: int) -> None:
    """The same of an open directory: who opened it knows how it came there."""
    refusal = ffi.new("struct pn_refusal *")
    status = native.pn_trust_descriptor(fd, trusted_uid(), refusal)
    if status:
        raise _error(status, refusal)


def open_directory(path: str, *, make: bool, allow_untrusted: bool) -> int:
    """Open a directory that only root and the caller can change, and no link; ``make`` a missing
    one, with mode 0700. ``allow_untrusted``: any that there is.

    Raises ``UntrustedError`` and ``OSError``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if allow_untrusted:
        if make and not os.path.lexists(path):
            os.mkdir(path, 0o700)
        return above_stdio(os.open(path, flags))
    result = _walk(path, follow=False, make=make)
    try:
        return above_stdio(os.open(".", flags, dir_fd=result))
    finally:
        os.close(result)


def _walk(path: str, *, follow: bool, make: bool = False) -> int:
    """A descriptor (O_PATH, above 2) of what the path leads to."""
    flags = native.PN_FOLLOW * follow | native.PN_MAKE * make
    refusal = ffi.new("struct pn_refusal *")
    result = native.pn_trust_path(_encoded(path), flags, trusted_uid(), refusal)
    if result < 0:
        raise _error(result, refusal)
    return above_stdio(result)


def _encoded(path: str) -> bytes:
    if "\0" in path:
        raise ValueError(f"{path!r}: embedded null byte")
    return os.fsencode(path)


def trusted_uid() -> int:
    """Beside root: the caller, or where it is root by sudo, the user who could do all that."""
    own = os.geteuid()
    by = os.environ.get("SUDO_UID", "") if own == 0 else ""
    return int(by) if by.isdecimal() else own


def _error(status: int, refusal: Any) -> OSError:
    if not refusal.why:
        return OSError(-status, os.strerror(-status))
    shown = os.fsdecode(ffi.string(refusal.shown))
    where = {"": "it", ".": "the current directory"}.get(shown, shown)
    if refusal.why == native.PN_LINK:
        return UntrustedError(f"{where} is a symbolic link")
    if refusal.why == native.PN_OWNER:
        return UntrustedError(f"{where} belongs to user {refusal.uid}")
    who = "everybody" if refusal.mode & stat.S_IWOTH else f"group {refusal.gid}"
    return UntrustedError(f"{where} can be written by {who} (mode {refusal.mode:04o})")
