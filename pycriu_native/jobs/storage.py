"""The storage of a job: a directory on any file system of fsspec, such as S3, GCS, SSH or a mount.

::

    leases/TOKEN.json, .begun, .beat, .end     the leases (``lease.py``)
    checkpoints/NUMBER-TOKEN-ID.tar            a checkpoint, as one archive
    commits/TOKEN-NUMBER.json                  the record that commits it, written last

An object without a record belongs to an incomplete upload, and is never read. The numbers in names
have a fixed width, so that names sort by number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any, BinaryIO, Literal

from ..errors import ImagesError, OptionError, Problem, UnsupportedError, missing_extra

DEFAULTS: dict[str, dict[str, object]] = {"ssh": {"known_hosts": ()}, "sftp": {"known_hosts": ()}}
"""Arguments of file systems, unless fsspec's configuration has them. sshfs accepts any host key by
default; with this value it must be in ``~/.ssh/known_hosts``, or the file of ``~/.ssh/config``."""


NO_PLACE = "it names no directory or bucket; one for this job alone is accepted"


class UnreadableError(ImagesError):
    """A checkpoint is not damaged, but cannot be read here, for example without its key."""


def check_url(url: str) -> None:
    """Check that fsspec and the package of the file system are installed, without loading that.

    Raises ``OptionError`` for an unknown file system, for one in the memory of a process, and for a
    URL without a path, ``UnsupportedError`` for a missing package.
    """
    if not url.rpartition("://")[2]:  # fsspec reads file:// as the working directory
        raise _refused(url, NO_PLACE)
    fsspec = _fsspec()
    registry = import_module("fsspec.registry").known_implementations
    for part in url.split("::"):
        protocol, is_url, _ = part.partition("://")
        if not is_url or len(protocol) < 2:
            continue  # a path, also of a drive
        if protocol not in registry:
            rule = f"a path or a URL of fsspec is accepted, and it has no file system {protocol}"
            raise _refused(url, rule)
        if protocol == "memory":
            rule = "the files of this file system end with the process: another run has none"
            raise _refused(url, rule)
        package = registry[protocol]["class"].partition(".")[0]
        lacking = package if find_spec(package) is None else None
        if package == "fsspec" and protocol in DEFAULTS:
            lacking = "sshfs"  # the class of fsspec accepts any host key
        elif package == "fsspec":  # its own class can need a package
            try:
                fsspec.get_filesystem_class(protocol)
            except ImportError as error:
                lacking = error.name or str(error)
        if lacking is not None:
            rule = f"{protocol} needs the package {lacking}, which is not installed"
            raise UnsupportedError([Problem("storage", url, rule)], verb="run")


def _refused(url: str, rule: str) -> OptionError:
    return OptionError([Problem("storage", url, rule)], verb="run")


def check_place(url: str, directory: str) -> None:
    """Raise ``OptionError`` if the storage is the directory of the job, or inside of it."""
    path = url.removeprefix("file://").removeprefix("local://")
    if "::" in path or "://" in path:
        return
    ours = os.path.realpath(directory)
    if os.path.commonpath([os.path.realpath(path), ours]) == ours:
        raise _refused(url, f"a place outside of the job's directory, {directory}, is accepted")


def _fsspec() -> Any:
    try:
        return import_module("fsspec")
    except ImportError:
        raise missing_extra("storage", "fsspec", "storage") from None


def _opened(url: str) -> tuple[Any, str]:
    """A new file system of a URL, and the path in it."""
    fsspec = _fsspec()
    configured = import_module("fsspec.config").conf
    # The class of fsspec reads the configuration of one of its protocols only.
    options = {
        protocol: {
            name: configured.get(protocol, {}).get(name, default)
            for name, default in defaults.items()
        }
        for protocol, defaults in DEFAULTS.items()
        if f"{protocol}://" in url
    }
    made: tuple[Any, str] = fsspec.url_to_fs(url, skip_instance_cache=True, **options)
    return made


class Storage:
    """The files of one storage, with names relative to it.

    All methods can raise exceptions of any class, like the file systems of fsspec.
    """

    def __init__(self, url: str) -> None:
        """``url`` is of fsspec, or a path.

        Raises ``OptionError`` for an unknown file system, and for a URL without a host or a path.
        """
        self.url = url
        fsspec = _fsspec()
        try:
            fs, root = _opened(url)
        except (ValueError, ImportError, TypeError) as error:  # TypeError: without a host
            raise _refused(url, f"a path or a URL of fsspec is accepted ({error})") from None
        self._fs: Any = fs
        """None after a failure."""
        self._root = str(root).rstrip("/")
        if not self._root:  # of an object store: its files would be in buckets of these names
            raise _refused(url, NO_PLACE)
        self._is_mounted = isinstance(fs, fsspec.get_filesystem_class("file"))
        pipe = getattr(fs, "_pipe_file", None)
        self._has_conditional_put = pipe is not None and "mode" in signature(pipe).parameters

    @contextlib.contextmanager
    def _file_system(self) -> Iterator[Any]:
        """The file system; another one after a failure, since that of SSH does not reconnect."""
        fs = self._fs
        if fs is None:
            fs = self._fs = _opened(self.url)[0]
        try:
            yield fs
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception:
            self._fs = None
            raise

    def make(self, *folders: str) -> None:
        """Create folders, if the file system has folders.

        ``FileNotFoundError``: the parent of a directory that is mounted is missing.
        """
        parent = os.path.dirname(self._root)
        if self._is_mounted and not os.path.isdir(parent):
            raise FileNotFoundError(f"{parent} does not exist: is its file system mounted?")
        with self._file_system() as fs:
            for folder in folders:
                fs.makedirs(self._path(folder), exist_ok=True)

    def names(self, folder: str) -> list[str]:
        """The names of files in a folder, in order."""
        try:
            with self._file_system() as fs:
                fs.invalidate_cache()
                listing = fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        names = (str(each).rstrip("/").rpartition("/")[2] for each in listing)
        # Object stores also list the folder itself; NFS has files .nfsXXXX.
        return sorted(name for name in names if name[:1].isdigit())

    def read(self, name: str) -> bytes | None:
        """Read a small file; None if it does not exist."""
        try:
            with self._file_system() as fs:
                fs.invalidate_cache()
                return bytes(fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write, or replace, a small file."""
        with self.opened(name, "wb") as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        """Create a small file exclusively; returns whether this process has created it.

        ``data`` must be unique: the file is read afterwards, since a response can be lost.
        """
        failed: Exception | None = None
        try:
            if self._has_conditional_put:
                # One request. gcsfs makes two of mode xb; the first has the condition.
                with self._file_system() as fs:
                    fs.pipe_file(self._path(name), data, mode="create")
            else:
                with self.opened(name, "xb") as file:
                    file.write(data)
        except Exception as error:
            failed = error
        there = self.read(name)
        if there is None and failed is not None:
            raise failed
        return there == data

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with contextlib.suppress(FileNotFoundError), self._file_system() as fs:
            fs.rm_file(self._path(name))

    @contextlib.contextmanager
    def opened(self, name: str, mode: Literal["rb", "wb", "xb"]) -> Iterator[BinaryIO]:
        """Open a file. A written file is synced at the end if the file system is local."""
        file: Any
        with self._file_system() as fs, fs.open(self._path(name), mode) as file:
            yield file
            if mode != "rb":
                file.flush()
                with contextlib.suppress(OSError, AttributeError):
                    os.fsync(file.fileno())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
