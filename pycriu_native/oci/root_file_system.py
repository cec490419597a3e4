"""The root file system of a container: extraction of archives and layers, and its changes.

Every path of an archive is resolved with the new root as its root directory, so that no symbolic
link leads out of it. The root has to be a directory that other users cannot write to.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from .._system.mounts import inside
from .._system.regular_file import create_regular, open_regular
from ..archive.tar import XATTR, Content, members
from ..errors import ImagesError

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
"""Names in a layer of an OCI image: prefix of a removed file, mark of an emptied directory."""

_KINDS = {
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def extract(stream: BinaryIO, root: str, *, limit: int, is_layer: bool = False) -> int:
    """Extract a tar archive into ``root``; returns the total size of its files in bytes.

    Owners, modes, times and extended attributes are those of the archive. Existing files with the
    name of a member are replaced. With ``is_layer``, whiteouts remove files of earlier layers.

    Raises ``ImagesError`` for a member that would be written outside of ``root``, and for more than
    ``limit`` bytes.
    """
    total = 0
    times: dict[str, float] = {}
    made: set[str] = set()
    for info, content in members(stream):
        total += info.size if content is not None else 0
        if total > limit:
            raise ImagesError(f"the archive exceeds the limit of {limit} bytes")
        try:
            path = _place(root, info.name)
            name = posixpath.basename(path)
            if is_layer and name.startswith(_WHITEOUT):
                _white_out(path, made)
                continue
            _write(root, path, info, content)
        except ImagesError:
            raise
        except OSError as error:
            raise ImagesError(f"{info.name!r} of the archive: {error.strerror}") from error
        except OverflowError as error:  # an owner or a time that this system cannot represent
            raise ImagesError(f"{info.name!r} of the archive: {error}") from error
        made.add(path)
        if info.isdir():
            times[path] = info.mtime
    for path, mtime in reversed(times.items()):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.utime(path, (mtime, mtime), follow_symlinks=False)
    return total


def remove(root: str, paths: Iterable[str]) -> None:
    """Remove files and directories of ``root``; missing ones are ignored.

    Raises ``ImagesError``, before anything is removed, for ``root`` itself and names above it.
    """
    places = {path: _place(root, path) for path in paths}
    for path, place in places.items():
        if place == root:
            raise ImagesError(f"the archive deletes its whole root file system: {path!r}")
    for path in places:
        _remove(_place(root, path))  # again: a link in its directory may be removed by now


def copy(source: str, root: str) -> None:
    """Copy a directory with owners, modes, times, links, devices and attributes into ``root``.

    Raises ``OSError`` with the message of ``cp``.
    """
    done = subprocess.run(
        ["cp", "-a", "--", f"{source}/.", root],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(f"copy of {source}: {done.stderr.strip()}")


def changes(root: str, base: str | None) -> tuple[list[str], list[str]]:
    """The changed and the removed paths of ``root`` relative to ``base`` (None: an empty one).

    Files are compared by kind, mode, owner, size, time and link target. A removed directory is one
    path. Other file systems that are mounted in ``root`` are left out.
    """
    device = os.lstat(root).st_dev
    changed: list[str] = []
    deleted: list[str] = []
    todo = [""]
    while todo:
        directory = todo.pop()
        now = _entries(root + directory)
        before = {} if base is None else _entries(base + directory)
        deleted += [f"{directory}/{name}" for name in before.keys() - now.keys()]
        for name, status in now.items():
            path = f"{directory}/{name}"
            is_directory = stat.S_ISDIR(status.st_mode)
            if is_directory and status.st_dev != device:
                continue  # a mount
            if name not in before or _differs(root + path, status, f"{base}{path}", before[name]):
                changed.append(path)
            if is_directory:
                todo.append(path)
    return sorted(changed), sorted(deleted)


def _entries(directory: str) -> dict[str, os.stat_result]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISDIR(os.lstat(directory).st_mode):
            with os.scandir(directory) as entries:
                return {each.name: each.stat(follow_symlinks=False) for each in entries}
    return {}


def _differs(path: str, now: os.stat_result, base: str, before: os.stat_result) -> bool:
    if (now.st_mode, now.st_uid, now.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
        return True
    if stat.S_ISDIR(now.st_mode):
        return False
    if stat.S_ISLNK(now.st_mode):
        return os.readlink(path) != os.readlink(base)
    this = now.st_size, now.st_mtime_ns, now.st_rdev
    return this != (before.st_size, before.st_mtime_ns, before.st_rdev)


def _place(root: str, name: str) -> str:
    """The path of a member: symbolic links in its directory are resolved in ``root``."""
    if ".." in name.split("/"):
        raise ImagesError(f"the archive has a member outside of its directory: {name!r}")
    directory, last = posixpath.split(posixpath.normpath(f"/{name.lstrip('/')}"))
    return root + posixpath.join(inside(root, directory), last).rstrip("/")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _white_out(path: str, made: set[str]) -> None:
    directory, name = posixpath.split(path)
    if name != _OPAQUE:
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise ImagesError(f"the archive has a whiteout of no file: {name!r}")
        _remove(posixpath.join(directory, hidden))
        return
    for each in _entries(directory):
        if posixpath.join(directory, each) not in made:
            _remove(posixpath.join(directory, each))


def _write(root: str, path: str, info: tarfile.TarInfo, content: Content | None) -> None:
    is_directory = info.isdir()
    if path == root and not is_directory:
        raise ImagesError(f"the top of the archive, {info.name!r}, is not a directory")
    os.makedirs(posixpath.dirname(path), exist_ok=True)
    if not (is_directory and os.path.isdir(path) and not os.path.islink(path)):
        _remove(path)
        if content is not None:
            with open(create_regular(path), "wb") as file:
                content.copy_to(file)
        elif is_directory:
            os.mkdir(path, 0o700)
        elif info.issym():
            os.symlink(info.linkname, path)
        elif info.islnk():
            os.link(_place(root, info.linkname), path, follow_symlinks=False)
            return  # a hard link shares the attributes of the file
        elif info.type in _KINDS:
            device = os.makedev(info.devmajor, info.devminor)
            os.mknod(path, 0o600 | _KINDS[info.type], device)
        else:
            raise ImagesError(f"{info.name!r} of the archive has an unknown file type")
    os.chown(path, info.uid, info.gid, follow_symlinks=False)
    for key, value in info.pax_headers.items():
        data = value.encode("utf-8", "surrogateescape")
        os.setxattr(path, key.removeprefix(XATTR), data, follow_symlinks=False)
    if not info.issym():
        os.chmod(path, info.mode & 0o7777)
    os.utime(path, (info.mtime, info.mtime), follow_symlinks=False)


# ---- archives of changes ----


def write_changes(
    root: str, paths: Iterable[str], file: BinaryIO, *, replaced: Iterable[str] = ()
) -> None:
    """Write files of ``root`` as an uncompressed tar archive, with owners and attributes.

    An empty file is written for each path in ``replaced``.
    """
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in replaced:
            tar.addfile(tarfile.TarInfo(path.lstrip("/")))
        for path in paths:
            source = root + path
            info = tar.gettarinfo(source, path.lstrip("/") or ".")
            if info is None:
                continue  # a socket, which tar cannot store
            info.pax_headers = {**info.pax_headers, **dict(_attributes(source))}
            if info.isreg():
                with open(open_regular(source), "rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)


def _attributes(path: str) -> Iterator[tuple[str, str]]:
    for name in os.listxattr(path, follow_symlinks=False):
        if name.startswith(("user.", "security.capability")):
            data = os.getxattr(path, name, follow_symlinks=False)
            yield XATTR + name, data.decode("utf-8", "surrogateescape")
