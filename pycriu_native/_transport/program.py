"""Finds the ``criu`` program, and checks it before it is started."""

from __future__ import annotations

import enum
import functools
import os
import stat

from .._native.ffi import BUILT_PROGRAM
from .._support.light_typing import Any
from .._system import trusted_path
from ..errors import PermissionDeniedError, ProgramNotFoundError

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Directories that are searched for programs, and the PATH of a worker: the caller's PATH could
name others."""

HOW_TO_INSTALL = (
    "install it (pip install 'pycriu-native[criu]'; Debian: apt-get install criu, or "
    "pycriu-native install-criu)"
)

VARIABLE = "CRIU_PROGRAM"
"""The variable of the environment that names a program, at run time."""
COMPANION = "pycriu-native-criu"
"""The package that carries a program (extra ``[criu]``)."""
INSTALLED = "/opt/pycriu-native/bin/criu"
"""The program that ``pycriu-native install-criu`` installs where the system's is too old."""


class Source(enum.StrEnum):
    """The sources of a program's path, by precedence."""

    ARGUMENT = "named by the caller"
    VARIABLE = "named by the environment variable CRIU_PROGRAM"
    BUILD = "recorded when the library was built"
    COMPANION = "of the package pycriu-native-criu"
    INSTALLED = "installed by pycriu-native install-criu"
    SEARCH_PATH = "found on the search path"


def find_program(
    given: str | os.PathLike[str] | None = None, *, allow_untrusted: bool = False
) -> str:
    """The absolute path of ``criu``; :func:`locate` also returns its origin.

    Raises ``ProgramNotFoundError`` if there is none, ``PermissionDeniedError`` if the file is not
    executable, or if another user could change or replace it, unless ``allow_untrusted``. The
    program is started by this path.
    """
    return _checked(locate(given)[0], allow_untrusted)


def locate(given: str | os.PathLike[str] | None = None) -> tuple[str, Source]:
    """The absolute path of ``criu``, unchecked, and what named it.

    The order: ``given``; ``CRIU_PROGRAM`` in the environment; the program that was recorded at
    build; that of the package pycriu-native-criu; that of ``pycriu-native install-criu``; the
    system's, in ``SEARCH_PATH``. The first two are used even if they do not exist; a recorded
    program that no longer exists is skipped.

    Raises ``ProgramNotFoundError`` if nothing names a program.
    """
    if given is not None:
        return _absolute(os.fsdecode(given)), Source.ARGUMENT
    if named := os.environ.get(VARIABLE):
        return _absolute(named), Source.VARIABLE
    if BUILT_PROGRAM and os.path.exists(BUILT_PROGRAM):
        return BUILT_PROGRAM, Source.BUILD
    if package := companion():
        return package.program(), Source.COMPANION
    if os.path.exists(INSTALLED):
        return INSTALLED, Source.INSTALLED
    if result := on_search_path("criu"):
        return result, Source.SEARCH_PATH
    looked = ", ".join([*filter(None, (BUILT_PROGRAM, INSTALLED)), *SEARCH_PATH.split(":")])
    raise ProgramNotFoundError(f"there is no criu program in {looked}; {HOW_TO_INSTALL}")


@functools.cache
def companion() -> Any:
    """The module of the package pycriu-native-criu, or None if it is not installed."""
    try:
        import pycriu_native_criu
    except ModuleNotFoundError:
        return None
    return pycriu_native_criu


def on_disk(path: str) -> tuple[object, ...]:
    """Path, device, inode and modification time of a program."""
    result = os.stat(path)
    return path, result.st_dev, result.st_ino, result.st_mtime_ns


def _absolute(name: str) -> str:
    """The absolute path; a name without a slash is searched for."""
    path = name if os.sep in name else on_search_path(name) or name
    return os.path.abspath(path) if os.sep in path else path


def on_search_path(name: str) -> str | None:
    """The path of a program in ``SEARCH_PATH``; None if there is none."""
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
        raise PermissionDeniedError(f"{path!r} is no program that can be run; {HOW_TO_INSTALL}")
    if not allow_untrusted and not trusted_path.is_plain(path):
        try:
            trusted_path.check(path)
        except trusted_path.UntrustedError as reason:
            raise PermissionDeniedError(
                f"the criu program {path!r} is not run, because another user could change it: "
                f"{reason.strerror}; give that to root or to yourself (chown), and the right to "
                "write to the owner only (chmod go-w), or use Worker(allow_untrusted=True)"
            ) from None
    return path
