"""The files of an image set: their names, and the fields of messages for the check of a set.

Each image is read once, in C (``native/image_scan.c``), which also checks that it has the magic of
its kind and is complete.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Iterator

from .._native.ffi import ffi, memory, native
from .._support.cached_property import cached_property
from .._support.frozen_dataclass import dataclass
from .._support.lazy import socket
from .._support.light_typing import TYPE_CHECKING
from .._support.no_fork import no_fork
from .._support.unpatched import closing
from .._system.regular_file import open_regular
from .._wire.image_kinds import HEADS, PATTERNS, TRAILERS
from .page_size import HOST_PAGE, page_size

if TYPE_CHECKING:
    from .._system.port_conflicts import Binding
    from .pagemap import Runs

WINDOW = 2**20
"""Bytes of one read of a file without messages."""

INITIAL_CAPACITY = 2**12
"""Initial capacity for the numbers of an image; enough for most."""

COPY_AGAIN = "copy the images again from their origin, or give another images_directory"

Row = tuple[int, ...]
"""Size in bytes of the data behind a message, then the columns of its kind."""

_TRAILERS = {
    "": native.PN_NO_TRAILER,
    "bytes": native.PN_LENGTH,
    "length": native.PN_LENGTH,
    "queues": native.PN_QUEUES,
    "pairs": native.PN_PAIRS,
    "segment": native.PN_SEGMENT,
    "semaphores": native.PN_SEMAPHORES,
    "ghost": native.PN_GHOST,
    "messages": native.PN_MESSAGES,
    "pagemap": native.PN_RUNS,
}

# Columns by kind: the numbers of the fields that lead to one (images/*.proto). With a "*" at its
# end, a path is that of a repeated field, each of which has a row.
_COLUMNS = {
    "INVENTORY": "1 3.6 3.7 3.8 3.9 3.10 3.12 5 10 13 8",
    "PSTREE": "5* 1 5",
    "FILES": "1 2 3.2 3.8 4.2 4.5 4.8 17.2 17.3 18.2 18.3 19.2 19.6 20.5",
    "FILES local": "4.11* 4.1 4.3 4.5 4.7 4.15 4.11",
    "FILES remote": "4.12* 4.1 4.3 4.5 4.8 4.15 4.12",
    "CORE": "3.1 3.9 5.11 5.12 5.16 4.2 4.6 4.7 4.8 4.9 4.10 4.12 4.1",
    "IDS": "2 6 7 8 9 10 12 1",
    "FDINFO": "1",
    "FS": "1 2",
    "MM": "14* 12 14.7 14.4",
    "MM auxv": "13* 13",
    "MM flags": "14* 14.1 14.2 14.6 14.7 14.9",
    "SECCOMP": "1* 1",
    "USERNS uids": "1* 1.1 1.2 1.3",
    "USERNS gids": "2* 2.1 2.2 2.3",
    "REMAP_FPATH": "1 2 3=1",
    "GHOST_FILE": "3 9",
    "PIPES_DATA": "1",
    "FIFO_DATA": "1",
    "TTY_INFO": "1",
    "MEMFD_INODE": "7 4 5",
    "SK_QUEUES": "4.2* 4.2",
    "IPCNS_SHM": "3 1.7",
    "NETNS": "8",
    "MNTS": "1 2 3 6 7 12 13 18 16",
    "PAGEMAP": "1",
}


class _Format:
    """The magic of a kind of image, and the columns that are read from it."""

    def __init__(self, kind: str, paths: str) -> None:
        self.magic = HEADS[kind]
        self.trailer = _TRAILERS[TRAILERS.get(kind, "")]
        columns = each = b""
        self.width = 1
        for path in paths.split():
            numbers, _, unset = path.rstrip("*").partition("=")
            encoded = bytes(map(int, numbers.split(".")))
            if path.endswith("*"):
                each = encoded
            else:
                columns += encoded + bytes((0, int(unset or 0)))
                self.width += 1
        self.columns, self.each = columns + b"\0", each + b"\0"


_format = functools.cache(_Format)


@dataclass(frozen=True, slots=True)
class Problem:
    """A missing or damaged part of a set."""

    cause: str
    cure: str = "give the images_directory of a complete dump"
    options: tuple[str, ...] = ("images_directory",)
    served: bool = False
    """The missing part is served by a lazy dump."""


class DamagedError(Exception):
    """An image cannot be read to its end; the argument is a ``Problem``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.cause)
        self.problem = problem


def short(name: str) -> DamagedError:
    """The error for a file that was cut off."""
    return DamagedError(Problem(f"{name} is cut short", COPY_AGAIN))


def replaced(name: str, why: str) -> Problem:
    """The problem of an image that another one of its kind has replaced."""
    return Problem(f"{name} is damaged: {why}", COPY_AGAIN)


@dataclass(frozen=True, slots=True)
class PageMap:
    """The sums of a page map."""

    pages: str
    """Name of the file that holds its pages."""
    size: int
    """Bytes that this file must have."""
    in_parent: int
    """Bytes of memory that a parent has."""
    lazy: int
    """Bytes of memory that a lazy dump did not write."""


class ImageFiles:
    """The files of a directory, by name."""

    def __init__(self, directory: int) -> None:
        self.directory = directory
        self.names = set(os.listdir(directory))
        self._rows: dict[tuple[str, str], list[Row]] = {}

    def missing(self, name: str) -> Iterator[Problem]:
        """A problem, if there is no such file."""
        if name not in self.names:
            yield Problem(
                f"the images directory has no images, or not all of them: there is no {name}"
            )

    def rows(self, name: str, columns: str = "") -> list[Row]:
        """The columns of an image, or its other ``columns``; none without the image.

        ``DamagedError`` for an image that is of another kind, or cut short.
        """
        rows = self._rows.get((name, columns))
        if rows is None:
            rows = self._scan(name, ffi.NULL, columns) if name in self.names else []
            self._rows[name, columns] = rows
        return rows

    @cached_property
    def page(self) -> int:
        """Bytes of a page in these images."""
        name = next((each for each in self.names if kind_of(each) == "MM"), None)
        with contextlib.suppress(DamagedError):  # the check of that image reports it
            if name is not None:
                return page_size([row[1] for row in self._scan(name, ffi.NULL, "MM auxv")])
        return HOST_PAGE

    def bindings(self, end: str = "local") -> dict[int, Binding]:
        """The address and port of each socket of IPv4 or IPv6, or of its ``remote`` end, by id."""
        with no_fork:
            from .._system.port_conflicts import Binding  # few restores fail

        addresses: dict[tuple[int, ...], bytes] = {}
        for row in (each for each in self.rows("files.img", f"FILES {end}") if each[2]):
            word = row[-1] & 0xFFFFFFFF
            data = addresses.get(row[1:-1], b"") + word.to_bytes(4, sys.byteorder)
            addresses[row[1:-1]] = data
        return {
            id: Binding(
                family, protocol, socket.inet_ntop(family, data), port & 0xFFFF, bool(only_ipv6)
            )
            for (id, family, protocol, port, only_ipv6), data in addresses.items()
            if (family, len(data)) in ((socket.AF_INET, 4), (socket.AF_INET6, 16))
        }

    def first(self, name: str) -> Row | None:
        """The columns of an image's first message; None without one."""
        rows = self.rows(name)
        return rows[0] if rows else None

    def page_map(self, name: str) -> PageMap:
        """The sums of a page map. ``DamagedError``."""
        runs = ffi.new("struct pn_runs *", {"page": self.page})
        rows = self._scan(name, runs)
        if runs.problem:
            with no_fork:
                from .pagemap import PROBLEMS  # good sets do without

            why = PROBLEMS[runs.problem] or "this is no page map"
            raise DamagedError(Problem(f"{name} is damaged: {why}"))
        if not rows:
            raise short(name)
        _, in_parent, lazy = runs.totals
        return PageMap(f"pages-{rows[0][1]}.img", runs.offset, in_parent, lazy)

    def runs(self, name: str) -> Runs:
        """The runs of a page map that ``page_map`` takes."""
        with no_fork:
            from .pagemap import Runs  # few sets have parents

        runs, rest = Runs(self.page), b"".join(self.pieces(name))
        start = 12 + int.from_bytes(rest[8:12], "little")
        runs.take(rest[start:])
        return runs

    def _scan(self, name: str, runs: object, columns: str = "") -> list[Row]:
        kind = kind_of(name)
        assert kind is not None
        format = _format(kind, _COLUMNS.get(columns or kind, ""))
        capacity = INITIAL_CAPACITY
        while True:
            out = memory("uint64_t[]", capacity)
            count = native.pn_scan_image(
                self.directory,
                os.fsencode(name),
                format.magic,
                len(format.magic),
                format.trailer,
                format.columns,
                format.each,
                out,
                capacity,
                runs,
            )
            if count <= capacity:
                break
            capacity = count
        if count == -errno.ENOMEM:
            raise MemoryError(f"no memory for a message of {name}")
        if count < 0:
            raise self._damaged(name, kind, count)
        flat = iter(ffi.unpack(out, count) if count else ())
        return list(zip(*[flat] * format.width, strict=True))

    def _damaged(self, name: str, kind: str, why: int) -> DamagedError:
        if why == native.PN_NO_MESSAGE:
            return DamagedError(replaced(name, "a part of it is no message of CRIU's"))
        if why != native.PN_OTHER_KIND:
            with self._opened(name):
                return short(name)
        other = kind_at(next(self.pieces(name), b""))
        what = f"it is an image of {other}" if other else "it does not begin as an image of CRIU's"
        return DamagedError(Problem(f"{name} is damaged: {what}, not of {kind}"))

    def size(self, name: str) -> int:
        """Bytes of a regular file."""
        with self._opened(name) as fd:
            return os.fstat(fd).st_size

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file from its beginning, in pieces."""
        with self._opened(name) as fd:
            at = 0
            while piece := os.pread(fd, WINDOW, at):
                yield piece
                at += len(piece)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        try:
            fd = open_regular(name, dir_fd=self.directory)
        except OSError as error:
            raise DamagedError(
                Problem(f"{name} is damaged: it cannot be read as a file: {error.strerror}")
            ) from None
        with closing(fd):
            yield fd


def kind_at(begin: bytes) -> str | None:
    """The kind of image that begins with these bytes."""
    return next((kind for kind, head in HEADS.items() if begin.startswith(head)), None)


@functools.lru_cache(512)
def kind_of(name: str) -> str | None:
    """The kind of image with this file name; None for files of another format."""
    stem, _, ending = name.partition(".")
    if ending != "img":
        return None
    if stem in PATTERNS:
        return PATTERNS[stem]
    kind, _, tail = stem.rpartition("-")
    base = 16 if kind in ("ghost-file", "tcp-stream") else 10
    with contextlib.suppress(ValueError):
        int(tail, base)
        return PATTERNS.get(kind + "-")
    return None
