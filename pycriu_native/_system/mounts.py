"""Mounts: those of this host and of its processes, those in CRIU's images, and making one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .._integrity.statistics import message_fields
from .._support.kernel_text import read_lines
from ..errors import ImagesError
from .regular_file import open_regular

MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

COMMON_MAGIC, MOUNTS_MAGIC = 0x54564319, 0x55563928
CGROUP_V1 = 12
"""How a mounts image numbers the file system ``cgroup``."""

MOST_LINKS = 40
"""Symbolic links that the kernel follows in one path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """A line of /proc/PID/mountinfo."""

    number: int
    """The mount's number, as in fdinfo."""
    root: str
    """What of the file system is mounted."""
    place: str
    """Where."""
    kind: str
    """The type of the file system."""
    options: frozenset[str]
    """The file system's own options; of cgroup v1, the controllers are among them."""


def mounts_of(pid: int | str) -> Iterator[Mount]:
    """The mounts that a process sees, by their places in its own root."""
    for line in read_lines(f"/proc/{pid}/mountinfo"):
        before, _, after = line.partition(" - ")
        number, _, _, root, place = before.split(" ")[:5]
        kind, _, options = after.split(" ", 2)
        yield Mount(
            number=int(number),
            root=_unescaped(root),
            place=_unescaped(place),
            kind=kind,
            options=frozenset(options.split(",")),
        )


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def hierarchy(kind: str, controllers: str = "") -> str | None:
    """Where this host has a whole cgroup hierarchy, of v1 (``cgroup``) or v2 (``cgroup2``)."""
    expected = set(filter(None, controllers.split(",")))
    for mount in mounts_of("self"):
        if mount.kind == kind and mount.root == "/" and mount.options >= expected:
            return mount.place
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedMount:
    """A mount in CRIU's images (``mnt.proto``)."""

    kind: int
    """The type of the file system, by CRIU's number."""
    number: int
    parent: int
    """Which mount it is mounted on."""
    root: str
    place: str
    options: str
    key: str
    """Under which it is given from outside; empty for what is saved."""


def saved_mounts(images: str) -> list[SavedMount]:
    """The mounts in the images, inner ones first. Raises ``ImagesError``."""
    result: list[SavedMount] = []
    names = sorted(Path(images).glob("mountpoints-*.img"))
    if not names:
        raise ImagesError(f"{images} has no mounts: it holds no images of a container")
    for name in names:
        try:
            with open(open_regular(name), "rb") as file:
                result += _read(file.read())
        except (OSError, struct.error, ValueError, KeyError) as error:
            raise ImagesError(f"{name} cannot be read: {error!r}") from None
    return result


def _read(data: bytes) -> Iterator[SavedMount]:
    """Two magic numbers, then each message after its length."""
    if struct.unpack_from("<II", data) != (COMMON_MAGIC, MOUNTS_MAGIC):
        raise ValueError("other magic numbers")
    at = 8
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        fields = dict(message_fields(data[at : at + size]))
        at += size
        text = {n: os.fsdecode(v) for n, v in fields.items() if isinstance(v, bytes)}
        number = {n: v for n, v in fields.items() if isinstance(v, int)}
        yield SavedMount(
            kind=number[1],
            number=number[2],
            parent=number[4],
            root=text[6],
            place=text[7],
            options=text[9],
            key=text.get(18, ""),
        )


def inside(base: str, path: str) -> str:
    """Where a path leads for who has ``base`` as the root.

    Symbolic links do not lead out of it, and what does not exist is taken as it is.
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
    """The directory, once more, as a mount point whose parent nothing is mounted over."""
    place = tempfile.mkdtemp(prefix="pycriu-native-root-")
    try:
        _mount(directory, place, MS_BIND | MS_REC)
        try:
            _mount(None, place, MS_PRIVATE | MS_REC)
            yield place
        finally:
            detach(place)
    finally:
        os.rmdir(place)


def detach(place: str) -> None:
    """Unmount what is mounted at a place, also while it is in use."""
    _check(_libc.umount2(os.fsencode(place), MNT_DETACH), f"umount of {place}")


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str | None, place: str, flags: int) -> None:
    encoded = None if source is None else os.fsencode(source)
    result = _libc.mount(encoded, os.fsencode(place), None, ctypes.c_ulong(flags), None)
    _check(result, f"mount of {source or place}")


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
