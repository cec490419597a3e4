"""Transfer of image directories over the control connection of a migration.

Directories are numbered from 1; each can be the parent of the next. The receiver makes every path
itself. From the sender it accepts only plain file names and sizes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from .._integrity.dump_marker import FRAMES
from .._system.descriptors import opened_directory
from .._system.regular_file import create_regular, open_regular
from ..errors import MigrationError, PeerLostError
from .control_channel import LARGEST_PIECE, Channel, Kind

MOST_FILES = 100_000
"""Largest number of files in one directory."""

MOST_ROUNDS = 1000

_STAYS = re.compile(rf".*\.log|stats-.*|.*\.pid|.*\.socket|parent|{re.escape(FRAMES)}|\..*")
"""Names of files that are not sent: logs, statistics, the link to the parent, page frames."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:=@%-]{0,199}")
"""Names that are accepted."""

Count = Callable[[int], None]
"""Called with each number of bytes transferred."""


def size_of(directory: str) -> int:
    """Bytes of the files that would be sent."""
    return sum(entry.stat().st_size for entry in _entries(directory))


def send(channel: Channel, directory: str, number: int, count: Count) -> None:
    """Send all images of a directory."""
    entries = _entries(directory)
    total = sum(entry.stat().st_size for entry in entries)
    channel.send_message("images", number=number, files=len(entries), bytes=total)
    for entry in entries:
        with open(open_regular(entry.path), "rb", buffering=0) as file:
            remaining = os.fstat(file.fileno()).st_size
            channel.send_message("file", name=entry.name, size=remaining)
            buffer = bytearray(min(remaining, LARGEST_PIECE))
            while remaining:
                got = file.readinto(memoryview(buffer)[: min(remaining, LARGEST_PIECE)])
                if not got:
                    raise MigrationError(f"{entry.path} was truncated while it was sent")
                channel.send(Kind.PIECE, memoryview(buffer)[:got])
                remaining -= got
                count(got)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        files = [each for each in entries if each.is_file(follow_symlinks=False)]
    sent = (each for each in files if not _STAYS.fullmatch(each.name))
    return sorted(sent, key=lambda each: each.name)


def receive(
    channel: Channel, root: str, message: dict[str, object], last: int, count: Count
) -> int:
    """Receive a directory that ``message`` announced, into ``root``. Returns its number.

    ``last`` is the number of the previous one. Raises ``PeerLostError`` for an invalid message,
    and ``MigrationError`` if there is not enough space.
    """
    this, files, total = (number(message, name) for name in ("number", "files", "bytes"))
    if this != last + 1 or this > MOST_ROUNDS or files > MOST_FILES:
        raise PeerLostError(f"the peer announced images number {this} of {files} files")
    room = os.statvfs(root)
    if total > room.f_bavail * room.f_frsize:
        raise MigrationError(
            f"{total} bytes of images do not fit into {root}: "
            f"{room.f_bavail * room.f_frsize} bytes are free there"
        )
    directory = os.path.join(root, str(this))
    os.mkdir(directory, 0o700)
    if this > 1:
        os.symlink(f"../{this - 1}", os.path.join(directory, "parent"))
    with opened_directory(directory) as where:
        for _ in range(files):
            entry = channel.expect("file")
            size = number(entry, "size")
            total -= size
            if total < 0:
                raise PeerLostError("the peer sent more bytes of images than it announced")
            _receive_file(channel, where, checked_name(entry.get("name")), size, count)
    return this


def _receive_file(channel: Channel, where: int, name: str, remaining: int, count: Count) -> None:
    try:
        fd = create_regular(name, dir_fd=where)
    except FileExistsError:
        raise PeerLostError(f"the peer sent the file {name} twice") from None
    with open(fd, "wb", buffering=0) as file:
        while remaining:
            piece = channel.expect_piece()
            if not 0 < len(piece) <= remaining:
                raise PeerLostError(f"the peer sent {len(piece)} bytes where {remaining} were left")
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
            remaining -= len(piece)
            count(len(piece))


def checked_name(name: object) -> str:
    """Return a valid file name; ``PeerLostError`` for any other."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _STAYS.fullmatch(name):
        raise PeerLostError(f"the peer sent a file with the name {str(name)[:80]!r}")
    return name


def number(message: dict[str, object], name: str) -> int:
    """A number in a message of the peer; ``PeerLostError`` if it is not one."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise PeerLostError(f"the peer sent {name}={str(value)[:80]!r}")
    return value
