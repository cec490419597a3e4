"""Which ``criu`` program runs, found and checked before anything starts."""

from __future__ import annotations

import os
import stat

from .._native.ffi import BUILT_PROGRAM
from .._system import trusted_path
from ..errors import PermissionDeniedError, ProgramNotFoundError

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for, and the PATH of a worker: the caller's own could name others."""

HOW_TO_INSTALL = "install it (Debian: apt-get install criu; from a checkout: tools/install-criu)"


def find_program(
    given: str | os.PathLike[str] | None = None, *, allow_untrusted: bool = False
) -> str:
    """The absolute path of ``criu``: the one given, else the one recorded at build, else the
    system's.

    Raises ``ProgramNotFoundError`` where there is none, ``PermissionDeniedError`` where it is
    no program, or, unless ``allow_untrusted``, one that another user could change or swap: it is
    started by this path, on which nobody else can put another.
    """
    if given is not None:
        path = os.fspath(given)
        if os.sep not in path:
            path = _on_search_path(path) or path
        return _checked(os.path.abspath(path) if os.sep in path else path, allow_untrusted)
    if BUILT_PROGRAM and os.path.exists(BUILT_PROGRAM):
        return _checked(BUILT_PROGRAM, allow_untrusted)
    result = _on_search_path("criu")
    if result is None:
        looked = ", ".join([*([BUILT_PROGRAM] if BUILT_PROGRAM else []), *SEARCH_PATH.split(":")])
        raise ProgramNotFoundError(f"there is no criu program in {looked}; {HOW_TO_INSTALL}")
    return _checked(result, allow_untrusted)


def on_disk(path: str) -> tuple[object, ...]:
    """Which file a program is, as it is now."""
    result = os.stat(path)
    return path, result.st_dev, result.st_ino, result.st_mtime_ns


def _on_search_path(name: str) -> str | None:
    for directory in SEARCH_PATH.split(":"):
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return path
    return None


def _checked(path: str, allow_untrusted: bool) -> str:
    try:
        result = os.stat(path)
    except OSError as error:
        raise ProgramNotFoundError(
            f"the criu program {path!r} cannot be used: {error.strerror}; {HOW_TO_INSTALL}"
        ) from None
    if not stat.S_ISREG(result.st_mode) or not os.access(path, os.X_OK):
        raise PermissionDeniedError(f"{path!r} is no program that can be run")
    if not allow_untrusted and not trusted_path.is_plain(path):
        try:
            trusted_path.check(path)
        except trusted_path.UntrustedError as reason:
            raise PermissionDeniedError(
                f"the criu program {path!r} is not run, because another user could change it: "
                f"{reason.strerror}; Worker(allow_untrusted=True) runs it all the same"
            ) from None
    return path
