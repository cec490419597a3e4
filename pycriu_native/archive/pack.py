"""An image set as one stream: to a file, through a socket, compressed, encrypted, and back.

``unpack`` also reads the archives of ``podman container checkpoint --export``, CRI-O and Kubernetes
(``inside="checkpoint"``). Images have the memory of a process, with its secrets: ``encrypt_to``
encrypts them for the owners of keys (age, https://age-encryption.org).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from .._integrity.dump_marker import FRAMES, LINKS
from .._support.unpatched import closing
from .._system.descriptors import where
from .._system.regular_file import create_regular
from .._system.writing import writing
from ..errors import CriuError, ImagesError, images_error
from ..options.value_types import path_argument
from .codecs import Compression, Peek, bad_argument, compressed, decompressed, decrypted, encrypted
from .tar import BLOCK, CHUNK, Content, begins, members

_OF_ITS_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""Errors for an impossible name, or for two members with one name."""

StrPath = str | os.PathLike[str]
Place = StrPath | BinaryIO


def pack(
    directory: StrPath,
    to: Place,
    *,
    inside: str = "",
    more: Mapping[str, StrPath] | None = None,
    compress: Compression = "gzip",
    encrypt_to: Sequence[str] = (),
) -> int:
    """Write the image set in ``directory`` as an archive; returns the bytes of its files.

    For a chain of parents, ``directory`` is one that contains all of them: a parent outside of it
    is refused, since the set would be incomplete.

    Args:
        to: a path, which never has an incomplete archive, or a binary stream, which is left open.
            An existing regular file is replaced.
        inside: the directory of the archive that the images get; Podman's is ``checkpoint``.
        more: other files for the archive, by their names in it.
        compress: ``"gzip"``, ``"zstd"`` (faster and smaller) or ``"none"`` (fastest).
        encrypt_to: age recipients (``age1…``, or an ssh public key); the key of one of them
            decrypts it. Needs the extra ``pycriu-native[archive]``.

    Raises:
        OptionError: an argument is invalid.
        ImagesError: the set is incomplete or not readable, or the disk is full.
    """
    members = members_of(directory)
    for name in more or {}:
        if not _is_plain(PurePosixPath(name)):
            rule = "names inside of the archive are accepted: relative, no .."
            raise bad_argument("more", name, rule)
    if inside and not _is_plain(PurePosixPath(inside)):
        rule = "a directory of the archive is accepted: relative, no .."
        raise bad_argument("inside", inside, rule)
    with new_archive(to, compress, encrypt_to) as tar:
        size = add_members(tar, members, directory, inside)
        for name, extra in (more or {}).items():
            tar.add(extra, name, recursive=False, filter=_portable)
    return size


@contextlib.contextmanager
def new_archive(
    to: Place, compress: Compression, encrypt_to: Sequence[str]
) -> Iterator[tarfile.TarFile]:
    """An archive that is written in the block; the arguments are those of ``pack``."""
    with ExitStack() as owned:
        out = owned.enter_context(_written(to))
        if encrypt_to:
            out = owned.enter_context(encrypted(out, encrypt_to))
        out = owned.enter_context(compressed(out, compress))
        yield owned.enter_context(tarfile.open(fileobj=out, mode="w|", bufsize=CHUNK))


def add_members(
    tar: tarfile.TarFile, members: Iterable[Path], directory: StrPath, inside: str = ""
) -> int:
    """Add files of a directory to an archive; returns their bytes."""
    sizes = {}
    for path in members:
        name = str(PurePosixPath(inside) / path.relative_to(directory).as_posix())
        tar.add(path, name, recursive=False, filter=functools.partial(_portable, source=path))
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def unpack(
    source: Place,
    directory: StrPath,
    *,
    inside: str = "",
    decrypt_with: Sequence[str] = (),
    limit: int | None = None,
) -> int:
    """Read an archive into a new ``directory`` (mode 0700); returns the bytes of its files.

    Compression and encryption are detected. The directory is created when all files are complete;
    after a failure nothing is left. Files get mode 0600 and belong to the caller. Only regular
    files, hard links of these, directories and the links of a chain of parents are accepted.

    Args:
        source: a path, or a binary stream.
        inside: the directory of the archive with the images; the rest is skipped.
        decrypt_with: age identities (``AGE-SECRET-KEY-…``, or an ssh private key).
        limit: the largest size of all files, in bytes. Default: the free space of the disk.

    Raises:
        OptionError: an argument is invalid.
        ImagesError: it cannot be opened, is no archive, is damaged, cannot be decrypted with these
            keys, has a path outside of the directory, or is larger than ``limit``.
    """
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    if limit is not None and not (whole and limit >= 0):
        raise bad_argument("limit", limit, "a number of bytes is accepted")
    place = Path(path_argument("directory", directory))
    with new_directory(place) as partial, opened_archive(source, decrypt_with) as stream:
        return _extract(stream, partial, PurePosixPath(inside), limit)


# ---- members ----


def members_of(directory: StrPath) -> list[Path]:
    """The files of the set, in a fixed order; raises if one cannot be packed."""
    source = Path(path_argument("directory", directory))
    if not source.is_dir():
        raise bad_argument("directory", os.fspath(source), "an existing directory is accepted")
    root = source.resolve()
    if not any(source.rglob("inventory.img")):
        raise ImagesError(f"{source} holds no image set: it has no inventory.img")
    result = []
    for path in sorted(source.rglob("*")):
        if LINKS in path.relative_to(source).parts:
            continue  # a copy would be another file
        if path.name == FRAMES:
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            if path.name != "parent" or not path.resolve().is_relative_to(root):
                raise ImagesError(
                    f"{path} leads out of {source}: the set is incomplete without its parent; "
                    "pack the directory that has the whole chain"
                )
        elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            if path.suffix == ".img":
                raise ImagesError(f"{path} is not a regular file: the set is incomplete")
            continue  # a socket of a daemon, for example
        result.append(path)
    return result


def _portable(info: tarfile.TarInfo, *, source: Path | None = None) -> tarfile.TarInfo:
    """Remove owner and mode, which have no meaning on other hosts; make a link relative."""
    if source is not None and info.issym():
        info.linkname = os.path.relpath(source.resolve(), source.parent.resolve())
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o700 if info.isdir() else 0o600
    return info


def _is_plain(name: PurePosixPath) -> bool:
    return bool(name.parts) and not name.is_absolute() and ".." not in name.parts


def _extract(stream: BinaryIO, to: Path, inside: PurePosixPath, limit: int | None) -> int:
    remaining = shutil.disk_usage(to).free if limit is None else limit
    total = 0
    links: set[PurePosixPath] = set()
    files: set[PurePosixPath] = set()
    for info, content in members(stream):
        name = _name_below(inside, info)
        if name is None:
            continue
        if not links.isdisjoint(name.parents):
            raise ImagesError(f"the archive has a path through a link: {info.name!r}")
        total += info.size if content is not None else 0
        if total > remaining:
            what = f"the limit of {remaining} bytes"
            if limit is None:
                what = f"the free space of {to.parent}, {remaining} bytes"
            number = errno.ENOSPC if limit is None else 0
            raise ImagesError(f"the archive is larger than {what}", errno=number)
        same = _same_file(info, inside, files)
        if info.issym() and name.name == "parent" and _stays_inside(name, info.linkname):
            links.add(name)
        elif content is not None or same is not None:
            files.add(name)
        elif not info.isdir():
            raise ImagesError(f"the archive holds {info.name!r}, which is no image")
        try:
            _put(to / name, info, content, None if same is None else to / same)
        except OSError as error:
            if error.errno not in _OF_ITS_NAME:
                raise
            raise ImagesError(f"the archive holds {info.name!r}: {error.strerror}") from None
    if not total:
        where = f" in {inside}" if inside.parts else ""
        raise ImagesError(f"the archive has no images{where}; inside= names their directory in it")
    return total


def _name_below(inside: PurePosixPath, info: tarfile.TarInfo) -> PurePosixPath | None:
    """The path of a member relative to ``inside``; None for one that is not below it."""
    name = PurePosixPath(info.name)
    if not info.name:
        raise ImagesError("the archive is damaged: it has a member without a name")
    if name.parts and not _is_plain(name):
        raise ImagesError(f"the archive has a path outside of its directory: {info.name!r}")
    return name.relative_to(inside) if inside in name.parents else None


def _same_file(
    info: tarfile.TarInfo, inside: PurePosixPath, files: Collection[PurePosixPath]
) -> PurePosixPath | None:
    """The file to which a hard link leads, if it was read before."""
    target = PurePosixPath(info.linkname)
    if not info.islnk() or not _is_plain(target) or not target.is_relative_to(inside):
        return None
    target = target.relative_to(inside)
    return target if target in files else None


def _put(path: Path, info: tarfile.TarInfo, content: Content | None, same: Path | None) -> None:
    """Create a member: a file, a link, or a directory."""
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    if same is not None:
        path.hardlink_to(same)
    elif content is not None:
        with open(create_regular(path), "wb") as file:
            content.copy_to(file)
    elif info.issym():
        path.symlink_to(info.linkname)
    else:
        path.mkdir(0o700, exist_ok=True)


def _stays_inside(name: PurePosixPath, link: str) -> bool:
    """Whether a link stays inside the archive, judged by its text only.

    Components ``..`` are accepted at the beginning only, and not above the top: after a name, which
    can be another link, they could lead elsewhere.
    """
    parts = PurePosixPath(link).parts
    down = [part for part in parts if part != ".."]
    up = len(parts) - len(down)
    return up < len(name.parts) and parts[up:] == tuple(down) and not link.startswith("/")


# ---- places ----


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory of mode 0700 that gets its name at the end; nothing is left after a failure."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise bad_argument("directory", os.fspath(target), "a new or empty directory is accepted")
    with writing(target):
        try:
            made = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
    partial = Path(made)
    try:
        with writing(target):
            yield partial
            partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def written_beside(to: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete.

    It is always a new file, of mode 0600: in a directory such as /tmp another user could create a
    file of a predictable name before, and would own it. An existing file is replaced;
    ``FileExistsError`` if it is not a regular one, such as a device.
    """
    if to.exists() and not to.is_file():
        raise FileExistsError(errno.EEXIST, "it exists, and is not a regular file", os.fspath(to))
    with writing(to):
        try:
            fd, partial = tempfile.mkstemp(prefix=".pycriu-native-", dir=to.absolute().parent)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(to)) from None
    try:
        with writing(to), open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(partial, to)
    except BaseException:
        os.unlink(partial)
        raise


def _written(to: Place) -> AbstractContextManager[BinaryIO]:
    return written_beside(Path(to)) if isinstance(to, str | os.PathLike) else nullcontext(to)


def _read(source: Place) -> AbstractContextManager[BinaryIO]:
    if not isinstance(source, str | os.PathLike) and hasattr(source, "read"):
        return nullcontext(source)
    path = path_argument("source", source)
    try:
        return open(path, "rb", opener=without_waiting)
    except OSError as error:
        raise images_error(f"{path} cannot be opened", error) from None


def without_waiting(path: str, flags: int) -> int:
    """Open a regular file, or a pipe without a name, such as that of ``<(command)`` in a shell.

    The open of a named pipe would wait for its writer.
    """
    with closing(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)) as fd:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or where(fd).startswith("pipe:"):
            os.set_blocking(fd, True)
            return os.dup(fd)  # of a directory, open() raises the error
    raise OSError(errno.EINVAL, "it is not a regular file", path)


@contextlib.contextmanager
def opened_archive(source: Place, decrypt_with: Sequence[str] = ()) -> Iterator[BinaryIO]:
    """The tar archive in a file or stream, decrypted and decompressed; read to its end.

    Raises ``ImagesError`` for a damaged one.
    """
    with ExitStack() as owned:
        try:
            stream = owned.enter_context(_read(source))
            stream = owned.enter_context(decrypted(Peek(stream), decrypt_with))
            stream = owned.enter_context(decompressed(Peek(stream)))
            stream = cast(BinaryIO, beginning := Peek(stream))
            if not begins(beginning.peek(BLOCK)):
                name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the stream"
                raise ImagesError(f"{name} is no tar archive, or its first block is damaged")
            yield stream
            while stream.read(CHUNK):  # a checksum after the archive can show that it is damaged
                pass
        except CriuError:
            raise
        except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
            raise ImagesError(f"the archive is damaged: {error}") from error
