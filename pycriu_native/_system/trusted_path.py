"""Checks whether another user of this machine could change the file of a path.

CRIU runs as root, or with an equivalent capability, and opens files by name in the images
directory, following links. A user who can write to or replace a directory of the path can choose
the files that root reads and writes. Each component of a path is opened relative to the one
before, without following links, and checked by its descriptor, which is then used. Every component
must belong to root or to the caller (also to the user who ran sudo), and no other user may have
write access. A sticky directory such as /tmp is accepted if the entry in it belongs to one of
these. A symbolic link inside the path is as trusted as its directory; a link as images directory is
refused.

The walk itself is ``native/trusted_path.c``.

The mask of an access control list is part of the mode: it is in the bits of the group.

In a user namespace in which root is not mapped, the files of root and of all other unmapped users
belong to the overflow user. Such a file or component is accepted, but not in a directory that
others can write to, and not as the images directory.
"""

from __future__ import annotations

import errno
import functools
import os
import stat

from .._native.ffi import ffi, native
from .._support.light_typing import Any
from .._support.unpatched import close, closing
from .._system.descriptors import above_stdio
from .._system.id_maps import NO_ID, is_overflow_uid, unmapped


class UntrustedError(PermissionError):
    """Another user could change the file of a path; ``strerror`` is the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)


def check(path: str) -> None:
    """Raise ``UntrustedError`` if others could change the file or directory; links are followed.

    Raises ``OSError`` if it cannot be opened. A missing file is as trusted as its directory.
    """
    close(_walk(path, follow=True))


def is_plain(path: str) -> bool:
    """Whether no other user could change the file and the path has no link. Fast."""
    return bool(native.pn_trust_simple_path(_encoded(path), _trusted()))


def are_trusted(directories: tuple[str, ...], ending: str, paths: tuple[str, ...]) -> bool:
    """Whether :func:`check` accepts these, and each file with this ending in the directories.

    It is one call into C, for the paths that each call checks.
    """
    array, strings = _path_array(directories + paths)
    count = len(directories), len(strings)
    return bool(native.pn_trust_all(array, *count, ending.encode(), _trusted()))


@functools.lru_cache(16)
def _path_array(paths: tuple[str, ...]) -> tuple[Any, list[Any]]:
    """Paths as an array of C strings, and the strings, which have to be kept."""
    strings = [ffi.new("char[]", _encoded(path)) for path in paths]
    return ffi.new("char *[]", strings), strings


def check_descriptor(fd: int) -> None:
    """Raise ``UntrustedError`` if others could change an open directory; without its path."""
    refusal = ffi.new("struct pn_refusal *")
    status = native.pn_trust_descriptor(fd, _trusted(), refusal)
    if status:
        raise _error(status, refusal)


def open_directory(path: str, *, make: bool, allow_untrusted: bool) -> int:
    """Open a directory that is no link and that only root and the caller can change.

    ``make`` makes a missing one, with mode 0700; ``allow_untrusted`` accepts any directory.

    Raises ``UntrustedError`` and ``OSError``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if allow_untrusted:
        if make and not os.path.lexists(path):
            os.mkdir(path, 0o700)
        return above_stdio(os.open(path, flags))
    with closing(_walk(path, follow=False, make=make)) as result:
        return above_stdio(os.open(".", flags, dir_fd=result))


def _walk(path: str, *, follow: bool, make: bool = False) -> int:
    """A descriptor (O_PATH, above 2) of the file of a path."""
    flags = native.PN_FOLLOW * follow | native.PN_CREATE * make
    refusal = ffi.new("struct pn_refusal *")
    result = native.pn_trust_path(_encoded(path), flags, _trusted(), refusal)
    if result < 0:
        raise _error(result, refusal)
    return above_stdio(result)


def _encoded(path: str) -> bytes:
    if "\0" in path:
        raise ValueError(f"{path!r}: embedded null byte")
    return os.fsencode(path)


def trusted_uid() -> int:
    """The trusted user besides root: the caller, or under sudo the user who ran it."""
    own = os.geteuid()
    by = os.environ.get("SUDO_UID", "") if own == 0 else ""
    number = by.isascii() and by.isdecimal() and len(by) <= len(str(NO_ID))
    return int(by) if number and int(by) < NO_ID else own


def _trusted() -> int:
    """:func:`trusted_uid`; also sets the uid of an unmapped root in the C code."""
    native.pn_trust_unmapped_root(unmapped_root())
    return trusted_uid()


def unmapped_root() -> int:
    """The uid of root's files in a user namespace in which root is not mapped; else ``NO_ID``.

    All unmapped users have that uid (user_namespaces(7)), so that root cannot be distinguished
    from them. The owner of ``/`` is assumed to be root.
    """
    owner = os.stat("/").st_uid
    return owner if owner and owner == unmapped("uid") else NO_ID


def _error(status: int, refusal: Any) -> OSError:
    if not refusal.reason:
        return OSError(-status, os.strerror(-status))
    component = os.fsdecode(ffi.string(refusal.path))
    where = {"": "it", ".": "the current directory"}.get(component, component)
    if refusal.reason == native.PN_LINK:
        return UntrustedError(f"{where} is a symbolic link")
    if refusal.reason == native.PN_OWNER:
        unmapped = " or to one that is not mapped here" if is_overflow_uid(refusal.uid) else ""
        return UntrustedError(f"{where} belongs to user {refusal.uid}{unmapped}")
    writer = "everybody" if refusal.mode & stat.S_IWOTH else f"group {refusal.gid}"
    return UntrustedError(f"{where} can be written by {writer} (mode {refusal.mode:04o})")
